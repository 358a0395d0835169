#!/bin/sh
# make check: format and lints, of the workspace and of the guest program.
set -eu
. "$(dirname "$0")/lib.sh"
find_cargo || die "make check needs cargo $(rust_pin) or newer with rustfmt and clippy: run scripts/setup.sh as root"
cd "$top"
say 'format'
cargo fmt --all --check
(cd guest && cargo fmt --check)
say 'lints'
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
(cd guest && cargo clippy --quiet --locked --all-targets --target-dir target -- -D warnings)
