#!/usr/bin/env bash
# Builds for NVIDIA GPUs of compute capability 8.0 and later, on a machine that needs neither a GPU nor a driver:
# nvcc is the one on the PATH or that of toolkit.sh, and where NVIDIA's libraries are missing the link is made
# against empty ones of the same names. What is built needs a driver of series 580 or newer and the CUDA 13
# libraries (cuBLAS, cuRAND, cudart) where it runs.
#
#   tests/cuda/build.sh [cargo's words: build --release -p sparsam, test -p sparsam-kernels --no-run …]
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- build --release -p sparsam
if ! command -v nvcc >/dev/null 2>&1; then
  CUDA_HOME=$(tests/cuda/toolkit.sh)
  export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
fi
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
stubs=$PWD/target/cuda-stubs
if ! ldconfig -p | grep -q libcublas.so.13 || ! ldconfig -p | grep -q libcuda.so.1; then
  tests/cuda/stubs.sh "$stubs"
  export LIBRARY_PATH="$stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
fi
exec cargo "$@" --features cuda --target-dir target/cuda
