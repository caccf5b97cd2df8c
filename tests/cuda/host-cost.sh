#!/usr/bin/env bash
# What a step asks of a GPU, and what asking takes of the processor: bench of a shape of tests/peers on an emulated GPU that
# computes nothing (SPARSAM_EMULATED_IDLE), so that models of any size go through in no time. A driver adds its own share
# to each line, some microseconds a launch or product and one for memory.
#
#   tests/cuda/host-cost.sh SHAPE [words of `sparsam bench`: --dtype bf16 --batch 4 --seq 1024 …]
#
# $SPARSAM_PEER_DATA has the shapes (`just peers-prepare`); `tests/cuda/emulate-device.sh build --release -p sparsam` comes
# before.
set -euo pipefail
cd "$(dirname "$0")/../.."
shape=${1:-135m} data=${SPARSAM_PEER_DATA:-target/peers}
shift || true
[ $# -gt 0 ] || set -- --dtype bf16 --batch 4 --seq 1024
export LD_LIBRARY_PATH=$PWD/target/emulated/device SPARSAM_EMULATED_IDLE=1 SPARSAM_CUDA=required SPARSAM_BF16_ATTENTION=${SPARSAM_BF16_ATTENTION:-1}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
few=2 many=12
for steps in $few $many; do
  target/cuda-emulated/release/sparsam bench --device cuda:0 --model "$data/$shape" --lora-init "$data/$shape-lora.safetensors" \
    --batches "$data/$shape-batches.safetensors" --steps "$steps" "$@" >"$made/$steps.json" 2>"$made/$steps"
done
awk -F '\t' -v steps=$((many - few)) '
  $1 != "asked" { next }
  NR == FNR { times[$2] = $3; bytes[$2] = $4; next }
  {
    each = ($3 - times[$2]) / steps
    if (each > 0) printf "%-28s %8.1f  %s\n", $2, each, $4 ? sprintf("%.1f KiB", ($4 - bytes[$2]) / steps / 1024) : ""
    if (!$4 && $2 != "wait" && $2 != "product") launches += each
  }
  END { printf "%-28s %8.1f\n", "all launches", launches }' "$made/$few" "$made/$many"
printf 'a step takes the processor %s s\n' "$(sed -E 's/.*"step_seconds":([0-9.e-]+).*/\1/' "$made/$many.json")"
