#!/usr/bin/env bash
# Empty libraries with the names of NVIDIA's, so that a program can be linked where they are not installed, and
# started to see it fall back to the processor: every function answers CUDA_ERROR_STUB_LIBRARY (34).
# The functions are all those that cudarc's bindings name, a superset of what `nm -u` finds in the objects.
#
#   tests/cuda/stubs.sh FOLDER      with CUDA_HOME, whose libcudart is the real one
set -euo pipefail
mkdir -p "$1"
stubs=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
runtime=$(find "$CUDA_HOME/" -name 'libcudart.so.13*' 2>/dev/null | sort | head -n 1 || true)
if [ -z "$runtime" ]; then
  echo "there is no libcudart.so.13 below $CUDA_HOME: it is not a toolkit of CUDA 13" >&2
  exit 1
fi
bindings=$(cargo metadata --format-version 1 --locked --features cuda | python3 -c '
import json, os, sys
print(*(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
library() { # name, version, folder of the bindings
  local source=$stubs/$1.c
  grep -rhoE 'fn (cu|cublas|curand|nvrtc)[A-Za-z0-9_]+\(' "$bindings/src/$3/sys" | sed 's/fn \(.*\)(/\1/' | sort -u |
    sed 's/.*/int &(void) { return 34; }/' >"$source"
  "${CC:-cc}" -shared -fPIC -Wl,-soname,"lib$1.so.$2" -o "$stubs/lib$1.so.$2" "$source"
  ln -sf "lib$1.so.$2" "$stubs/lib$1.so"
}
library cuda 1 driver
library cublas 13 cublas
library cublasLt 13 cublaslt
library curand 10 curand
library nvrtc 13 nvrtc
ln -sf "$runtime" "$stubs/libcudart.so.13"
ln -sf libcudart.so.13 "$stubs/libcudart.so"
