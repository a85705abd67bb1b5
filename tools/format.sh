#!/bin/bash
# format.sh: gofmt for Go, clang-format-14 for the eBPF C. Generated Go is left
# as its generator wrote it.
set -euo pipefail
cd "$(dirname "$0")/.."

find . -name '*.go' -not -path './.*/*' -not -path '*/testdata/*' -print0 |
	xargs -0 -r grep -LZ '^// Code generated .* DO NOT EDIT\.$' |
	xargs -0 -r gofmt -s -w
find bpf -name '*.[ch]' -print0 | xargs -0 -r clang-format-14 -i --style=file
