#!/bin/bash
# debian-unpack.sh DIR PACKAGE…: unpacks Debian packages below DIR without
# installing them, so that no service of theirs starts. Does nothing if DIR has
# all of them already.
set -euo pipefail
dir=$1
shift
missing=()
for p in "$@"; do [ -e "$dir/.$p" ] || missing+=("$p"); done
[ ${#missing[@]} -gt 0 ] || exit 0
command -v dpkg-deb >/dev/null || { echo "deps: this is not Debian; put the programs of $* below $dir/usr/bin" >&2; exit 1; }
echo "deps: unpack ${missing[*]}" >&2
mkdir -p "$dir"
download=$(mktemp -d "$dir/download.XXXXXX")
trap 'rm -rf "$download"' EXIT
fetch() { (cd "$download" && apt-get download -qq "${missing[@]}") </dev/null >"$download/log" 2>&1; }
# The lists may be absent or name versions that the mirror no longer has.
if ! fetch; then
	apt-get update -qq </dev/null
	fetch || { cat "$download/log" >&2; exit 1; }
fi
for f in "$download"/*.deb; do dpkg-deb -x "$f" "$dir"; done
for p in "${missing[@]}"; do touch "$dir/.$p"; done
