package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/guest/wire"
)

func TestHoldSaysThatItRunsAndEndsWithItsInput(t *testing.T) {
	in, end := io.Pipe()
	said, out := io.Pipe()
	code := make(chan int, 1)
	go func() { code <- run([]string{"hold"}, in, out, io.Discard) }()
	var b [1]byte
	if _, err := said.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-code:
		t.Fatalf("ended with %d before its input did", c)
	case <-time.After(20 * time.Millisecond):
	}
	_ = end.Close()
	if c := <-code; c != 0 {
		t.Errorf("code %d", c)
	}
}

func TestRefusesToRunAsAnyOtherPid(t *testing.T) {
	var said bytes.Buffer
	if code := run(nil, nil, nil, &said); code != 1 || !strings.Contains(said.String(), "must be pid 1") {
		t.Errorf("code %d, %q", code, said.String())
	}
	if code := run([]string{"nonsense"}, nil, nil, &said); code != 2 {
		t.Errorf("code %d for unknown arguments", code)
	}
}

func TestLaterVariablesWin(t *testing.T) {
	got := environ(account{name: "agent", home: "/h"}, map[string]string{"A": "1", "B": "1"}, nil, map[string]string{"B": "2", "HOME": "/x"})
	want := []string{"A=1", "B=2", "HOME=/x", "LOGNAME=agent", "PATH=" + defaultPath, "USER=agent"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAccountsComeFromPasswdOrADefault(t *testing.T) {
	passwd := "broken\nroot:x:0:0:r:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n"
	for uid, want := range map[uint32]account{0: {"root", "/root"}, 1000: {"me", "/home/me"}, 5: {"", "/"}} {
		if got := findAccount(strings.NewReader(passwd), uid); got != want {
			t.Errorf("uid %d: %+v, want %+v", uid, got, want)
		}
	}
	if got := findAccount(strings.NewReader(""), 0); got.home != "/root" {
		t.Errorf("root without passwd: %+v", got)
	}
}

func TestLogStaysBoundedAndKeepsTheNewest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := newLogFile(path, 1000)
	for i := range 1000 {
		l.write([]byte(strconv.Itoa(i) + "\n"))
	}
	l.write(bytes.Repeat([]byte("z"), 2500))
	l.close()
	newest, _ := os.ReadFile(path)
	older, _ := os.ReadFile(path + ".1")
	if len(newest) > 1000 || len(older) != 1000 || !bytes.HasSuffix(newest, []byte("z")) {
		t.Errorf("%d bytes and %d before", len(newest), len(older))
	}
}

func TestLogSharesFitTheBudget(t *testing.T) {
	for n := 0; n <= wire.MaxServices; n++ {
		if total := 2 * n * shareOf(n); total > wire.LogBudget {
			t.Errorf("%d services may write %d bytes of %d", n, total, wire.LogBudget)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var l tail
	for i := range 5000 {
		l.add([]byte(strconv.Itoa(i) + " "))
	}
	if s := l.String(); len(s) > tailSize || !strings.HasSuffix(s, "4998 4999") {
		t.Errorf("%d bytes, ends in %q", len(s), s[len(s)-20:])
	}
	l.add(bytes.Repeat([]byte("x"), 3*tailSize))
	if s := l.String(); len(s) != tailSize {
		t.Errorf("%d bytes", len(s))
	}
}

// pages is a directory that yields its names in batches.
type pages struct{ names []string }

func (p *pages) Readdirnames(n int) ([]string, error) {
	if len(p.names) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(p.names))
	batch := p.names[:n]
	p.names = p.names[n:]
	return batch, nil
}

func TestDirectoriesPageInOrderWithoutHoldingAll(t *testing.T) {
	var all []string
	for i := range 20_000 {
		all = append(all, strconv.Itoa((i*7919)%20_000))
	}
	want := slices.Sorted(slices.Values(all))
	var got []string
	for after, more := "", true; more; after = got[len(got)-1] {
		names, m, err := firstNames(&pages{slices.Clone(all)}, after, 300)
		if err != nil || len(names) > 300 || len(names) == 0 {
			t.Fatalf("%d names, %v", len(names), err)
		}
		got, more = append(got, names...), m
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestStdinQueueHoldsAWindowAndNoMore(t *testing.T) {
	f := feed{wake: make(chan struct{}, 1)}
	if !f.add(make([]byte, wire.Window)) || f.add([]byte{1}) {
		t.Error("the window is not the bound")
	}
	f.end()
	if b, ended := f.take(); len(b) != wire.Window || !ended {
		t.Errorf("%d bytes, ended=%v", len(b), ended)
	}
}

func TestClassesThatCannotBeAreRefused(t *testing.T) {
	ok := wire.Service{Name: "web", Command: []string{"x"}}
	with := func(change func(*wire.Service)) wire.Configure {
		s := ok
		change(&s)
		return wire.Configure{Services: []wire.Service{s}}
	}
	for name, c := range map[string]wire.Configure{
		"name that climbs":  with(func(s *wire.Service) { s.Name = "../../etc/cron" }),
		"no name":           with(func(s *wire.Service) { s.Name = "" }),
		"dot":               with(func(s *wire.Service) { s.Name = ".." }),
		"no command":        with(func(s *wire.Service) { s.Command = nil }),
		"unknown start":     with(func(s *wire.Service) { s.Start = "later" }),
		"unknown restart":   with(func(s *wire.Service) { s.Restart = "sometimes" }),
		"twice":             {Services: []wire.Service{ok, ok}},
		"two probes":        {Probe: wire.Probe{TCPPort: 1, Command: []string{"x"}}},
		"path with newline": {Probe: wire.Probe{HTTP: &wire.HTTPProbe{Port: 1, Path: "/\r\nX: y"}}},
		"too many":          {Services: make([]wire.Service, wire.MaxServices+1)},
	} {
		err := checkClass(&c)
		var e *wire.Error
		if !errors.As(err, &e) || e.Code != wire.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkClass(&wire.Configure{Services: []wire.Service{ok}, Probe: wire.Probe{TCPPort: 80}}); err != nil {
		t.Error(err)
	}
}

func FuzzStatusLine(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r"))
	f.Add([]byte("HTTP/1.0 404"))
	f.Add([]byte("HTTP/2 200"))
	f.Add([]byte("HTTP/1.1 99999 no"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if n, err := parseStatus(line); err == nil && (n < 100 || n > 999) {
			t.Fatalf("accepted %d from %q", n, line)
		}
	})
}
