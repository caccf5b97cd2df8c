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

# Timings of each kernel
bench:
    cargo bench -p sparsam-kernels

# Write the fixtures of tests/fixtures again (needs Python with the packages of tests/peers/requirements.txt)
fixtures:
    python3 tests/fixtures/make.py
