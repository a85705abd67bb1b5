package config

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// checker compares a YAML tree with a Go type and collects every difference
// with its line: the decoder alone stops at the first and knows no lines.
type checker struct {
	faultList
	offset int // lines of the file before the document
}

func (c *checker) faultf(n *yamlnode.Node, path, format string, args ...any) {
	c.faults = append(c.faults, fault{line: c.offset + n.Line, path: path, text: fmt.Sprintf(format, args...)})
}

// document checks a whole document against the struct that out points to.
func (c *checker) document(root *yamlnode.Node, out any) {
	if root.Kind != yamlnode.MappingNode {
		c.faultf(root, "", "want keys and values, have %s", describe(root))
		return
	}
	c.value(root, reflect.TypeOf(out).Elem(), "")
}

func (c *checker) value(n *yamlnode.Node, t reflect.Type, path string) {
	if n.Kind == yamlnode.AliasNode || n.Anchor != "" {
		c.faultf(n, path, "anchors and aliases are not supported: write the value out")
		return
	}
	if isNull(n) {
		if t == reflect.TypeFor[metav1.Time]() {
			return // "creationTimestamp: null", as kubectl writes it
		}
		c.faultf(n, path, "has no value: give one or remove the key")
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if decodesItself(t) {
		c.leaf(n, t, path)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.mapping(n, path, func(key string) (reflect.Type, []string) {
			f := fieldsOf(t)
			return f.types[key], f.names
		})
	case reflect.Map:
		c.mapping(n, path, func(string) (reflect.Type, []string) { return t.Elem(), nil })
	case reflect.Slice:
		c.sequence(n, t, path)
	default:
		c.leaf(n, t, path)
	}
}

// mapping checks n's keys; typeOf returns a key's type, or nil and the known
// keys.
func (c *checker) mapping(n *yamlnode.Node, path string, typeOf func(string) (reflect.Type, []string)) {
	if n.Kind != yamlnode.MappingNode {
		c.faultf(n, path, "want keys and values, have %s", describe(n))
		return
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yamlnode.ScalarNode || k.Tag == "!!merge" || k.Anchor != "" {
			c.faultf(k, path, "a key must be a plain word")
			continue
		}
		at := join(path, k.Value)
		if line, dup := seen[k.Value]; dup {
			c.faultf(k, at, "key is given twice, first in line %d", c.offset+line)
			continue
		}
		seen[k.Value] = k.Line
		t, known := typeOf(k.Value)
		if t == nil {
			c.faultf(k, at, "unknown key%s", hint(k.Value, known))
			continue
		}
		c.value(v, t, at)
	}
}

func (c *checker) sequence(n *yamlnode.Node, t reflect.Type, path string) {
	if n.Kind != yamlnode.SequenceNode {
		c.faultf(n, path, "want a list, have %s", describe(n))
		return
	}
	for i, e := range n.Content {
		c.value(e, t.Elem(), path+"["+strconv.Itoa(i)+"]")
	}
}

// leaf decodes one scalar by itself, so that its error has a line.
func (c *checker) leaf(n *yamlnode.Node, t reflect.Type, path string) {
	if n.Kind != yamlnode.ScalarNode {
		c.faultf(n, path, "want %s, have %s", wanted(t), describe(n))
		return
	}
	isText := n.Style&(yamlnode.DoubleQuotedStyle|yamlnode.SingleQuotedStyle|yamlnode.LiteralStyle|yamlnode.FoldedStyle) != 0
	if t.Kind() == reflect.String && !isText && !plainString(n) {
		c.faultf(n, path, "want text, have %s: write %q in quotes", describe(n), n.Value)
		return
	}
	data := scalarJSON(n, isText)
	if err := json.Unmarshal(data, reflect.New(t).Interface()); err != nil {
		if decodesItself(t) {
			c.faultf(n, path, "%s", strings.TrimPrefix(oneLine(err), "json: "))
			return
		}
		c.faultf(n, path, "want %s, have %s", wanted(t), describe(n))
	}
}

// scalarJSON is n as sigs.k8s.io/yaml would convert it.
func scalarJSON(n *yamlnode.Node, isText bool) []byte {
	if !isText {
		switch n.Tag {
		case "!!int", "!!float", "!!bool":
			if json.Valid([]byte(n.Value)) {
				return []byte(n.Value)
			}
		}
	}
	data, err := json.Marshal(n.Value)
	if err != nil {
		return []byte(`""`) // cannot happen: any string marshals
	}
	return data
}

// plainString reports whether an unquoted scalar is text to YAML 1.1 and 1.2
// alike: 1.1, which Kubernetes speaks, reads "yes", "off" and "12:30" otherwise.
func plainString(n *yamlnode.Node) bool {
	if n.Tag != "!!str" {
		return false
	}
	switch strings.ToLower(n.Value) {
	case "y", "n", "yes", "no", "on", "off":
		return false
	}
	return true
}

func isNull(n *yamlnode.Node) bool { return n.Kind == yamlnode.ScalarNode && n.Tag == "!!null" }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func describe(n *yamlnode.Node) string {
	switch n.Kind {
	case yamlnode.MappingNode:
		return "keys and values"
	case yamlnode.SequenceNode:
		return "a list"
	case yamlnode.AliasNode:
		return "an alias"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return fmt.Sprintf("the number %.40s", n.Value)
	case "!!bool":
		return "the switch " + n.Value
	default:
		return fmt.Sprintf("%.40q", n.Value)
	}
}

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number that is not negative"
	case reflect.String:
		return "text"
	default:
		return "a single value"
	}
}

func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}
