#!/bin/sh
# Makes what the lab's guests are made of, in /var/cache/cardume: guest/{vmlinuz,initrd.img} and the OS
# definition os/busybox with our static program in it. Does only what is not done yet.
set -eu
. "$(dirname "$0")/lib.sh"
need_machine 'make guest'
find_cargo || die 'there is no cargo that is new enough: run scripts/setup.sh'

"$top/scripts/guest-kernel.sh"

# Said here and not left to guest/.cargo, which RUSTFLAGS in the environment would override.
target=x86_64-unknown-linux-gnu
(cd "$top/guest" &&
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --release --target $target --target-dir target)
program=$top/guest/target/$target/release/cardume-guest
if is_dynamic "$program"; then
	die "$program is not static, and the guest has no libraries"
fi

# Put into its place as a whole: a definition in use is never half of this version and half of that.
mkdir -p "$cache/os"
work=$(mktemp -d "$cache/os/.busybox.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cp -R "$top/os/busybox/." "$work/"
install -m 755 "$program" "$work/cardume-guest"
chmod 755 "$work"
if [ -d "$cache/os/busybox" ] && diff -r "$work" "$cache/os/busybox" >/dev/null 2>&1; then
	exit 0
fi
rm -rf "$cache/os/.busybox.old"
[ ! -d "$cache/os/busybox" ] || mv "$cache/os/busybox" "$cache/os/.busybox.old"
mv "$work" "$cache/os/busybox"
rm -rf "$cache/os/.busybox.old"
say "OS definition: $cache/os/busybox"
