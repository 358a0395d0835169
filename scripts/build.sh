#!/bin/sh
# make build: the release binary, target/release/cardume.
set -eu
. "$(dirname "$0")/lib.sh"
find_cargo || die "make build needs cargo $(rust_pin) or newer and a C compiler: run scripts/setup.sh as root"
cd "$top"
cargo build --locked --release -p cardume
