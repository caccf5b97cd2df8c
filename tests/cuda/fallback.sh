#!/usr/bin/env bash
# The program that build.sh made, started where there is no driver, with the empty libraries of stubs.sh in the
# driver's place: `auto` says why and computes on the processor, `cuda:0` is refused in one sentence.
#
#   tests/cuda/fallback.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-${SPARSAM_CUDA_TARGET:-target/cuda}/release/sparsam}
export LD_LIBRARY_PATH=$PWD/target/cuda-stubs
heard=$(mktemp)
trap 'rm -f "$heard"' EXIT
ask=(generate --model builtin:sprout --prompt "Once upon a time" --max-new-tokens 8)

"$program" "${ask[@]}" --device auto 2>"$heard"
cat "$heard"
grep -q '^note: computing on the processor: there is no NVIDIA driver' "$heard"
answer=$("$program" "${ask[@]}" --device auto 2>/dev/null)
[ "$answer" = "$("$program" "${ask[@]}" --device cpu 2>/dev/null)" ]

code=0
"$program" "${ask[@]}" --device cuda:0 2>"$heard" || code=$?
cat "$heard"
[ "$code" = 1 ]
[ "$(sed 's/:.*//' "$heard" | paste -sd ' ')" = "error hint" ]
echo "started without a driver, fell back, and refused cuda:0 with exit code 1"
