package durable

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// TestMain lets the test binary play the process that dies.
func TestMain(m *testing.M) {
	switch os.Getenv("DURABLE_TEST_ROLE") {
	case "crash":
		os.Exit(crashChild())
	case "limit":
		os.Exit(limitChild())
	}
	os.Exit(m.Run())
}

// child runs this binary in a role and returns what it printed.
func child(t *testing.T, role, dir string, extra ...string) (out string, err error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "DURABLE_TEST_ROLE="+role, "DURABLE_TEST_DIR="+dir), extra...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if stderr.Len() > 0 {
		t.Logf("child: %s", stderr.String())
	}
	return stdout.String(), err
}

// crashChild does one of everything, tells each step before it and each
// acknowledgement after it, and kills itself before step number
// DURABLE_TEST_KILL.
func crashChild() int {
	kill, _ := strconv.Atoi(os.Getenv("DURABLE_TEST_KILL"))
	steps := 0
	fault := func(op string) error {
		steps++
		fmt.Println("step", op)
		if steps == kill {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	if err := crashWork(os.Getenv("DURABLE_TEST_DIR"), fault); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func crashWork(path string, fault Fault) error {
	d, err := OpenDir(path, fault)
	if err != nil {
		return err
	}
	l, err := d.OpenLog("open", "log", func([]byte) error { return nil })
	if err != nil {
		return err
	}
	var live []string
	for i := range 6 {
		rec := fmt.Sprint("rec", i)
		if err := l.Append("append", []byte(rec)); err != nil {
			return err
		}
		live = append(live, rec)
		fmt.Println("ack append", strings.Join(live, ","))
		if i == 3 {
			fmt.Println("begin rewrite", strings.Join(live[2:], ","))
			live = live[2:]
			if err := l.Rewrite("rewrite", seq(live...)); err != nil {
				return err
			}
			fmt.Println("ack append", strings.Join(live, ","))
		}
		if err := d.WriteFile("file", "value", []byte(rec), 0o600); err != nil {
			return err
		}
		fmt.Println("ack file", rec)
	}
	sub, err := d.Sub("sub", "tree")
	if err != nil {
		return err
	}
	if err := sub.WriteNew("new", "leaf", []byte("leaf"), 0o600); err != nil {
		return err
	}
	fmt.Println("ack leaf")
	fmt.Println("begin removal")
	return errors.Join(d.RemoveTree("rmtree", "tree"), d.Remove("rm", "value"))
}

func TestACrashAtAnyStepLeavesTheOldStateOrTheNew(t *testing.T) {
	out, err := child(t, "crash", filepath.Join(t.TempDir(), "state"))
	must(t, err)
	steps := strings.Count(out, "step ")
	if steps < 40 {
		t.Fatalf("only %d steps: %s", steps, out)
	}
	for kill := 1; kill <= steps; kill++ {
		path := filepath.Join(t.TempDir(), "state")
		out, err := child(t, "crash", path, "DURABLE_TEST_KILL="+itoa(kill))
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("kill at %d: %v", kill, err)
		}
		checkAfterCrash(t, path, out)
	}
}

// checkAfterCrash compares what is on disk with what the child acknowledged.
func checkAfterCrash(t *testing.T, path, out string) {
	t.Helper()
	var log, alt, value, last string
	removal, leaf := false, false
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		switch line := s.Text(); {
		case strings.HasPrefix(line, "step "):
			last = line
		case strings.HasPrefix(line, "ack append "):
			log, alt = line[len("ack append "):], ""
		case strings.HasPrefix(line, "begin rewrite "):
			alt = line[len("begin rewrite "):]
		case strings.HasPrefix(line, "ack file "):
			value = line[len("ack file "):]
		case line == "ack leaf":
			leaf = true
		case line == "begin removal":
			removal = true
		}
	}
	d, err := OpenDir(path, nil)
	must(t, err)
	defer d.Close()
	if _, err := d.Sweep(); err != nil {
		t.Fatal(err)
	}
	_, recs := open(t, d)
	if got := strings.Join(recs, ","); got != log && (alt == "" || got != alt) {
		t.Errorf("%s: log = %q, acknowledged %q, rewriting to %q", last, got, log, alt)
	}
	got, err := d.ReadFile("value", 100)
	next := "rec0"
	if value != "" {
		next = "rec" + itoa(int(value[3]-'0')+1)
	}
	gone := errors.Is(err, env.ErrNotFound) && (value == "" || removal)
	if string(got) != value && string(got) != next && !gone {
		t.Errorf("%s: value = %q (%v), acknowledged %q", last, got, err, value)
	}
	names, _ := d.List()
	if leaf && !removal && !slices.Contains(names, "tree") {
		t.Errorf("%s: names = %v", last, names)
	}
	if slices.Contains(names, "tree") && leaf {
		if b, err := os.ReadFile(filepath.Join(path, "tree", "leaf")); err != nil || string(b) != "leaf" {
			t.Errorf("%s: leaf = %q, %v", last, b, err)
		}
	}
}

// limitChild appends until a file size limit cuts a write short.
func limitChild() int {
	signal.Ignore(unix.SIGXFSZ)
	d, err := OpenDir(os.Getenv("DURABLE_TEST_DIR"), nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l, err := d.OpenLog("open", "log", func([]byte) error { return nil })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	lim := unix.Rlimit{Cur: 10_000, Max: 10_000}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &lim); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	acked := 0
	for range 20 {
		if err = l.Append("a", make([]byte, 1500)); err != nil {
			break
		}
		acked++
	}
	size := l.Size()
	small := l.Append("a", []byte("small"))
	info, statErr := os.Stat(l.Path())
	if statErr != nil {
		return 1
	}
	fmt.Println(acked, errors.Is(err, env.ErrExhausted), small == nil, info.Size()-size)
	return 0
}

func TestAShortWriteIsUndoneAndTheLogGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	out, err := child(t, "limit", path)
	must(t, err)
	if want := fmt.Sprintf("6 true true %d\n", recHeaderLen+len("small")); out != want {
		t.Errorf("child says %q, want %q", out, want)
	}
	d, err := OpenDir(path, nil)
	must(t, err)
	defer d.Close()
	l, recs := open(t, d)
	if len(recs) != 7 || recs[6] != "small" || l.Torn() != 0 {
		t.Errorf("%d records, torn %d", len(recs), l.Torn())
	}
}
