# Words that the scripts share; sourced, never run. The scripts are run from anywhere: $top is the clone.

top=$(cd "$(dirname "$0")/.." && pwd)

# Where what we make or fetch for the lab's guests lies. The lab's nodes see it too.
cache=/var/cache/cardume

# A login shell of root may not have been set up for the tools of root.
PATH=$PATH:/usr/sbin:/sbin
# A package manager's questions have nobody to answer them here.
DEBIAN_FRONTEND=noninteractive
export PATH DEBIAN_FRONTEND

say() { echo "cardume: $*"; }

die() {
	echo "cardume: $*" >&2
	exit 1
}

# Says in one line what $1 needs where it cannot have it.
need_machine() {
	system=$(. /etc/os-release 2>/dev/null && echo "$ID $VERSION_ID")
	case "$(uname -sm) $system" in
	'Linux x86_64 debian 12') ;;
	*) die "$1 needs Debian 12 on x86_64; this is ${system:-an unknown system} on $(uname -sm)" ;;
	esac
	[ "$(id -u)" = 0 ] || die "$1 needs root: it installs packages and makes network namespaces; run it as root or with sudo"
}

# Once in a run is enough, however many steps find their lists too old.
apt_update() {
	[ -z "${CARDUME_APT_UPDATED:-}" ] || return 0
	CARDUME_APT_UPDATED=1
	export CARDUME_APT_UPDATED
	say 'refreshing the package lists'
	apt-get -qq update </dev/null || die 'apt-get update failed: see above'
}

# The version that the project is built with.
rust_pin() { sed -n 's/^channel *= *"\(.*\)"$/\1/p' "$top/rust-toolchain.toml"; }

# Is version $1 at least version $2?
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# The version that `cargo --version` tells; nothing where there is no cargo that runs.
cargo_version() { cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p'; }

# Puts a cargo on the PATH that is at least as new as the pin; fails where there is none.
find_cargo() {
	if ! command -v cargo >/dev/null && [ -x "${HOME:-/root}/.cargo/bin/cargo" ]; then
		PATH=${HOME:-/root}/.cargo/bin:$PATH
	fi
	version=$(cd "$top" && RUSTUP_AUTO_INSTALL=0 cargo_version)
	if [ -n "$version" ] && at_least "$version" "$(rust_pin)"; then
		return 0
	fi
	# rustup without the pinned toolchain: its default one will do when it is new enough.
	if command -v rustup >/dev/null; then
		version=$(cd / && cargo_version)
		if [ -n "$version" ] && at_least "$version" "$(rust_pin)"; then
			RUSTUP_TOOLCHAIN=$(cd / && rustup show active-toolchain | cut -d' ' -f1)
			export RUSTUP_TOOLCHAIN
			return 0
		fi
	fi
	return 1
}

# Does the program $1 need libraries? (ldd succeeds for a static-pie program, so its words are what counts.)
is_dynamic() { ldd "$1" 2>/dev/null | grep -q '=>'; }
