#!/usr/bin/env bash
# All that needs a GPU, on one, in under eight minutes, building nothing: the device tests, parity with PEFT and
# transformers, the table beside PEFT, a run with NVML's readings. Each part has a time limit and leaves its output in a
# folder; one that fails does not keep the others from running, and summary.md says so.
#
#   tests/cuda/suite.sh [FOLDER [PART…]]    target/gpu-suite without one; parts: tests, run, table, 8b, length; all if none is
#   named
#
# `just gpu-programs` builds what it runs, on any machine. The table needs a Python with PEFT on a torch that sees the
# GPU ($SPARSAM_PYTHON, else python3) and is left out without one; $SPARSAM_PEER_DATA keeps its weights from call to call,
# 17 GB of them for the 8B rows. Rows of uneven length for it are in rows.safetensors there, or are made of the questions
# and answers of $SPARSAM_PEER_ROWS (JSONL) by the tokenizer $SPARSAM_PEER_TOKENIZER. $SPARSAM_PROGRAMS is where pack.sh
# put the programs, target/cuda/programs without it; $SPARSAM_PATIENCE times the limits.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-target/gpu-suite} parts=" ${*:2} " programs=${SPARSAM_PROGRAMS:-target/cuda/programs}
python=${SPARSAM_PYTHON:-python3} data=${SPARSAM_PEER_DATA:-target/gpu-peers} patience=${SPARSAM_PATIENCE:-1}
mkdir -p "$out" "$data"
out=$(cd "$out" && pwd)
programs=$(cd "$programs" 2>/dev/null && pwd) || { echo "there are no programs: build them with \`just gpu-programs\`" >&2; exit 1; }
sparsam=$programs/sparsam
summary=$out/summary.md
failed=0
printf '| part | outcome | seconds |\n|---|---|---|\n' >"$summary"

wanted() { [[ $parts == "  " || $parts == *" $1 "* ]]; }
# part NAME LIMIT COMMAND…
part() {
  local name=$1 limit=$(($2 * patience)) begun=$SECONDS code=0 outcome=ok
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1 </dev/null || code=$?
  case $code in 0) ;; 124) outcome="not done within $limit s" ;; *) outcome="failed with $code" ;; esac
  [ $code = 0 ] || failed=1
  printf '| %s | %s | %s |\n' "$name" "$outcome" $((SECONDS - begun)) | tee -a "$summary"
}
left_out() { printf '| %s | left out: %s | |\n' "$1" "$2" | tee -a "$summary"; }
peft=("$python" tests/peers/peft_peer.py --data "$data")

if command -v nvidia-smi >/dev/null; then
  part machine 20 nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
else
  left_out machine "there is no nvidia-smi"
fi

if wanted tests; then
  part device-tests 100 env SPARSAM_CUDA=required "$programs/cuda"
  # These look for the fixtures beside their crate, which is here and not where they were built. Of `bf16` one test is of a
  # GPU; it runs with attention in f32 and with that of the tensor cores.
  while read -r name test words; do
    read -ra words <<<"$words"
    part "$name" 60 env SPARSAM_TEST_DEVICE=cuda CARGO_MANIFEST_DIR="$PWD/crates/adapter" \
      SPARSAM_BF16_ATTENTION=$([[ $name == *f32-attention ]] && echo 0) "$programs/$test" "${words[@]}"
  done <<'TESTS'
parity parity
classify classify
ways ways
bf16 bf16 rounded_products
bf16-f32-attention bf16 rounded_products
TESTS
fi

if wanted run; then
  # With its journal, and beside it the driver's own readings every tenth of a second.
  trace=
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=timestamp,power.draw.instant,power.draw.average,utilization.gpu,memory.used --format=csv -lms 100 \
      >"$out/nvml-trace.csv" 2>/dev/null &
    trace=$!
  fi
  rm -rf "$out/run"
  part run 90 "$sparsam" train configs/quickstart.yaml device=cuda:0 "output_dir=$out/run" ${SPARSAM_SUITE_KEYS:-}
  [ -z "$trace" ] || kill "$trace"
