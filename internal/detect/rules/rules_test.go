package rules

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

func builtinSet(t testing.TB) *Set {
	t.Helper()
	set, err := Load(Builtin())
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestBuiltinRulesPassTheirFixtures(t *testing.T) {
	var names []string
	for _, r := range builtinSet(t).Rules() {
		names = append(names, r.Name())
	}
	for _, want := range []string{"mining.cryptonote", "mining.ethereum", "mining.getblocktemplate", "mining.stratum_v1"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %q", want, names)
		}
	}
}

// The fixtures of a good layer must be able to fail: each rule is broken in
// turn and the layer must be refused for it.
func TestFixturesNoticeABrokenRule(t *testing.T) {
	text, err := fs.ReadFile(Builtin(), "mining.yaml")
	if err != nil {
		t.Fatal(err)
	}
	fixtures, err := fs.ReadFile(Builtin(), "mining.fixtures.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string][2]string{
		"a method dropped":      {`"mining.subscribe", `, ``},
		"a server's word":       {`"mining.set_difficulty", "mining.set_target"`, `"mining.set_target"`},
		"the subscription":      {`m.any("result.0.*.*"`, `m.any("result.9.*.*"`},
		"an agent not needed":   {`m.has_field("params.agent") ||`, `true ||`},
		"the job's blob":        {`m.like("params.blob", "^[0-9a-fA-F]{120,}$")`, `true`},
		"the login of a wallet": {`{94,110}`, `{194,210}`},
		"zeros of a target":     {`^0x0{6}[0-9a-fA-F]{58}$`, `^0x[0-9a-fA-F]{64}$`},
		"everything":            {`payload.messages().exists(m,`, `payload.contains("method") || payload.messages().exists(m,`},
	} {
		t.Run(name, func(t *testing.T) {
			broken := strings.ReplaceAll(string(text), edit[0], edit[1])
			if broken == string(text) {
				t.Fatal("the edit changes nothing")
			}
			_, err := Load(fstest.MapFS{
				"mining.yaml":          {Data: []byte(broken)},
				"mining.fixtures.yaml": {Data: fixtures},
			})
			if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), "fixture") {
				t.Errorf("Load = %v", err)
			}
		})
	}
}

const goodRule = `version: 1
rules:
- name: test.one
  description: d
  severity: low
  event: payload
  condition: payload.contains("x")
`

const goodFixtures = `version: 1
fixtures:
- {name: hit, out: ["axb"], expect: [test.one]}
- {name: miss, in: ["ab"], expect: []}
`

func TestBadLayersAreRefusedByName(t *testing.T) {
	replace := func(old, with string) string { return strings.Replace(goodRule, old, with, 1) }
	for name, c := range map[string]struct {
		rule, fixtures, says string
	}{
		"unknown key":          {replace("severity:", "sevirity: low\n  severity:"), goodFixtures, "sevirity"},
		"key twice":            {replace("severity: low", "severity: low\n  severity: high"), goodFixtures, "severity"},
		"wrong version":        {replace("version: 1", "version: 2"), goodFixtures, "version 2"},
		"bad severity":         {replace("low", "urgent"), goodFixtures, "urgent"},
		"bad response":         {replace("severity: low", "severity: low\n  response: kill"), goodFixtures, "kill"},
		"bad event":            {replace("event: payload", "event: dns"), goodFixtures, "dns"},
		"bad name":             {replace("test.one", "One"), goodFixtures, "group.name"},
		"no description":       {replace("description: d", `description: ""`), goodFixtures, "description"},
		"syntax":               {replace(`payload.contains("x")`, `payload.contains("x"`), goodFixtures, "test.one"},
		"unknown field":        {replace(`payload.contains("x")`, `payload.port == 3333`), goodFixtures, "port"},
		"other kind's event":   {replace(`payload.contains("x")`, `exec.pid == 1`), goodFixtures, "exec"},
		"not a yes or no":      {replace(`payload.contains("x")`, `payload.segments`), goodFixtures, "gives int"},
		"rule twice":           {goodRule + strings.TrimPrefix(goodRule, "version: 1\nrules:\n"), goodFixtures, "twice"},
		"no positive":          {goodRule, strings.Replace(goodFixtures, "axb", "ab", 1), "hit"},
		"no negative":          {goodRule, "version: 1\nfixtures:\n- {name: hit, out: [x], expect: [test.one]}\n", "does not match"},
		"no fixtures":          {goodRule, "version: 1\nfixtures: []\n", "no fixture"},
		"fixture has no event": {goodRule, goodFixtures + "- {name: none, expect: []}\n", "no event"},
		"unknown rule":         {goodRule, goodFixtures + "- {name: odd, out: [q], expect: [test.two]}\n", "test.two"},
		"fixture typo":         {goodRule, goodFixtures + "- {name: odd, uot: [q], expect: []}\n", "uot"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(fstest.MapFS{"a.yaml": {Data: []byte(c.rule)}, "a.fixtures.yaml": {Data: []byte(c.fixtures)}})
			if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Load = %v, want ErrInvalid that says %q", err, c.says)
			}
		})
	}
}

