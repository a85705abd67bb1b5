package main

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func tree(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{
		"Makefile":             {Data: []byte("demo: deps build ## run it\n\ntest-unit: ## test\ndeps build:\n")},
		"go.mod":               {Data: []byte("module hearth\n\nrequire (\n\texample.org/a v1.0.0\n\texample.org/b v1.0.0 // indirect\n)\n")},
		"docs/dependencies.md": {Data: []byte("| `example.org/a` | why | MIT | alive |\n")},
	}
	for name, data := range files {
		root[name] = &fstest.MapFile{Data: []byte(data)}
	}
	return root
}

func TestDocumentsThatAreRightPass(t *testing.T) {
	root := tree(map[string]string{
		"README.md": "# Hearth\n[here](docs/dependencies.md) [up](#hearth) [out](https://example.org) `make demo KEEP=1`\n```\nmake test-unit\n```\n",
	})
	faults, err := check(root)
	if err != nil || len(faults) > 0 {
		t.Error(faults, err)
	}
}

func TestFaultsAreNamed(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		want  string
	}{
		"link to a file that is not there": {
			map[string]string{"README.md": "[x](docs/none.md)"}, "README.md: link to docs/none.md, which does not exist",
		},
		"link relative to the document": {
			map[string]string{"docs/a.md": "[x](docs/dependencies.md)"}, "docs/a.md: link to docs/dependencies.md, which does not exist",
		},
		"link to a heading that is not there": {
			map[string]string{"README.md": "# One\n[x](#two)"}, "README.md: link to #two: README.md has no such heading",
		},
		"target in text": {
			map[string]string{"README.md": "run `make everything`"}, "README.md: `make everything` is no target of the Makefile",
		},
		"target in a code block": {
			map[string]string{"README.md": "```\nsudo make tset\n```\n"}, "README.md: `make tset` is no target of the Makefile",
		},
		"long architecture": {
			map[string]string{"ARCHITECTURE.md": strings.Repeat("line\n", 301)}, "ARCHITECTURE.md: 301 lines, at most 300",
		},
		"dependency not explained": {
			map[string]string{"docs/dependencies.md": "nothing"}, "docs/dependencies.md: example.org/a of go.mod is not explained",
		},
		"dependency gone": {
			map[string]string{"docs/dependencies.md": "| `example.org/a` | w | l | u |\n| `example.org/b` | w | l | u |\n"},
			"docs/dependencies.md: example.org/b is not required directly by go.mod",
		},
		"dependency without a reason": {
			map[string]string{"docs/dependencies.md": "| `example.org/a` | | MIT | alive |\n"}, "docs/dependencies.md: example.org/a has an empty cell",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			faults, err := check(tree(tt.files))
			if err != nil || !slices.Equal(faults, []string{tt.want}) {
				t.Errorf("got %q, %v; want %q", faults, err, tt.want)
			}
		})
	}
}
