#!/bin/bash
# Make a Vagrant box out of Debian packages: box.sh SUITE
#
# For machines that can't download a box. Prints the directory that holds box (for `vagrant box add`), vmlinuz, initrd
# (the box has no boot loader, the hypervisor boots it by these), and the key of the user vagrant. Nothing is done if a
# box of the same recipe and root is there: the directory's name holds their hash. Needs root, mmdebstrap, e2fsprogs,
# qemu-utils.
set -euo pipefail

suite=$1
here=$(dirname "$(readlink -f "$0")")
boxes=${XDG_CACHE_HOME:-$HOME/.cache}/jobworker-vms/boxes
root=$("$here/root.sh" "$suite")
box=$boxes/$(basename "$root")-$(cat "$here/box.sh" "$root/key.pub" | sha256sum | cut -c1-8)

if [ -e "$box" ]; then
    echo "$box"
    exit
fi

mkdir -p "$boxes"
work=$(mktemp -d "$boxes/.$suite-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/root" "$work/made"
tar -C "$work/root" -xf "$root/root.tar"

cp -L "$work"/root/boot/vmlinuz-* "$work/made/vmlinuz"
cp -L "$work"/root/boot/initrd.img-* "$work/made/initrd"
cp "$root/key" "$work/made/key"
# Neither a loop device nor a mount is needed for this. Standard output is for the box's directory alone.
mke2fs -q -t ext4 -d "$work/root" "$work/disk" 6G >&2
qemu-img convert -O qcow2 "$work/disk" "$work/box.img"
echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 6}' >"$work/metadata.json"
tar -C "$work" -cf "$work/made/box" metadata.json box.img

# Boxes of earlier recipes serve nobody any more.
rm -rf "$boxes/jobworker-$suite-"*
mv "$work/made" "$box"
echo "$box"
