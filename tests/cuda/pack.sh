#!/usr/bin/env bash
# What suite.sh runs, without symbols, into a folder and an archive of it that is small enough to be carried to a machine
# with a GPU: the program and the newest test program of each name.
#
#   tests/cuda/pack.sh [CARGO'S TARGET FOLDER]     target/cuda without one; makes programs and programs.tar.gz in it
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${1:-target/cuda}
rm -rf "$target/programs" && mkdir "$target/programs"
strip -o "$target/programs/sparsam" "$target/release/sparsam"
for test in cuda parity classify ways bf16; do
  newest=$(find "$target/debug/deps" -maxdepth 1 -type f -executable -name "$test-*" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)
  [ -n "$newest" ] || { echo "the tests \`$test\` have not been built into $target" >&2; exit 1; }
  strip -o "$target/programs/$test" "$newest"
done
tar -C "$target" -czf "$target/programs.tar.gz" programs
du -sh "$target/programs" "$target/programs.tar.gz"
