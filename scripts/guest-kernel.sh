#!/bin/sh
# Puts the lab guests' kernel and initramfs into the cache: vmlinuz and initrd.img.
#
# The kernel is Debian's cloud kernel. It is unpacked, never installed: the machine's own /boot stays
# as it is. ext4 is built in; the virtio drivers are modules without a modules.dep, so our
# initramfs loads them by name, in order.
set -eu
. "$(dirname "$0")/lib.sh"

# Order matters: a module comes after those that it needs.
modules='virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
	failover net_failover virtio_net button evdev'

kernel_dir=$cache/guest

# The stamp names what the initramfs was made from, so that a change of either makes it anew.
recipe=$(cat "$top/scripts/guest-kernel.sh" "$top/scripts/initramfs-init" "$(command -v busybox)" | sha256sum | cut -d' ' -f1)
if [ -s "$kernel_dir/vmlinuz" ] && [ -s "$kernel_dir/initrd.img" ] &&
	[ "$(cat "$kernel_dir/recipe" 2>/dev/null)" = "$recipe" ]; then
	exit 0
fi

mkdir -p "$kernel_dir"
work=$(mktemp -d "$kernel_dir/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# --- the kernel package, unpacked ---------------------------------------------------------------------
unpacked=$kernel_dir/unpacked
if [ ! -d "$unpacked" ]; then
	meta=linux-image-cloud-amd64
	version=$(LC_ALL=C apt-cache policy "$meta" | awk '$1 == "Candidate:" { print $2 }')
	case $version in
	'' | '(none)')
		apt_update
		version=$(LC_ALL=C apt-cache policy "$meta" | awk '$1 == "Candidate:" { print $2 }')
		;;
	esac
	case $version in
	'' | '(none)') die "apt knows no package $meta: the guests' kernel comes from Debian main" ;;
	esac
	package=$(apt-cache show "$meta=$version" |
		sed -n 's/^Depends:.*\(linux-image-[0-9][^ ,]*\) (= \([^)]*\)).*/\1=\2/p' | head -n 1)
	[ -n "$package" ] || die "cannot see which kernel $meta $version stands for"
	say "downloading the guests' kernel, $package"
	# apt downloads as the user _apt, who must be able to write here.
	mkdir "$work/deb" && chmod 755 "$work" && chmod 777 "$work/deb"
	if ! (cd "$work/deb" && apt-get -qq download "$package"); then
		# The lists may be older than the archive.
		apt_update
		(cd "$work/deb" && apt-get -qq download "$package") || die "cannot download $package"
	fi
	dpkg -x "$work"/deb/*.deb "$work/unpacked"
	mv "$work/unpacked" "$unpacked"
fi
set -- "$unpacked"/boot/vmlinuz-*
[ -f "$1" ] || die "$unpacked holds no kernel; remove it and run this again"
vmlinuz=$1

# --- the initramfs ------------------------------------------------------------------------------------
say "building the guests' initramfs"
root=$work/root
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/root" "$root/modules"
cp "$(command -v busybox)" "$root/bin/busybox"
install -m 755 "$top/scripts/initramfs-init" "$root/init"
for module in $modules; do
	file=$(find "$unpacked/lib/modules" -name "$module.ko*" | head -n 1)
	case $file in
	*.ko) cp "$file" "$root/modules/" ;;
	*.ko.xz) xz -dc "$file" >"$root/modules/$module.ko" ;;
	'') die "the kernel in $unpacked has no module $module" ;;
	*) die "cannot unpack $file" ;;
	esac
	echo "$module" >>"$root/modules/order"
done
(cd "$root" && find . | LC_ALL=C sort | busybox cpio -o -H newc 2>/dev/null) | gzip -9n >"$work/initrd.img"
[ -s "$work/initrd.img" ] || die "the initramfs came out empty"

cp "$vmlinuz" "$work/vmlinuz"
chmod 644 "$work/vmlinuz" "$work/initrd.img"
rm -f "$kernel_dir/recipe"
mv "$work/vmlinuz" "$work/initrd.img" "$kernel_dir/"
echo "$recipe" >"$kernel_dir/recipe"
say "guest kernel: $kernel_dir/vmlinuz ($(basename "$vmlinuz" | sed 's/^vmlinuz-//')), $kernel_dir/initrd.img"
