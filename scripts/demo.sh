#!/bin/sh
# make demo: a cluster on this machine, taken through its life. KEEP=1 leaves it running.
set -eu
. "$(dirname "$0")/lib.sh"
"$top/scripts/setup.sh" 'make demo'
find_cargo || die 'there is no cargo that is new enough: run scripts/setup.sh'
"$top/scripts/guest.sh"
cd "$top"
say 'building (release)'
cargo build --quiet --locked --release -p cardume
case ${KEEP:-} in
'' | 0) exec target/release/cardume lab demo ;;
*) exec target/release/cardume lab demo --keep ;;
esac
