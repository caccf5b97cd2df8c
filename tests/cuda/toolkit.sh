#!/usr/bin/env bash
# Puts together what compiles CUDA from NVIDIA's packages on PyPI, where no CUDA toolkit is installed. They are
# under NVIDIA's licence: used to build, never part of this repository. Prints the folder.
#
# 13.0 is pinned: drivers of series 580 do not read the PTX of later compilers.
set -euo pipefail
cd "$(dirname "$0")/../.."
place=$PWD/target/cuda-toolkit
home=$place/nvidia/cu13
if [ ! -e "$place/complete" ]; then
  mkdir -p "$place/wheels"
  python3 -m pip download --quiet --no-deps --dest "$place/wheels" nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-curand==10.4.0.35 >&2
  for wheel in "$place"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$place"
  done
  rm -r "$place/wheels"
  chmod +x "$home"/bin/* "$home"/nvvm/bin/*
  touch "$place/complete"
fi
echo "$home"
