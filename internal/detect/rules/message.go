package rules

import "strings"

// Message is a JSON object found in a payload, as its scalars by path: keys
// and array indexes joined by dots ("params.0"). In the paths given to its
// methods "*" stands for any one key or index.
type Message struct {
	fields []field
	raw    []byte
	whole  bool
}

// Raw is the text of the object, unfinished or not.
func (m *Message) Raw() []byte { return m.raw }

// has reports whether a scalar is at path.
func (m *Message) has(path string) bool {
	for i := range m.fields {
		if matchPath(path, m.fields[i].path) {
			return true
		}
	}
	return false
}

// text is the first string at path, or "".
func (m *Message) text(path string) string {
	for i := range m.fields {
		if f := &m.fields[i]; f.kind == 's' && matchPath(path, f.path) {
			return f.text
		}
	}
	return ""
}

// any reports whether yes holds for some string at path. Keys may be repeated.
func (m *Message) any(path string, yes func(string) bool) bool {
	for i := range m.fields {
		if f := &m.fields[i]; f.kind == 's' && matchPath(path, f.path) && yes(f.text) {
			return true
		}
	}
	return false
}

// matchPath compares part by part; it allocates nothing.
func matchPath(pattern, path string) bool {
	for {
		want, moreWanted, another := strings.Cut(pattern, ".")
		got, more, goesOn := strings.Cut(path, ".")
		if want != "*" && want != got || another != goesOn {
			return false
		}
		if !another {
			return true
		}
		pattern, path = moreWanted, more
	}
}
