package rules

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"hearth/internal/detect/flow"
)

func TestMessagesAreFoundWhereAProtocolHasThem(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"at the beginning":          {`{"a":1}`, 1},
		"after a byte order mark":   {"\xef\xbb\xbf" + `{"a":1}`, 1},
		"several on a line":         {`{"a":1}{"a":2} {"a":3}`, 3},
		"a line each":               {"{\"a\":1}\n{\"a\":2}\n", 2},
		"after a line of text":      {"hello\n{\"a\":1}", 1},
		"not within a line":         {`hello {"a":1}`, 0},
		"not within a string":       {`{"a":"{\"b\":1}"}`, 1},
		"not in a page":             {"HTTP/1.1 200 OK\r\n\r\n<p>\n{\"a\":1}", 0},
		"a body":                    {"POST / HTTP/1.1\r\nA: b\r\n\r\n{\"a\":1}", 1},
		"a body whose head goes on": {"POST / HTTP/1.1\r\nA: b\r\n{\"a\":1}", 0},
		"two requests":              {"POST / HTTP/1.1\r\n\r\n{\"a\":1}GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n\r\n[{\"a\":1},{\"b\":2}]", 3},
		"unfinished":                {`{"a":"b","c":"d`, 1},
		"unfinished number":         {`{"a":12`, 0},
		"nothing understood":        {`{"a":`, 0},
		"empty":                     {``, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := scanMessages([]byte(c.text)); len(got) != c.want {
				t.Errorf("%d messages, want %d", len(got), c.want)
			}
		})
	}
}

func TestPathsTakeWildcards(t *testing.T) {
	m := scanMessages([]byte(`{"r":[[["x","1"],["y","2"]],"z"],"p":{"q":{"s":"t"}}}`))[0]
	for path, want := range map[string]bool{
		"r.0.0.0": true, "r.0.*.0": true, "r.*.*.*": true, "r.1": true, "p.*.s": true,
		"r.0": false, "r.0.*": false, "p": false, "*": false, "p.q.s.t": false, "": false,
	} {
		if got := m.has(path); got != want {
			t.Errorf("has(%q) = %v", path, got)
		}
	}
	if got := m.text("r.*.*.0"); got != "x" {
		t.Errorf("text = %q", got)
	}
}

// flatten is what the scanner does, by encoding/json.
func flatten(path string, v any, out map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			flatten(join(path, k), e, out)
		}
	case []any:
		for i, e := range v {
			flatten(join(path, fmt.Sprint(i)), e, out)
		}
	case string:
		out[path] = "s" + v
	case nil:
		out[path] = "lnull"
	case bool:
		out[path] = "l" + fmt.Sprint(v)
	case json.Number:
		out[path] = "n" + v.String()
	}
}

// Where encoding/json reads an object, the scanner must find the same in it.
// The reverse is not wanted: the scanner is lenient.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"method":"mining.subscribe","params":[]}`, `{"a":{"b":[1,-2.5e3,true,null,"\u00e9\ud83d\ude00"]}}`,
		"{\n\t\"a\" : [ ] , \"b\" : { } }", `[{"a":1},2]`, `{"a":"b`, "POST / HTTP/1.1\r\n\r\n{\"a\":1}",
		"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n\x81\x85\x01\x02\x03\x04zzzzz", `{"":"","":{}}`, strings.Repeat("[", 3000), strings.Repeat(`{"":`, 600),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		found := scanMessages(text)
		size := 0
		for _, m := range found {
			size += len(m.raw)
			m.has("a.*")
		}
		if size > flow.Cap {
			t.Fatalf("messages of %d bytes in a capture of %d", size, flow.Cap)
		}
		var want map[string]any
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.UseNumber()
		if len(text) > flow.Cap || !utf8.Valid(text) || !json.Valid(text) || d.Decode(&want) != nil || want == nil {
			return
		}
		flat := map[string]string{}
		flatten("", want, flat)
		compareFields(t, found, flat)
	})
}

func compareFields(t *testing.T, found []*Message, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for _, m := range found {
		for _, f := range m.fields {
			got[f.path] = string(f.kind) + f.text
		}
	}
	for path, value := range maps.All(want) {
		if len(path) > maxPath || strings.Contains(path, "\uFFFD") || strings.Contains(value, "\uFFFD") {
			continue // too long, or half a surrogate pair, which has no right reading
		}
		if _, ok := got[path]; !ok {
			t.Errorf("nothing at %q, want %q", path, value)
		}
	}
}
