package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"sigs.k8s.io/yaml"

	yamlnode "go.yaml.in/yaml/v3"

	"hearth/internal/env"
)

// maxFileBytes bounds every file that this package reads. It is etcd's bound on
// a Kubernetes object, with room.
const maxFileBytes = 2 << 20

// loadFile decodes the only document of path into out, a pointer to a struct.
func loadFile(path string, out any) error {
	data, err := readBounded(path)
	if err != nil {
		return err
	}
	docs := splitDocuments(data)
	switch len(docs) {
	case 0:
		return nil // nothing but comments: all defaults
	case 1:
		return wrapFaults(path, decode(docs[0], out))
	default:
		return wrapFaults(path, []fault{{line: docs[1].line, text: "a second document begins here: this file has one"}})
	}
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read configuration: %w: %s is not a regular file", env.ErrInvalid, path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("read configuration: %w: %s is larger than %d bytes", env.ErrInvalid, path, maxFileBytes)
	}
	return data, nil
}

// document is one YAML document and the number of its first line.
type document struct {
	line int
	text []byte
}

// splitDocuments cuts at the lines that begin with "---". YAML lets no other
// content begin a line so (YAML 1.2, 9.1.2). Documents without content are
// left out.
func splitDocuments(data []byte) []document {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // byte order mark
	var docs []document
	cur := document{line: 1}
	start, line := 0, 0
	flush := func(end int) {
		cur.text = data[start:end]
		if hasContent(cur.text) {
			docs = append(docs, cur)
		}
	}
	for off := 0; off < len(data); {
		line++
		end := off + lineLen(data[off:])
		if isSeparator(data[off:end]) {
			flush(off)
			start, cur = off, document{line: line}
		}
		off = end
	}
	flush(len(data))
	return docs
}

func lineLen(b []byte) int {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return i + 1
	}
	return len(b)
}

func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// hasContent reports whether a document is more than comments and a separator.
func hasContent(text []byte) bool {
	for l := range bytes.Lines(text) {
		if isSeparator(l) {
			l = l[3:]
		}
		if l = bytes.TrimSpace(l); len(l) > 0 && l[0] != '#' {
			return true
		}
	}
	return false
}

// decode checks d against out's type and, if nothing is wrong, decodes it.
func decode(d document, out any) []fault {
	root, faults := parse(d)
	if len(faults) > 0 {
		return faults
	}
	c := checker{offset: d.line - 1}
	c.document(root, out)
	if len(c.faults) > 0 {
		return c.faults
	}
	if err := yaml.UnmarshalStrict(d.text, out); err != nil {
		return []fault{{text: oneLine(err)}}
	}
	return nil
}

// parse returns the root node of d.
func parse(d document) (*yamlnode.Node, []fault) {
	dec := yamlnode.NewDecoder(bytes.NewReader(d.text))
	var doc, more yamlnode.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, []fault{syntaxFault(err, d.line-1)}
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, []fault{{line: d.line, text: `content follows the document's end marker "..."`}}
	}
	if doc.Kind != yamlnode.DocumentNode || len(doc.Content) != 1 {
		return nil, []fault{{line: d.line, text: "want a document"}}
	}
	return doc.Content[0], nil
}
