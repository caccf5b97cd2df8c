#!/usr/bin/env bash
# Runs the GPU's kernels on the processor (see emulated/machine.h) and compares them with references in f64: needs
# a C++ compiler, no GPU and no CUDA.
set -euo pipefail
cd "$(dirname "$0")/../.."
made=$PWD/target/emulated
mkdir -p "$made"
for source in crates/kernels/src/cuda/*.cu crates/kernels/src/cuda/*.cuh; do
  # Shared memory whose size the launch says is the one thing that a macro cannot stand in for.
  sed -E 's/extern __shared__ (__align__\([0-9]+\) )?(\w+) (\w+)\[\];/\2* \3 = static_cast<\2*>(emulated::dynamic_memory());/' \
    "$source" >"$made/$(basename "$source")"
done
for test in tests/cuda/emulated/*.cpp; do
  program=$made/$(basename "$test" .cpp)
  ${CXX:-c++} -std=c++20 -O2 -Wno-attributes -I tests/cuda/emulated -I "$made" "$test" -o "$program"
  "$program"
done
