#!/usr/bin/env bash
# Builds the GPU's side and runs it on a GPU that is emulated: the kernels as in emulate.sh, under a driver and a cuBLAS
# that are written down in emulated/driver.cpp. So the launches themselves are tested, and whole runs on `cuda:0`, slowly,
# where there is no GPU. Needs a C++ compiler, no CUDA; a few minutes the first time.
#
#   tests/cuda/emulate-device.sh [cargo's words: test -p sparsam-kernels --test cuda, build --release -p sparsam …]
#
# What was built runs with LD_LIBRARY_PATH=target/emulated/device.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- test -p sparsam-kernels --test cuda -- --nocapture
made=$PWD/target/emulated device=$PWD/target/emulated/device
mkdir -p "$device"
tests/cuda/emulated/sources.sh "$made"
for module in kernels attention; do
  {
    printf '#include "%s.cu"\n#include "driver.h"\nstatic const bool added = [] {\n' "$module"
    awk -f tests/cuda/emulated/table.awk "crates/kernels/src/cuda/$module.ptx"
    printf '    return true;\n}();\n'
  } >"$device/$module.cpp"
done
# Every function that the bindings name is there; those that driver.cpp does not have fail.
bindings=$(cargo metadata --format-version 1 --locked --features cuda | python3 -c '
import json, os, sys
print(*(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
grep -rhoE 'fn (cu|cuda|cublas|cublasLt|curand|nvrtc)[A-Z][A-Za-z0-9_]+\(' "$bindings"/src/*/sys |
  sed 's/fn \(.*\)(/__attribute__((weak)) int \1(void) { return 34; }/' | sort -u >"$device/others.c"
${CC:-cc} -fPIC -c "$device/others.c" -o "$device/others.o"
${CXX:-c++} -std=c++20 -O2 -fPIC -shared -Wno-attributes -I tests/cuda/emulated -I "$made" -Wl,-soname,libcuda.so.1 \
  "$device"/{kernels,attention}.cpp tests/cuda/emulated/{driver,candle}.cpp "$device/others.o" -o "$device/libcuda.so.1"
ln -sf libcuda.so.1 "$device/libcuda.so"
# The others' functions are all in the first.
for library in cublas:13 cublasLt:13 curand:10 nvrtc:13 cudart:13; do
  name=lib${library%:*}.so
  : | ${CC:-cc} -shared -fPIC -xc - -Wl,-soname,"$name.${library#*:}" -o "$device/$name.${library#*:}"
  ln -sf "$name.${library#*:}" "$device/$name"
done
export PATH=$PWD/tests/cuda/pretended:$PATH CUDA_COMPUTE_CAP=80 SPARSAM_CUDA=required
export LIBRARY_PATH="$device${LIBRARY_PATH:+:$LIBRARY_PATH}" LD_LIBRARY_PATH="$device${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec cargo "${1}" --features cuda --target-dir target/cuda-emulated "${@:2}"
