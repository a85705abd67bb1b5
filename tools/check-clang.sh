#!/bin/bash
# check-clang.sh: the eBPF objects are committed and compared byte by byte, so
# exactly one compiler may make them. tools/clang-version names it.
set -euo pipefail
cd "$(dirname "$0")"

pinned=$(grep -v '^#' clang-version)
have=$(clang-14 --version | sed -n 's/.*clang version \([0-9.]*\).*/\1/p')
if [ "$have" != "$pinned" ]; then
	echo "generate: clang-14 is version ${have:-unknown}; the eBPF objects are made with $pinned (Debian 12, tools/clang-version)" >&2
	exit 1
fi
