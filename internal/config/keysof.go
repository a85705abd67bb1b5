package config

import (
	"reflect"
	"strings"
)

// fields are the keys that a struct knows.
type fields struct {
	names []string // in the order of the struct
	types map[string]reflect.Type
}

// fieldsOf reads t's json tags; embedded structs without a name count as t's
// own.
func fieldsOf(t reflect.Type) fields {
	f := fields{types: map[string]reflect.Type{}}
	for i := range t.NumField() {
		sf := t.Field(i)
		name, opts, _ := strings.Cut(sf.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case sf.Anonymous && (name == "" || strings.Contains(opts, "inline")):
			inner := fieldsOf(sf.Type)
			f.names = append(f.names, inner.names...)
			for k, v := range inner.types {
				f.types[k] = v
			}
		case sf.IsExported() && name != "":
			f.names = append(f.names, name)
			f.types[name] = sf.Type
		}
	}
	return f
}

// hint names the known key that key was probably meant to be, or lists the
// keys if they are few, or says nothing.
func hint(key string, known []string) string {
	best, dist := "", len(key)/3+2
	for _, k := range known {
		if strings.EqualFold(k, key) {
			return ": did you mean " + k + "?"
		}
		if d := editDistance(strings.ToLower(key), strings.ToLower(k)); d < dist {
			best, dist = k, d
		}
	}
	switch {
	case best != "":
		return ": did you mean " + best + "?"
	case len(known) > 0 && len(known) <= 8:
		return ": known here are " + strings.Join(known, ", ")
	default:
		return ""
	}
}

// maxHintLen bounds the work of editDistance: no key is longer.
const maxHintLen = 64

// editDistance is Levenshtein's, over bytes.
func editDistance(a, b string) int {
	a, b = a[:min(len(a), maxHintLen)], b[:min(len(b), maxHintLen)]
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur := make([]int, len(b)+1)
		cur[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j]+cost, prev[j+1]+1, cur[j]+1)
		}
		prev = cur
	}
	return prev[len(b)]
}
