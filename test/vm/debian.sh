#!/bin/bash
# debian.sh DIR: makes a root file system of Debian's pinned suite below DIR, with
# systemd as init and what a node has, by debootstrap. DIR is kept, and made anew
# only if this file has changed.
set -euo pipefail

suite=bookworm
mirror=http://deb.debian.org/debian
packages=(
	bpftool busybox-static ca-certificates crun dbus e2fsprogs iproute2 kmod libseccomp2
	nftables procps systemd systemd-sysv
)

# What installation scripts start ends with their process namespace.
if [ "${1:-}" != --inside ]; then
	[ "$(id -u)" = 0 ] || { echo "test-vm-node: debootstrap needs root" >&2; exit 1; }
	made=$(sha256sum <"$0")
	[ "$(cat "$1/.made" 2>/dev/null)" = "$made" ] && exit 0
	rm -rf "$1"
	mkdir -p "$1"
	unshare --mount --pid --fork --kill-child --mount-proc -- "$0" --inside "$1"
	echo "$made" >"$1/.made"
	exit
fi

root=$2/root
log=$2/log
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
echo "test-vm-node: debootstrap $suite with systemd" >&2
list=$(IFS=,; echo "${packages[*]}")
debootstrap --variant=minbase --include="$list" --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
	"$suite" "$root" "$mirror" </dev/null >"$log" 2>&1 || { tail -n 60 "$log" >&2; echo "test-vm-node: debootstrap failed" >&2; exit 1; }

# Manuals and lists are half of the files. Services that a test machine has no use
# for would only take its time, which is short.
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,info,locale}/*
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer getty@tty1.service serial-getty@ttyS0.service systemd-journal-flush.service systemd-logind.service \
	systemd-networkd.service systemd-pstore.service systemd-resolved.service systemd-timesyncd.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
echo vm >"$root/etc/hostname"
printf '127.0.0.1 localhost vm\n' >"$root/etc/hosts"
: >"$root/etc/fstab"
: >"$root/etc/resolv.conf"
