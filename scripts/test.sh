#!/bin/sh
# make test: everything that must hold, in the order in which it is quick to say no.
#
# CARDUME_TEST_SKIP_LAB=1 leaves out the tests with a whole cluster; continuous integration (CI=true)
# refuses it.
set -eu
. "$(dirname "$0")/lib.sh"
skip=
case ${CARDUME_TEST_SKIP_LAB:-} in
'' | 0) ;;
*)
	[ "${CI:-}" != true ] || die 'CARDUME_TEST_SKIP_LAB is set and so is CI: nothing is skipped there'
	say 'CARDUME_TEST_SKIP_LAB: the tests with a whole cluster are LEFT OUT'
	skip='--exclude lab --exclude cardume'
	;;
esac
"$top/scripts/setup.sh" 'make test'
find_cargo || die 'there is no cargo that is new enough: run scripts/setup.sh'

"$top/scripts/check.sh"
"$top/scripts/guest.sh"
cd "$top"
say 'tests of the guest program'
(cd guest && cargo test --quiet --locked --target-dir target)
# The lab's tests start this binary.
say 'building (debug)'
cargo build --quiet --locked --workspace --bins
say 'tests'
# shellcheck disable=SC2086 # one argument a word
if cargo nextest --version >/dev/null 2>&1; then
	cargo nextest run --locked --no-fail-fast --workspace $skip
	cargo test --quiet --locked --workspace --doc $skip
else
	cargo test --locked --workspace $skip
fi
say 'all tests passed'
