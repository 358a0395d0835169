# Words that the scripts share; sourced, never run.

# Where what we made or fetched for the lab's guests lies. The lab's nodes see it too.
cache=/var/cache/cardume

say() { echo "cardume: $*"; }

die() {
	echo "cardume: $*" >&2
	exit 1
}

# A package manager's questions have nobody to answer them here.
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND

# Once in a run is enough, however many steps find their lists too old.
apt_update() {
	[ -z "${CARDUME_APT_UPDATED:-}" ] || return 0
	CARDUME_APT_UPDATED=1
	export CARDUME_APT_UPDATED
	say 'refreshing the package lists'
	apt-get -qq update || die 'apt-get update failed: see above'
}
