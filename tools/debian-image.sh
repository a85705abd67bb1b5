#!/bin/bash
# debian-image.sh MKIMAGE OUT: makes the image hearth.local/debian:12 as an OCI
# archive: Debian's pinned suite by debootstrap, with what the tests of real use
# start. OUT.packages lists what is in it, with versions.
#
# The suite is the stable release without its updates, which changes with a point
# release only. The same packages give the same bytes: what a run leaves behind
# (logs, caches, times, ids) is removed.
set -euo pipefail

suite=bookworm
mirror=http://deb.debian.org/debian
released=1686355200 # 2023-06-10, the suite's first release: the time of every file
packages=(
	ca-certificates gcc git iputils-ping libc6-dev make netbase postgresql procps
	redis-server sudo
)

# What installation scripts start ends with their process namespace, and what is
# mounted with the mount namespace. The network is the machine's, for the mirror.
if [ "${1:-}" != --inside ]; then
	[ "$(id -u)" = 0 ] || { echo "image-debian: debootstrap needs root" >&2; exit 1; }
	mkdir -p "$(dirname "$2")"
	work=$(mktemp -d "$(dirname "$2")/debian.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	chmod 755 "$work"
	unshare --mount --pid --fork --kill-child --mount-proc -- "$0" --inside "$work"
	tar -C "$work/root" --create --file "$work/layer.tar" \
		--exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./run/*' --exclude='./tmp/*' \
		--sort=name --numeric-owner --mtime=@$released --format=posix \
		--pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' .
	"$1" -layer "$work/layer.tar" -arch "$(dpkg --print-architecture)" -ref hearth.local/debian:12 -o "$2.tmp"
	mv "$work/packages" "$2.packages"
	mv "$2.tmp" "$2"
	exit
fi

work=$2
root=$work/root
log=$work/log
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH=$released

# quietly COMMAND…: its output is shown if it fails.
quietly() {
	"$@" </dev/null >"$log" 2>&1 || { tail -n 60 "$log" >&2; echo "image-debian: $* failed" >&2; exit 1; }
}

echo "image-debian: debootstrap $suite" >&2
quietly debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg "$suite" "$root" "$mirror"

echo "deb $mirror $suite main" >"$root/etc/apt/sources.list"
# Manuals and translations are half of the files.
cat >"$root/etc/dpkg/dpkg.cfg.d/small" <<'END'
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/doc/*/copyright
END
# A program with file capabilities that its environment cannot have is not
# executed at all (capabilities(7)). Environments have no CAP_NET_RAW, and ping
# does not need it.
cat >"$root/etc/apt/apt.conf.d/ping" <<'END'
DPkg::Post-Invoke { "if command -v setcap >/dev/null && [ -e /usr/bin/ping ]; then setcap -r /usr/bin/ping 2>/dev/null || true; fi"; };
END

# Each environment makes its own database cluster: one of the image would have
# the same system identifier, and the same key, everywhere.
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"

# No service starts while the image is made.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
echo "image-debian: install ${packages[*]}" >&2
quietly chroot "$root" apt-get update
quietly chroot "$root" apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold "${packages[@]}"
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' | sort >"$work/packages"
quietly chroot "$root" apt-get clean
umount "$root/proc"

# What is of this machine or of this run.
cd "$root"
rm -f etc/machine-id var/lib/dbus/machine-id etc/hostname
rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/ldconfig/* var/cache/debconf/*-old var/lib/dpkg/*-old
sed -i '/^ NEW = \/tmp\//d' var/cache/debconf/config.dat # names of temporary files
# The directories stay: update-alternatives makes links in them.
find usr/share/{man,locale,info,doc} ! -type d ! -name copyright -delete
find var/log -type f -delete
mkdir -p workspace
# Services start when they are installed, as on a machine; without an init system
# of Debian's and without this they do not (invoke-rc.d(8)).
printf '#!/bin/sh\nexit 0\n' >usr/sbin/policy-rc.d
: >etc/machine-id
echo '127.0.0.1 localhost' >etc/hosts
# The gateway of every island, where the agent answers.
echo 'nameserver 100.96.0.1' >etc/resolv.conf
# A private key that every environment of the image would share.
rm -f etc/ssl/private/ssl-cert-snakeoil.key etc/ssl/certs/ssl-cert-snakeoil.pem
