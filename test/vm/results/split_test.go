package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const log = "=== VM PACKAGE hearth/a\n" +
	"\x16=== RUN   TestKernelA\n\x16--- PASS: TestKernelA (0.10s)\n\x16=== RUN   TestKernelB\n    b_test.go:3: no\n\x16--- SKIP: TestKernelB (0.00s)\n\x16PASS\n" +
	"\n=== VM EXIT hearth/a 0 4\n" +
	"=== VM PACKAGE hearth/b\n" +
	"\x16=== RUN   TestKernelC\npanic: dead\n" +
	"\n=== VM EXIT hearth/b 2 1\n" +
	"=== VM PACKAGE hearth/c\n" +
	"\x16=== RUN   TestKernelD\nhalf a li"

func convert(t *testing.T, packages string) (string, error) {
	t.Helper()
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte(packages), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(list, strings.NewReader(log), &out)
	return out.String(), err
}

func TestLogBecomesEvents(t *testing.T) {
	events, err := convert(t, "hearth/a /tests/hearth/a\nhearth/b /tests/hearth/b\nhearth/c /tests/hearth/c\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"Action":"pass","Package":"hearth/a","Test":"TestKernelA"`,
		`"Action":"skip","Package":"hearth/a","Test":"TestKernelB"`,
		`{"Action":"output","Package":"hearth/a","Output":"ok  \thearth/a\t4s\n"}`,
		`{"Action":"pass","Package":"hearth/a"}`,
		`{"Action":"fail","Package":"hearth/b"}`,
		`"Output":"panic: dead\n"`,
		`{"Action":"output","Package":"hearth/c","Output":"FAIL\thearth/c\tthe VM ended first\n"}`,
		`{"Action":"fail","Package":"hearth/c"}`,
	} {
		if !strings.Contains(events, want) {
			t.Errorf("no %s in:\n%s", want, events)
		}
	}
}

func TestPackageThatNeverRanIsNamed(t *testing.T) {
	_, err := convert(t, "hearth/a /tests/hearth/a\nhearth/z /tests/hearth/z\n")
	if err == nil || !strings.Contains(err.Error(), "hearth/z") {
		t.Errorf("error %v, want one that names hearth/z", err)
	}
}
