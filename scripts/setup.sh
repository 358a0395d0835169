#!/bin/sh
# Installs what building, testing and the lab need on Debian 12, and says what it does. Where everything
# is present it does nothing and needs no network.
#
# usage: scripts/setup.sh [WHAT]     WHAT is named when the machine or the user is not the right one
set -eu
. "$(dirname "$0")/lib.sh"
need_machine "${1:-the set-up}"

# Installs packages; the arguments are those of apt-get install.
install_packages() {
	apt_update
	say "installing $*"
	apt-get -qq install -y --no-install-recommends "$@" </dev/null >/dev/null || die "apt-get install $* failed: see above"
}

has() { command -v "$1" >/dev/null; }

# --- what comes from Debian main ----------------------------------------------------------------------
missing=
want() { missing="$missing $1"; }
has cc || want gcc
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || want libc6-dev
if ! has busybox || is_dynamic "$(command -v busybox)"; then
	# A dynamic one cannot be put into a guest.
	want busybox-static
fi
if ! has mkfs.ext4 || ! has debugfs; then want e2fsprogs; fi
has ip || want iproute2
has ping || want iputils-ping
# Tests look at our NBD server with these.
has nbdinfo || want libnbd-bin
has socat || want socat
has xz || want xz-utils
[ -e /etc/ssl/certs/ca-certificates.crt ] || want ca-certificates
# shellcheck disable=SC2086 # one argument a package
[ -z "$missing" ] || install_packages $missing

# --- Rust ---------------------------------------------------------------------------------------------
if ! find_cargo; then
	# Debian keeps these as new as its browsers need them; plain rustc is far older and rustup is not packaged.
	install_packages rustc-web cargo-web rustfmt-web rust-web-clippy
	hash -r
	version=$(cargo_version)
	[ -n "$version" ] && at_least "$version" "$(rust_pin)" ||
		die "cargo-web brought cargo ${version:-(none)}, and $(rust_pin) or newer is needed: is bookworm-security among apt's sources?"
fi
for tool in fmt clippy; do
	(cd "$top" && cargo "$tool" --version >/dev/null 2>&1) ||
		die "cargo has no '$tool' command; with rustup: rustup component add rustfmt clippy"
done

# --- QEMU ---------------------------------------------------------------------------------------------
# Is there a suite of this name among apt's sources?
has_suite() { apt-get indextargets --format '$(CODENAME) $(RELEASE)' 2>/dev/null | tr ' ' '\n' | grep -qx "$1"; }

add_backports() {
	has_suite bookworm-backports && return 0
	uri=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 2>/dev/null |
		sed -n 's/^bookworm \(https\{0,1\}:.*\)$/\1/p' | head -n 1)
	[ -n "$uri" ] || return 1
	source=/etc/apt/sources.list.d/cardume-backports.sources
	say "adding bookworm-backports from $uri in $source"
	cat >"$source" <<EOF
# Added by Cardume's scripts/setup.sh for a newer QEMU.
Types: deb
URIs: $uri
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
	if apt-get -qq update </dev/null; then
		CARDUME_APT_UPDATED=1
		return 0
	fi
	say "there are no backports at $uri: taking the source out again"
	rm -f "$source"
	return 1
}

if ! has qemu-system-x86_64; then
	if add_backports; then
		install_packages -t bookworm-backports qemu-system-x86 qemu-utils
	else
		say 'no bookworm-backports to be had: QEMU comes from main, 7.2 instead of 10.0'
		install_packages qemu-system-x86 qemu-utils
	fi
	has qemu-system-x86_64 || die 'the packages brought no qemu-system-x86_64'
fi
# The tests compare our exports with QEMU's own tools; they come from where QEMU comes from.
if ! has qemu-io || ! has qemu-nbd; then
	if has_suite bookworm-backports; then
		install_packages -t bookworm-backports qemu-utils
	else
		install_packages qemu-utils
	fi
fi
