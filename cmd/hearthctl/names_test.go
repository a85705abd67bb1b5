package main

import (
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzNames: every name has a spelling that is UTF-8 and leads back to it.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"plain", "caf\xe9", `back\x41slash`, `\`, `\x`, "\xff\xfe/\\xzz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		e := encodeName(name)
		if !utf8.ValidString(e) || decodeName(e) != name {
			t.Errorf("%q is spelled %q, which is %q", name, e, decodeName(e))
		}
	})
}

func TestPlacesAreToldFromLocalPaths(t *testing.T) {
	const id = "e-01ktz0000000000000000000zz"
	for in, want := range map[string]place{
		id + ":/a/b": {id: id, path: "/a/b"}, "a:b": {path: "a:b"}, "./e-x:y": {path: "./e-x:y"}, "-": {path: "-"},
	} {
		if got, err := parsePlace(in); err != nil || got != want {
			t.Errorf("parsePlace(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, bad := range []string{id + ":", id + ":rel", "e-short:/x"} {
		if _, err := parsePlace(bad); err == nil {
			t.Errorf("parsePlace(%q) succeeded", bad)
		}
	}
}

func TestTablesShowNoControlCharacters(t *testing.T) {
	if got := printable("a\x1b[2J\tb\u0085é"); got != "a?[2J?b?é" {
		t.Errorf("printable = %q", got)
	}
}

func TestAgesAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 90 * time.Second: "90s", 150 * time.Second: "2m30s", time.Hour: "60m", 5 * time.Hour: "5h", 72 * time.Hour: "3d",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("shortDuration(%s) = %q, want %q", d, got, want)
		}
	}
}
