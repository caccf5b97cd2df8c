# Every habit by name. `just` comes as the package `just` or `rust-just`.

# What a change must pass
ci:
    .ci/run

# The tests
test:
    cargo test --workspace

# Formatting and lints
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Every kernel against the machine's roofs (GFLOP/s, GB/s): criterion, and a table in target/roofline.md
bench:
    cargo bench -p sparsam-kernels

# How a step's cost grows with length, rank, blocks, vocabulary, threads: target/growth.md and .svg
growth:
    mkdir -p target
    cargo run --release -p sparsam-adapter --example growth -- target/growth

# Where the time of a step goes, by kind of work (needs perf, and what `just peers` prepared)
profile arms="f32 bf16 nf4" data="target/peers" python="python3":
    cargo build --profile profiling -p sparsam
    {{python}} tests/peers/step_profile.py --sparsam target/profiling/sparsam --data {{data}} --output target/profile {{arms}}

# What keeping the frozen prefix saves: upper blocks trained for 1, 3 and 10 epochs (about twenty minutes; needs Python)
prefix-table python="python3" *arguments="":
    cargo build --release
    {{python}} tests/prefix/table.py --output target/prefix {{arguments}}

# The built-in model from nothing: corpus, seed model, training (minutes on a GPU, see configs/sprout.yaml), assets
grow-sprout program="target/cuda/release/sparsam":
    cargo run --release -p sparsam-datasets -- corpus --seed 1 --megabytes 100 -o target/grown/corpus
    cargo run --release -p sparsam-datasets -- sprout-seed --corpus target/grown/corpus --seed 1 -o target/grown/seed
    {{program}} train configs/sprout.yaml
    {{program}} pack-builtin target/grown/sprout -o crates/base/assets/sprout

# sparsam beside PEFT on PyTorch, in turn (needs Python with tests/peers/requirements.txt; `python=venv/bin/python`)
peers python="python3" *arguments="":
    cargo build --release
    {{python}} tests/peers/peft_peer.py --data target/peers --shape 135m --prepare
    {{python}} tests/peers/peers.py --sparsam target/release/sparsam --python {{python}} --data target/peers --output target/peers/peers {{arguments}}

# The same on rows of uneven length: questions and answers of a JSONL file, padded by PEFT (the same Python)
peers-rows data tokenizer python="python3" *arguments="":
    cargo build --release
    {{python}} tests/peers/peft_peer.py --data target/peers --write-rows {{data}} --tokenizer {{tokenizer}} --rows target/peers/rows.safetensors
    {{python}} tests/peers/peers.py --sparsam target/release/sparsam --python {{python}} --data target/peers --rows target/peers/rows.safetensors --arms f32-rows,f32-rows-selective --output target/peers/rows {{arguments}}

# Generation beside candle's own Llama, in turn: tokens a second of prompt and answer (FOLDER: a Llama in f32)
peers-generate folder="target/peers/135m" tokens="256" new="64":
    cargo run --release -p sparsam-base --example beside_candle -- {{folder}} {{tokens}} {{new}}

# A small encoder trained to classify beside PEFT: macro F1, time, memory (needs the same Python, and the data)
peers-classify model data python="python3" *arguments="":
    cargo build --release
    {{python}} tests/peers/classify_peer.py --sparsam target/release/sparsam --model {{model}} --data {{data}} --output target/peers/classify {{arguments}}

# An adapter and its card as PEFT and huggingface_hub read them (needs the same Python)
interop model adapter prompt="Once upon a time" python="python3":
    mkdir -p target/interop
    cargo run --release -- probe --model {{model}} --adapter {{adapter}} --prompt "{{prompt}}" -o target/interop/logits.safetensors
    {{python}} tests/interop/check_adapter.py --base {{model}} --adapter {{adapter}} --logits target/interop/logits.safetensors
    {{python}} tests/interop/check_card.py {{adapter}}/README.md

# GGUF models and adapters beside those of llama.cpp's own converters (LLAMA_CPP: a checkout; needs the same Python)
interop-gguf llama_cpp model adapter python="python3":
    cargo build --release -p sparsam
    {{python}} tests/interop/check_gguf.py --sparsam target/release/sparsam --llama-cpp {{llama_cpp}} --model {{model}} --adapter {{adapter}}

# The cache and a published card as Python's huggingface_hub finds them, before a Hub on loopback
interop-hub python="python3":
    cargo build --release -p sparsam
    cargo build --release -p sparsam-hub --example loopback
    {{python}} tests/interop/check_hub.py --sparsam target/release/sparsam --loopback target/release/examples/loopback

# Reports in headless Chromium: axe-core finds nothing, nothing is asked of a network (needs Chromium, Node with npm)
report-check program="target/release/sparsam":
    tests/report/check.sh {{program}}

