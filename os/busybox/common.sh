# What the scripts of this OS definition share; sourced, never run.

PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

die() {
	echo "busybox: $*" >&2
	exit 1
}

# The variable named $1 must be set and not empty.
need() {
	eval "[ -n \"\${$1:-}\" ]" || die "the environment has no $1"
}

# The value of the variable NIC_$1_$2, or nothing.
nic() {
	eval "echo \"\${NIC_$1_$2:-}\""
}

# Writes hostname and hosts of the instance $2 into the directory $1.
write_names() {
	case $2 in
	*[!A-Za-z0-9.-]*) die "'$2' is not a host name" ;;
	esac
	echo "$2" >"$1/hostname"
	{
		echo '127.0.0.1 localhost'
		echo "127.0.1.1 $2 ${2%%.*}"
	} >"$1/hosts"
}

# The netmask of a network with a prefix of $1 bits; of the usual /24 when none is given.
netmask() {
	bits=${1:-24}
	mask=
	for _ in 1 2 3 4; do
		take=$((bits > 8 ? 8 : bits))
		mask=$mask${mask:+.}$((256 - (1 << (8 - take))))
		bits=$((bits - take))
	done
	echo "$mask"
}

# Prints the instance's /etc/network/interfaces. NIC n of the instance is the guest's eth<n>.
write_interfaces() {
	echo 'auto lo'
	echo 'iface lo inet loopback'
	n=0
	while [ "$n" -lt "${NIC_COUNT:-0}" ]; do
		ip=$(nic "$n" IP)
		subnet=$(nic "$n" NETWORK_SUBNET)
		gateway=$(nic "$n" NETWORK_GATEWAY)
		echo
		echo "auto eth$n"
		case $ip in
		'')
			# No address was given to it: bring the link up, so that one can be set from inside.
			echo "iface eth$n inet manual"
			echo "	up ip link set eth$n up"
			;;
		*[!0-9.]*) die "NIC $n: '$ip' is not an IPv4 address" ;;
		*)
			echo "iface eth$n inet static"
			echo "	address $ip"
			echo "	netmask $(netmask "${subnet##*/}")"
			[ -z "$gateway" ] || echo "	gateway $gateway"
			;;
		esac
		n=$((n + 1))
	done
}
