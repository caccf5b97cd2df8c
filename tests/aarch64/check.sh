#!/usr/bin/env bash
# The kernels' tests, and the parity of whole models, on an emulated AArch64: once with its BF16 extension, once without.
#
# Needs qemu-user, a linker and a C library for AArch64 (Debian: qemu-user, gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross) and the standard library of the target (rustup target add aarch64-unknown-linux-gnu).
set -euo pipefail
cd "$(dirname "$0")/../.."

target=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=none

# The processor, and the level that must be found on it.
for pair in max:neonbf16 cortex-a72:neon; do
  export SPARSAM_TEST_LEVEL=${pair#*:}
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu ${pair%%:*} -L /usr/aarch64-linux-gnu"
  echo "== ${pair%%:*}, which must come out as ${pair#*:}"
  cargo test --target "$target" -p sparsam-kernels
  cargo test --target "$target" -p sparsam-adapter --test parity
done
