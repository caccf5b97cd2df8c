#!/usr/bin/env bash
# The kernels' sources as a C++ compiler takes them with machine.h, into a folder.
set -euo pipefail
cd "$(dirname "$0")/../../.."
for source in crates/kernels/src/cuda/*.cu crates/kernels/src/cuda/*.cuh; do
  # Shared memory whose size the launch says is the one thing that a macro cannot stand in for.
  sed -E 's/extern __shared__ (__align__\([0-9]+\) )?(\w+) (\w+)\[\];/\2* \3 = static_cast<\2*>(emulated::dynamic_memory());/' \
    "$source" >"$1/$(basename "$source")"
done
