#!/bin/bash
# debian-install.sh PACKAGE…: installs the Debian packages that are missing.
# Asks dpkg first, so that a machine which has them all needs neither root nor
# a network.
set -euo pipefail

missing() {
	local package
	for package in "$@"; do
		dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || echo "$package"
	done
}

if ! command -v dpkg-query >/dev/null; then
	echo "deps: this is not Debian; install what corresponds to: $*" >&2
	exit 1
fi

mapfile -t want < <(missing "$@")
[ ${#want[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "deps: missing Debian packages; as root run: apt-get install ${want[*]}" >&2
	exit 1
fi

echo "deps: install ${want[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install() {
	apt-get install -y -qq --no-install-recommends "${want[@]}" </dev/null >"$log" 2>&1
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The lists may be absent or name versions that the mirror no longer has.
if ! install; then
	apt-get update -qq </dev/null
	install || { cat "$log" >&2; exit 1; }
fi
