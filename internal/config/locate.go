package config

import (
	"strconv"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
)

// locate gives faults the lines of what their paths name in the tree below
// root. Of a path that the file does not have, its nearest parent's line is
// taken.
func locate(faults []fault, root *yamlnode.Node, offset int) {
	for i, f := range faults {
		if f.line == 0 && f.path != "" {
			faults[i].line = offset + lineOf(root, f.path)
		}
	}
}

func lineOf(root *yamlnode.Node, path string) int {
	n, line := root, root.Line
	for _, step := range steps(path) {
		next := child(n, step)
		if next == nil {
			break
		}
		n, line = next, next.Line
	}
	return line
}

// steps splits "a.b[0].c" into a, b, 0, c. No key that validation names holds
// one of the marks.
func steps(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
}

func child(n *yamlnode.Node, step string) *yamlnode.Node {
	switch n.Kind {
	case yamlnode.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	case yamlnode.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}
