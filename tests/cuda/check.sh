#!/usr/bin/env bash
# Type-checks the GPU's side with clippy on a machine without CUDA, in about a minute: a pretended nvcc writes empty
# files. Nothing built this way can run.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/tests/cuda/pretended:$PATH" CUDA_COMPUTE_CAP=80
exec cargo clippy -p sparsam-kernels -p sparsam --features cuda --tests --locked --target-dir target/cuda-check -- -D warnings
