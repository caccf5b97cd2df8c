#!/usr/bin/env bash
# Compiles the kernels' PTX for compute capability 8.0; with --check says whether the committed one agrees.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v nvcc >/dev/null 2>&1 || PATH="$(tests/cuda/toolkit.sh)/bin:$PATH"
folder=crates/kernels/src/cuda
made=$(mktemp --suffix .ptx)
trap 'rm -f "$made"' EXIT
# Comments name the compiler's build, and names in an unnamed namespace the place where it ran.
plain() { sed -E '/^\/\//d; s/_[0-9a-f]{8}_/_/g' "$1"; }
for source in "$folder"/*.cu; do
  nvcc -arch=compute_80 -O3 --ptx "$source" -o "$made"
  if [ "${1:-}" = --check ]; then
    diff <(plain "${source%.cu}.ptx") <(plain "$made") >/dev/null ||
      { echo "${source%.cu}.ptx is not what $(basename "$source") gives: run \`just cuda-ptx\`" >&2; exit 1; }
  else
    cp "$made" "${source%.cu}.ptx"
  fi
done