fi

if ! wanted table && ! wanted 8b; then
  :
elif ! "$python" -c 'import peft, torch; assert torch.cuda.is_available()' 2>/dev/null; then
  left_out table "no Python here has PEFT on a torch that sees a GPU"
else
  "$python" -c 'import peft, torch, transformers; print("PEFT", peft.__version__, "torch", torch.__version__, "transformers", transformers.__version__)' >"$out/versions.txt"
  if [ ! -e "$data/rows.safetensors" ] && [ -n "${SPARSAM_PEER_ROWS:-}" ]; then
    part write-rows 60 "${peft[@]}" --shape 1.1b --write-rows "$SPARSAM_PEER_ROWS" \
      --tokenizer "$SPARSAM_PEER_TOKENIZER" --rows "$data/rows.safetensors"
  fi
  # name, shape, arguments of both sides: steps for a second or more, since the counters of energy move every tenth of one. What follows a `+` is ours alone, beside the same row of PEFT's.
  while read -r name shape words; do
    if [ "$shape" = 8b ]; then wanted 8b || continue; else wanted table || continue; fi
    # The A matrices are written last.
    [ -e "$data/$shape-lora.safetensors" ] ||
      part "prepare-$shape" 120 "${peft[@]}" --shape "$shape" --prepare --dtype bf16 --device cuda
    read -ra words <<<"--method lora --dtype bf16 $words"
    if [[ $name == *rows ]]; then
      if [ ! -e "$data/rows.safetensors" ]; then left_out "$name" "there is no $data/rows.safetensors"; continue; fi
      words+=(--rows "$data/rows.safetensors")
    fi
    [[ $name == *+* ]] || part "peft-$name" 90 "${peft[@]}" --device cuda --shape "$shape" "${words[@]}"
    part "sparsam-$name" 90 env SPARSAM_BF16_ATTENTION=$([[ $name == *+f32-attention ]] && echo 0) "$sparsam" bench \
      --device cuda:0 --model "$data/$shape" --lora-init "$data/$shape-lora.safetensors" \
      --batches "$data/$shape-batches.safetensors" "${words[@]}" --json
  done <<'WORK'
1.1b-bf16 1.1b --batch 4 --seq 1024 --steps 32
1.1b-bf16+f32-attention 1.1b --batch 4 --seq 1024 --steps 32
1.1b-nf4 1.1b --quantize nf4 --batch 4 --seq 1024 --steps 32
1.1b-bf16-rows 1.1b --batch 16 --steps 32
135m-bf16 135m --batch 4 --seq 1024 --steps 32
8b-bf16 8b --gradient-checkpointing --batch 4 --seq 2048 --steps 8
8b-nf4 8b --quantize nf4 --gradient-checkpointing --batch 2 --seq 2048 --steps 8
8b-nf4+offload 8b --quantize nf4 --gradient-checkpointing=offload --batch 2 --seq 2048 --steps 8
WORK
fi

# How cost grows with the length of a text, always 16,384 tokens a step.
if wanted length && [ -e "$data/1.1b-lora.safetensors" ]; then
  for length in 512 1024 2048 4096 8192 16384; do
    part "length-$length" 60 "$sparsam" bench --device cuda:0 --model "$data/1.1b" --dtype bf16 --method lora \
      --lora-init "$data/1.1b-lora.safetensors" --batches "$data/1.1b-batches.safetensors" \
      --batch $((16384 / length)) --seq $length --steps 6 --json
  done
elif wanted length; then
  left_out length "there are no weights of 1.1b in $data yet: the part \`table\` makes them"
fi

"$python" tests/cuda/table.py "$out" | tee -a "$summary"
echo "results are in $out"
exit $failed
