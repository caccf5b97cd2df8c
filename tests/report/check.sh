#!/usr/bin/env bash
# Reports of one run, of several and of a comparison, in English and German, held to what is promised of them in
# headless Chromium. Needs Chromium, Node with npm; pdftoppm for pictures of the print. Leaves pages and pictures in
# target/report-check.
#
#     tests/report/check.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:-target/release/sparsam}")
browser=$(command -v "${CHROMIUM:-chromium}" || command -v chromium-browser || command -v google-chrome)
out=target/report-check
mkdir -p "$out/shots" "$out/pages"
rm -f "$out"/shots/* "$out"/pages/*.html

# Runs that are there already are shown again; remove target/report-check to make them anew.
small="max_steps=40 eval_steps=10 eval_generation.samples=8 eval_generation.max_new_tokens=48"
small="$small energy.interval_seconds=0.5 logging.tensorboard=false epochs=null"
train() {
  # shellcheck disable=SC2086
  [ -e "$out/runs/$1/README.md" ] || { rm -rf "$out/runs/$1"; "$program" -q train configs/quickstart.yaml $small \
    "output_dir=$out/runs/$1" "${@:2}" > /dev/null; }
}
train one country=DEU
train placeless lora.r=8
[ -e "$out/runs/tracked/energy.json" ] || "$program" -q track --country FRA -o "$out/runs/tracked" -- sleep 4
cat > "$out/compare.yaml" <<YAML
recipe: configs/quickstart.yaml
set: [epochs=null, max_steps=24, eval_steps=8, eval_generation.samples=8, eval_generation.max_new_tokens=32, country=DEU]
arms:
  full: [method=full, learning_rate=5e-4]
  LoRA r 4: [lora.r=4, lora.alpha=8]
  NF4 r 16: [quantize=nf4, lora.r=16, lora.alpha=32]
repeats: 2
pause_seconds: 0
warm_up_seconds: 0
output_dir: $out/runs/compare
YAML
"$program" -q compare "$out/compare.yaml" > /dev/null
for language in en de; do
  "$program" report --language $language -o "$out/pages/one-$language.html" "$out/runs/one" > /dev/null
  "$program" report --language $language -o "$out/pages/several-$language.html" \
    "$out/runs/one" "$out/runs/placeless" "$out/runs/tracked" > /dev/null
  "$program" report --language $language -o "$out/pages/compare-$language.html" "$out/runs/compare" > /dev/null
done
# The page carries a policy by which a browser asks nobody, and names nobody to ask.
for page in "$out"/pages/*.html; do
  grep -q "default-src 'none'" "$page"
  if grep -nE '(src|href)="?(https?:)?//|@import|url\(' "$page"; then
    echo "error: $page names something outside" >&2
    exit 1
  fi
done
cp tests/report/package.json tests/report/check.mjs "$out/"
npm install --prefix "$out" --silent --no-audit --no-fund
node "$out/check.mjs" --browser "$browser" --shots "$out/shots" "$out"/pages/*.html
if command -v pdftoppm > /dev/null; then
  for print in "$out"/shots/*.pdf; do
    pdftoppm -r 60 -png "$print" "${print%.pdf}"
  done
fi
echo "pages in $out/pages, pictures in $out/shots"
