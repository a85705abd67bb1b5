#!/bin/bash
# verify.sh: does what `make generate format tidy` do, in a copy of the tree, and
# compares; then lints and checks the documents. The tree itself is not touched,
# so a failure leaves nothing to undo. Every step runs, so that one run names
# every fault.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d "${TMPDIR:-/tmp}/hearth-verify.XXXXXX")
trap 'rm -rf "$copy"' EXIT
# What git would see: no build outputs, no caches.
git ls-files -z --cached --others --exclude-standard --deduplicate |
	while IFS= read -r -d '' file; do [ -e "$file" ] && printf '%s\0' "$file"; done |
	tar --null -T - -cf - | tar -C "$copy" -xf -
mkdir "$copy/.before"
tar -C "$copy" --exclude=./.before -cf - . | tar -C "$copy/.before" -xf -

faults=()

# step NAME COMMAND…: a phase with its seconds; a failure is remembered.
step() {
	local name=$1 begin=$SECONDS
	shift
	echo "verify: $name"
	if "$@"; then
		echo "verify: $name ok ($((SECONDS - begin)) s)"
	else
		faults+=("$name")
		echo "verify: $name FAILED" >&2
	fi
}

# unchanged TARGET: runs a make target in the copy; a difference is a fault that
# names the target. The next step starts from the result, so that one stale file
# is reported once.
unchanged() {
	local target=$1
	make -C "$copy" "$target" || return 1
	if ! diff -ruN --exclude=.before "$copy/.before" "$copy" >"$copy.diff"; then
		head -n 200 "$copy.diff" >&2
		diff -rq --exclude=.before "$copy/.before" "$copy" | sed -e "s|$copy/.before/||g; s|$copy/||g; s|^|verify: |" >&2 || true
		rm -f "$copy.diff"
		echo "verify: files are not as \`make $target\` writes them; run it and commit the result" >&2
		rm -rf "$copy/.before"
		mkdir "$copy/.before"
		tar -C "$copy" --exclude=./.before -cf - . | tar -C "$copy/.before" -xf -
		return 1
	fi
	rm -f "$copy.diff"
}

step generate unchanged generate
step format unchanged format
step tidy unchanged tidy
step lint make lint
step docs make docs

if [ ${#faults[@]} -gt 0 ]; then
	echo "verify: FAILED: ${faults[*]}" >&2
	exit 1
fi
echo "verify: ok"
