package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// events of two packages: one whose tests passed, failed and skipped, and one
// that ended in the middle of a test.
const events = `{"Action":"start","Package":"hearth/a"}
{"Action":"run","Package":"hearth/a","Test":"TestGood"}
{"Action":"output","Package":"hearth/a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"hearth/a","Test":"TestGood","Output":"    a_test.go:1: chatter\n"}
{"Action":"pass","Package":"hearth/a","Test":"TestGood"}
{"Action":"run","Package":"hearth/a","Test":"TestBad"}
{"Action":"output","Package":"hearth/a","Test":"TestBad","Output":"    a_test.go:2: broken\n"}
{"Action":"output","Package":"hearth/a","Test":"TestBad","Output":"--- FAIL: TestBad (0.00s)\n"}
{"Action":"fail","Package":"hearth/a","Test":"TestBad"}
{"Action":"run","Package":"hearth/a","Test":"TestAbsent"}
{"Action":"skip","Package":"hearth/a","Test":"TestAbsent"}
{"Action":"output","Package":"hearth/a","Output":"FAIL\n"}
{"Action":"output","Package":"hearth/a","Output":"FAIL\thearth/a\t0.1s\n"}
{"Action":"fail","Package":"hearth/a"}
{"Action":"run","Package":"hearth/b","Test":"TestStuck"}
{"Action":"output","Package":"hearth/b","Test":"TestStuck","Output":"panic: dead\n"}
{"Action":"output","Package":"hearth/b","Output":"FAIL\thearth/b\t0.1s\n"}
{"Action":"fail","Package":"hearth/b"}
`

const passing = `{"Action":"run","Package":"hearth/a","Test":"TestGood"}
{"Action":"pass","Package":"hearth/a","Test":"TestGood"}
{"Action":"run","Package":"hearth/a","Test":"TestAbsent"}
{"Action":"skip","Package":"hearth/a","Test":"TestAbsent"}
{"Action":"output","Package":"hearth/a","Output":"PASS\n"}
{"Action":"output","Package":"hearth/a","Output":"ok  \thearth/a\t0.1s\n"}
{"Action":"pass","Package":"hearth/a"}
`

// reportOf runs the program on events from standard input.
func reportOf(t *testing.T, input, skips string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "skips.txt"), []byte(skips), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(context.Background(), []string{"-stdin", "-dir", dir, "-skips", "skips.txt"}, strings.NewReader(input), &out)
	return out.String(), err
}

func TestGoodRunPrintsPackageLinesAndCounts(t *testing.T) {
	out, err := reportOf(t, passing, "# why\n\nhearth/a TestAbsent  not on this machine\n")
	if err != nil {
		t.Error(err)
	}
	if want := "ok  \thearth/a\t0.1s\ntests: 1 run, 1 skipped\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestFailuresPrintTheirOutputOnly(t *testing.T) {
	out, err := reportOf(t, events, "hearth/a TestAbsent  not on this machine\n")
	if !errors.Is(err, errFaults) {
		t.Errorf("error %v, want %v", err, errFaults)
	}
	want := "    a_test.go:2: broken\n--- FAIL: TestBad (0.00s)\nFAIL\nFAIL\thearth/a\t0.1s\n" +
		"FAIL\thearth/b\t0.1s\n--- FAIL: TestStuck (did not end)\npanic: dead\n" +
		"tests: 3 run, 1 skipped\n"
	if out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

func TestSkipThatIsNotListedFails(t *testing.T) {
	out, err := reportOf(t, passing, "")
	if !errors.Is(err, errFaults) || !strings.Contains(out, "SKIP not listed: hearth/a TestAbsent") {
		t.Errorf("error %v, output %s", err, out)
	}
	if !strings.HasSuffix(out, "\ntests: 1 run, 1 skipped\n") {
		t.Errorf("last line of %q", out)
	}
}

func TestListedSkipThatRanFails(t *testing.T) {
	out, err := reportOf(t, passing, "hearth/a TestAbsent  reason\nhearth/a TestGood  reason\n")
	if !errors.Is(err, errFaults) || !strings.Contains(out, "listed SKIP did not skip: hearth/a TestGood (reason;") {
		t.Errorf("error %v, output %s", err, out)
	}
}

func TestBuildFailureFails(t *testing.T) {
	out, err := reportOf(t, `{"ImportPath":"hearth/a","Action":"build-output","Output":"a.go:1: undefined: x\n"}
{"ImportPath":"hearth/a","Action":"build-fail"}
{"Action":"output","Package":"hearth/a","Output":"FAIL\thearth/a [build failed]\n"}
{"Action":"fail","Package":"hearth/a","FailedBuild":"hearth/a"}
`, "")
	if !errors.Is(err, errFaults) || !strings.Contains(out, "undefined: x") {
		t.Errorf("error %v, output %s", err, out)
	}
}

func TestSkipListLinesNeedAReasonAndStandOnce(t *testing.T) {
	for name, list := range map[string]string{
		"reason": "hearth/a TestAbsent\n",
		"twice":  "hearth/a TestAbsent  one\nhearth/a TestAbsent  two\n",
	} {
		if _, err := reportOf(t, passing, list); err == nil || errors.Is(err, errFaults) || !strings.Contains(err.Error(), "skips.txt:") {
			t.Errorf("%s: error %v, want one that names the line", name, err)
		}
	}
}

// TestRunsRealModules runs go test itself, on a module with a package of each
// kind, and finds that exclusive tests ran once and apart.
func TestRunsRealModules(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{
		"go.mod":          "module hearth\n\ngo 1.26\n",
		"tools/go.mod":    "module hearth/tools\n\ngo 1.26\n",
		"test/vm/go.mod":  "module hearth/test/vm\n\ngo 1.26\n",
		"test/vm/v/v.go":  "package v\n",
		"tools/t/t.go":    "package t\n",
		"plain/p.go":      "package plain\n",
		"plain/p_test.go": "package plain\n\nimport \"testing\"\n\nfunc TestPlain(t *testing.T) { t.Run(\"sub\", func(t *testing.T) {}) }\n",
		"both/b.go":       "package both\n",
		"both/b_test.go":  "package both\n\nimport \"testing\"\n\nfunc TestKernelReal(t *testing.T) { t.Skip(\"no\") }\nfunc TestPure(t *testing.T) {}\n",
		"skips.txt":       "hearth/both TestKernelReal  no\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-dir", root, "-skips", "skips.txt"}, nil, &out); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"ok  \thearth/plain\t", "ok  \thearth/both\t", "?   \thearth/tools/t\t[no test files]"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	if !strings.HasSuffix(out.String(), "\ntests: 3 run, 1 skipped\n") {
		t.Errorf("closing line of:\n%s", out.String())
	}
}
