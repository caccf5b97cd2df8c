#!/usr/bin/env bash
# Runs the GPU's kernels on the processor (see emulated/machine.h) and compares them with references in f64: needs
# a C++ compiler, no GPU and no CUDA.
set -euo pipefail
cd "$(dirname "$0")/../.."
made=$PWD/target/emulated
mkdir -p "$made"
tests/cuda/emulated/sources.sh "$made"
for test in tests/cuda/emulated/{attention,kernels}.cpp; do
  program=$made/$(basename "$test" .cpp)
  ${CXX:-c++} -std=c++20 -O2 -Wno-attributes -I tests/cuda/emulated -I "$made" "$test" -o "$program"
  "$program"
done
