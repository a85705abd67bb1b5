package ctrd

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOnlyContainerdWithOurConfigurationIsOurs(t *testing.T) {
	const config = "/run/h/containerd/containerd.toml"
	for args, want := range map[string]bool{
		"/bin/containerd --config " + config:         true,
		"/bin/sh /opt/containerd --config " + config: true,
		"vi " + config: false,
		"/bin/containerd --config " + config + ".x":    false,
		"/bin/containerd config dump " + config:        false,
		"/bin/containerd-shim --config " + config:      false,
		"/bin/containerd --config " + config + " dump": false,
		"": false,
	} {
		if got := runsConfig(strings.ReplaceAll(args, " ", "\x00")+"\x00", config); got != want {
			t.Errorf("%q: %v, want %v", args, got, want)
		}
	}
}

func TestListenerIsWhoeverListensOnTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	if pid := listenerOf(path); pid != 0 {
		t.Errorf("no socket: %d", pid)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if pid := listenerOf(path); pid != os.Getpid() {
		t.Errorf("our socket: %d, want %d", pid, os.Getpid())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if pid := listenerOf(path); pid != 0 {
		t.Errorf("a socket that was left: %d", pid)
	}
}

func TestRealUserIDIsReadFromStatus(t *testing.T) {
	for status, want := range map[string]int{
		"Name:\tx\nUid:\t7\t8\t8\t8\nGid:\t0\t0\t0\t0\n": 7,
		"Name:\tx\nGid:\t0\t0\t0\t0\n":                   -1,
		"":                                               -1,
	} {
		if got := uidOf(status); got != want {
			t.Errorf("%q: %d, want %d", status, got, want)
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if got := uidOf(string(status)); err != nil || got != os.Getuid() {
		t.Errorf("own: %d, %v", got, err)
	}
}

func TestLogIsCutToItsEndOnlyWhenLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := boundLog(path); err != nil {
		t.Errorf("no log: %v", err)
	}
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := boundLog(path); err != nil {
			t.Fatal(err)
		}
	}
	write(make([]byte, maxLog))
	if st, _ := os.Stat(path); st.Size() != maxLog {
		t.Errorf("a log at the bound was cut to %d bytes", st.Size())
	}
	write(append(bytes.Repeat([]byte("x"), maxLog), "\nthe end\n"...))
	b, _ := os.ReadFile(path)
	if len(b) > keptLog+100 || !bytes.HasSuffix(b, []byte("x\nthe end\n")) || !bytes.Contains(b[:100], []byte("bytes before this were cut")) {
		t.Errorf("%d bytes: %.60q", len(b), b)
	}
}

func TestLastLineNeedsOnlyTheEndOfTheLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for content, want := range map[string]string{
		"":                                "",
		"one\n":                           "one",
		"one\ntwo\n\n":                    "two",
		strings.Repeat("long ", 2000):     strings.TrimSpace(strings.Repeat("long ", 2000)[10_000-4096:]),
		strings.Repeat("x\n", 9999) + "y": "y",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path); got != want {
			t.Errorf("last of %.20q: %.60q, want %.60q", content, got, want)
		}
	}
	if got := lastLine(path + ".none"); !strings.Contains(got, "no such file") {
		t.Errorf("no log: %q", got)
	}
}
