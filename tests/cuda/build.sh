#!/usr/bin/env bash
# Builds for NVIDIA GPUs of compute capability 8.0 and later, on a machine that needs neither a GPU nor a driver:
# nvcc is the one on the PATH if it is of CUDA 13, else that of toolkit.sh, and the link is made against empty
# libraries with the names of NVIDIA's. What is built needs a driver of series 580 or newer and the CUDA 13
# libraries (cuBLAS, cuRAND, cudart) where it runs.
#
#   tests/cuda/build.sh [cargo's words: build --release -p sparsam, test -p sparsam-kernels --no-run …]
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- build --release -p sparsam
if nvcc=$(command -v nvcc) && [[ $("$nvcc" --version) == *"release 13."* ]]; then
  CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$nvcc")")")}
else
  [ -z "$nvcc" ] || echo "$nvcc is not of CUDA 13 and is left alone" >&2
  CUDA_HOME=$(tests/cuda/toolkit.sh)
fi
export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
# PTX for 8.0 runs on every later GPU; the driver compiles it when it is first used.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
stubs=$PWD/target/cuda-stubs
tests/cuda/stubs.sh "$stubs"
export LIBRARY_PATH="$stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
exec cargo "$@" --features cuda --target-dir "${SPARSAM_CUDA_TARGET:-target/cuda}"
