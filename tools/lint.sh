#!/bin/bash
# lint.sh [--build]: golangci-lint, built once from its pinned module, over every
# module of ours. With --build it is only built.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/modules.sh

version=$(awk '$1 == "github.com/golangci/golangci-lint/v2" { print $2; exit }' tools/lint/go.mod)
linter=$PWD/.bin/golangci-lint-$version
if [ ! -x "$linter" ]; then
	echo "lint: build golangci-lint $version"
	mkdir -p .bin
	rm -f .bin/golangci-lint-*
	(cd tools/lint && go build -trimpath -ldflags '-s -w' -o "$linter" github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
fi

[ "${1:-}" != --build ] || exit 0

# As everything else is built, so that the linter finds it compiled.
export CGO_ENABLED=0 GOFLAGS="$(go env GOFLAGS) -trimpath"
config=$PWD/.golangci.yml
status=0
for module in "${MODULES[@]}"; do
	(cd "$module" && "$linter" run --config "$config" ./...) || { echo "lint: $module has findings" >&2; status=1; }
done
exit $status