# Random budgets against real runs: each ends within 2 % of its own, with a usable adapter (about twenty minutes)
budgets runs="20" seed="1":
    SPARSAM_RUNS={{runs}} SPARSAM_SEED={{seed}} cargo test -p sparsam --test budgets -- --nocapture

# Plans of twelve recipes of different shape against real runs: memory, time, energy (about twenty minutes; needs Python)
plan-check python="python3" *arguments="":
    cargo build --release
    {{python}} tests/plan/against_runs.py --output target/plan {{arguments}}

# A comparison's arms as a job array of a Slurm cluster, on a cluster of one machine (needs slurm-wlm, munge, root)
slurm-check program="target/release/sparsam":
    tests/slurm/check.sh {{program}}

# What measuring costs a program at full load, and codecarbon beside it: `just overhead VENV/bin/python` has codecarbon
overhead python="" *arguments="":
    cargo build --release
    python3 tests/tracker/overhead.py --sparsam target/release/sparsam {{ if python == "" { "" } else { "--python " + python } }} --output target/overhead {{arguments}}

# How near any model of power, load and clock can come to codecarbon's load profiles, even fitted to them
cpu-model-bound profiles python="python3":
    {{python}} tests/tracker/cpu_model_bound.py {{profiles}}

# Fuzz targets, so many seconds each (needs cargo-fuzz and a nightly compiler)
fuzz seconds="600" targets="front_matter powercap journal gguf safetensors adapter_config":
    for target in {{targets}}; do mkdir -p fuzz/corpus/$target && cargo +nightly fuzz run $target fuzz/corpus/$target fuzz/seeds/$target -- -max_total_time={{seconds}} -rss_limit_mb=2048 || exit 1; done

# Write the fixtures of tests/fixtures again (needs Python with the packages of tests/peers/requirements.txt)
fixtures:
    python3 tests/fixtures/make.py

# The kernels' tests and the parity of models on an emulated AArch64 (needs qemu-user and a cross linker, see the script)
test-aarch64:
    tests/aarch64/check.sh

# nvcc from NVIDIA's packages, where no CUDA toolkit is installed; prints its folder
cuda-toolkit:
    tests/cuda/toolkit.sh

# The program for NVIDIA GPUs: target/cuda/release/sparsam (needs nvcc, or fetches one; no GPU)
cuda-build:
    tests/cuda/build.sh build --release -p sparsam

# That program started without a driver: it falls back to the processor
cuda-fallback program="target/cuda/release/sparsam":
    tests/cuda/fallback.sh {{program}}

# Type-check the GPU's side without CUDA
cuda-check:
    tests/cuda/check.sh

# The kernels' PTX from their source; `just cuda-ptx --check` only compares
cuda-ptx *arguments="":
    tests/cuda/ptx.sh {{arguments}}

# Every kernel on this machine's GPU against the processor's
test-cuda:
    SPARSAM_CUDA=required tests/cuda/build.sh test -p sparsam-kernels --test cuda

# What gpu-suite runs, built on any machine and packed to be carried: target/cuda/programs, and an archive of it
gpu-programs:
    tests/cuda/build.sh build --release -p sparsam
    tests/cuda/build.sh test -p sparsam-kernels --test cuda --no-run
    tests/cuda/build.sh test -p sparsam-adapter --test parity --test classify --test ways --test bf16 --no-run
    tests/cuda/pack.sh

# On a machine with a GPU, all that needs one in under eight minutes; builds nothing, results in a folder
gpu-suite folder="target/gpu-suite" *parts="":
    tests/cuda/suite.sh {{folder}} {{parts}}

# The GPU's kernels on this machine's processor, emulated, against references in f64 (needs a C++ compiler)
cuda-emulate:
    tests/cuda/emulate.sh

# The device tests, or other words of cargo, on a GPU that is emulated with its driver and cuBLAS; slow
cuda-emulate-device *words="":
    tests/cuda/emulate-device.sh {{words}}

# Parity with PEFT and transformers on that GPU: logits, losses, gradients, whole trainings; some ten minutes
cuda-emulate-parity:
    SPARSAM_TEST_DEVICE=cuda tests/cuda/emulate-device.sh test -p sparsam-adapter --test parity --test classify --test ways
    SPARSAM_TEST_DEVICE=cuda tests/cuda/emulate-device.sh test -p sparsam-adapter --test bf16 rounded_products
    SPARSAM_TEST_DEVICE=cuda SPARSAM_BF16_ATTENTION=0 tests/cuda/emulate-device.sh test -p sparsam-adapter --test bf16 rounded_products

# What a step asks of a GPU and what that takes of the processor, on the emulated one, idle (needs what `just peers` prepared)
cuda-host-cost shape="135m" *words="":
    tests/cuda/emulate-device.sh build --release -p sparsam
    tests/cuda/host-cost.sh {{shape}} {{words}}
