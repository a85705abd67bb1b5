#!/bin/bash
# tidy.sh: `go mod tidy` in every module that has code of ours.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/modules.sh

for module in "${MODULES[@]}"; do
	(cd "$module" && go mod tidy) || { echo "tidy: $module failed" >&2; exit 1; }
done
