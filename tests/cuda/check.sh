#!/usr/bin/env bash
# Type-checks the GPU's side with clippy on a machine without CUDA, in about a minute: a pretended nvcc writes empty
# files. Nothing built this way can run.
set -euo pipefail
cd "$(dirname "$0")/../.."
pretended=$PWD/target/cuda-check/bin
mkdir -p "$pretended"
cat >"$pretended/nvcc" <<'NVCC'
#!/bin/sh
out= dir=. ptx= lib= src= previous=
for a in "$@"; do
  case "$previous" in -o) out=$a ;; --output-directory) dir=$a ;; esac
  case "$a" in
    --version) printf 'nvcc\nx\nx\nCuda compilation tools, release 13.0, V13.0.88\n'; exit 0 ;;
    --ptx) ptx=1 ;; --lib) lib=1 ;; *.cu) src=$a ;;
  esac
  previous=$a
done
if [ -n "$ptx" ]; then echo // >"$dir/$(basename "$src" .cu).ptx"; elif [ -n "$lib" ]; then ar cr "$out"; else : >"$out"; fi
NVCC
chmod +x "$pretended/nvcc"
export PATH="$pretended:$PATH" CUDA_COMPUTE_CAP=80
exec cargo clippy -p sparsam-kernels -p sparsam --features cuda --tests --locked --target-dir target/cuda-check -- -D warnings