func TestLaterLayerReplacesARuleAndADisabledRuleIsSilent(t *testing.T) {
	layer := func(rule, fixtures string) fs.FS {
		return fstest.MapFS{"a.yaml": {Data: []byte(rule)}, "a.fixtures.yaml": {Data: []byte(fixtures)}}
	}
	other := strings.Replace(goodRule, `"x"`, `"y"`, 1)
	set, err := Load(layer(goodRule, goodFixtures), layer(other, strings.Replace(goodFixtures, "axb", "ayb", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if got := Play(set, flow.Out, []string{"x"}); len(got) != 0 {
		t.Errorf("the replaced rule matched: %q", got)
	}
	if got := Play(set, flow.Out, []string{"y"}); len(got) != 1 {
		t.Errorf("the new rule matched %q", got)
	}
	off := strings.Replace(goodRule, "severity: low", "severity: low\n  disabled: true", 1)
	set, err = Load(layer(goodRule, goodFixtures), layer(off, "version: 1\nfixtures:\n- {name: miss, out: [x], expect: []}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := Play(set, flow.Out, []string{"x"}); len(got) != 0 {
		t.Errorf("a disabled rule matched: %q", got)
	}
}

func TestRuleThatFailsIsCountedAndMatchesNothing(t *testing.T) {
	rule := strings.Replace(goodRule, `payload.contains("x")`, `payload.data[int(payload.segments)-1] == 0 || payload.contains("x")`, 1)
	rule = strings.Replace(rule, `payload.data[int(payload.segments)-1] == 0`, `payload.remote_addr.matches(payload.direction + "(") && payload.contains("q")`, 1)
	set, err := Load(fstest.MapFS{"a.yaml": {Data: []byte(rule)}, "a.fixtures.yaml": {Data: []byte(goodFixtures)}})
	if err != nil {
		t.Fatal(err)
	}
	if got := Play(set, flow.Out, []string{"q"}); len(got) != 0 {
		t.Errorf("matched %q", got)
	}
	if n := set.Rules()[0].Errors(); n == 0 {
		t.Error("the error was not counted")
	}
}

// Whatever the cut, the first whole word decides.
func TestEveryCutOfALoginIsSeen(t *testing.T) {
	set := builtinSet(t)
	login := `{"id":1,"jsonrpc":"2.0","method":"login","params":{"login":"x.1","pass":"y","agent":"z/1"}}` + "\n"
	for i := range len(login) {
		if got := Play(set, flow.Out, []string{login[:i], login[i:]}); !slices.Equal(got, []string{"mining.cryptonote"}) {
			t.Fatalf("cut at %d: %q", i, got)
		}
	}
}

func TestPortAndAddressDecideNothing(t *testing.T) {
	set := builtinSet(t)
	for _, port := range []int{1, 53, 80, 443, 3333, 45700, 65535} {
		for text, want := range map[string]int{
			`{"method":"ping"}`:             0,
			`{"method":"mining.subscribe"}`: 1,
		} {
			p := &Payload{Direction: "out", Protocol: "tcp", Data: []byte(text), RemotePort: port, RemoteAddr: "192.0.2.1"}
			if got := set.Match(p, nil); len(got) != want {
				t.Errorf("%s to port %d: %d matches, want %d", text, port, len(got), want)
			}
		}
	}
}

func BenchmarkMatchMiner(b *testing.B) {
	benchmarkMatch(b, `{"id":1,"jsonrpc":"2.0","method":"login","params":{"login":"48edfHu7V9Z84YzzMa6fUueoELZ9ZRXq9VetWzYGzKt52XU5xvqgzYnDK9URnRoJMk1j8nLwEVsaSWJ4fhdUyZijBGUicoD","pass":"x","agent":"XMRig/6.21.0","algo":["rx/0"]}}`+"\n")
}

func BenchmarkMatchOrdinaryJSON(b *testing.B) {
	benchmarkMatch(b, `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"agent","version":"1"}}}`+"\n")
}

func BenchmarkMatchTLS(b *testing.B) {
	benchmarkMatch(b, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"+strings.Repeat("\x9d\xe1\x55", 160))
}

func BenchmarkMatchWorst2KiBOfObjects(b *testing.B) {
	benchmarkMatch(b, strings.Repeat(`{"a":1}`, 292))
}

func benchmarkMatch(b *testing.B, text string) {
	b.Helper()
	set := builtinSet(b)
	data := []byte(text)
	b.ReportAllocs()
	for b.Loop() {
		set.Match(&Payload{Direction: "out", Protocol: "tcp", Data: data}, nil)
	}
}

func TestLayerThatIsMissingIsAnError(t *testing.T) {
	if _, err := Load(Builtin(), os.DirFS(filepath.Join(t.TempDir(), "none"))); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("Load = %v, want ErrInvalid", err)
	}
	if _, err := Load(Builtin(), os.DirFS(t.TempDir())); err != nil {
		t.Errorf("an empty layer: %v", err)
	}
}
