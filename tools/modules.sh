# Sourced: MODULES is every Go module of this repository that has code of ours.
# tools/lint and tools/runtime/* only pin programs of others; tidying them would
# fetch what those programs' own tests need.
MODULES=()
while IFS= read -r file; do
	case $file in
	./tools/lint/* | ./tools/runtime/*) ;;
	*) MODULES+=("$(dirname "$file")") ;;
	esac
done < <(find . -name go.mod -not -path './.*/*' -not -path '*/testdata/*' | sort)
