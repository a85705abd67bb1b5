package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/guest/wire"
)

func everything() wire.Hygiene {
	return wire.Hygiene{Hostname: true, Hosts: true, MachineID: true, SSHHostKeys: true, RandomSeed: true}
}

// image makes a root file system with what images have baked in.
func image(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, content := range map[string]string{
		"etc/machine-id":                      "0123456789abcdef0123456789abcdef\n",
		"etc/hostname":                        "builder\n",
		"etc/hosts":                           "127.0.0.1\tlocalhost\n127.0.1.1\tbuilder\n192.0.2.9 db # ours\n",
		"etc/ssh/ssh_host_ed25519_key":        "secret",
		"etc/ssh/ssh_host_ed25519_key.pub":    "public",
		"etc/ssh/ssh_host_rsa_key-cert.pub":   "certificate",
		"etc/ssh/sshd_config":                 "UseDNS no\n",
		"etc/dropbear/dropbear_rsa_host_key":  "secret",
		"var/lib/systemd/random-seed":         "seed",
		"var/lib/dbus/machine-id":             "0123456789abcdef0123456789abcdef\n",
		"root/.ssh/id_ed25519":                "a user's own",
		"etc/ssh/ssh_host_ed25519_key.backup": "not a key that a server reads",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTwoEnvironmentsOfOneImageShareNoIdentity(t *testing.T) {
	ids := map[string]bool{}
	for range 2 {
		root := image(t)
		h := &hygiene{root: root}
		keys, err := h.renew(everything(), "s-one")
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{filepath.Join(root, "etc/ssh/ssh_host_ed25519_key")}; !slices.Equal(keys, want) || keyType(keys[0]) != "ed25519" {
			t.Errorf("keys to make = %v, want %v", keys, want)
		}
		id := read(t, root, "etc/machine-id")
		if !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`).MatchString(id) || ids[id] {
			t.Errorf("machine id = %q", id)
		}
		ids[id] = true
		if got := read(t, root, "var/lib/dbus/machine-id"); got != id {
			t.Errorf("D-Bus says %q", got)
		}
		for _, name := range []string{
			"etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_ed25519_key.pub", "etc/ssh/ssh_host_rsa_key-cert.pub",
			"etc/dropbear/dropbear_rsa_host_key", "var/lib/systemd/random-seed",
		} {
			if got := read(t, root, name); got != "" {
				t.Errorf("%s is still there: %q", name, got)
			}
		}
		for name, want := range map[string]string{
			"etc/ssh/sshd_config": "UseDNS no\n", "root/.ssh/id_ed25519": "a user's own",
			"etc/ssh/ssh_host_ed25519_key.backup": "not a key that a server reads",
			"etc/hostname":                        "s-one\n",
			"etc/hosts":                           "127.0.0.1\tlocalhost\n192.0.2.9 db # ours\n127.0.1.1\ts-one # hearth\n",
		} {
			if diff := cmp.Diff(want, read(t, root, name)); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(root, "etc/.hearth-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestTheHostsNameFollowsTheClaimOnce(t *testing.T) {
	root := image(t)
	h := &hygiene{root: root}
	if err := h.follow("early"); err != nil { // before it is told what to do
		t.Fatal(err)
	}
	if got := read(t, root, "etc/hostname"); got != "builder\n" {
		t.Errorf("hostname = %q before anything was asked for", got)
	}
	if _, err := h.renew(everything(), "early"); err != nil {
		t.Fatal(err)
	}
	if err := h.follow("e-claimed"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, "etc/hostname"); got != "e-claimed\n" {
		t.Errorf("hostname = %q", got)
	}
	if got := read(t, root, "etc/hosts"); strings.Contains(got, "early") || !strings.HasSuffix(got, "127.0.1.1\te-claimed # hearth\n") {
		t.Errorf("hosts = %q", got)
	}
	// What its owner writes then is the owner's.
	if err := os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := h.follow("e-claimed"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, root, "etc/hostname"); got != "mine\n" {
		t.Errorf("hostname = %q after its owner changed it", got)
	}
}

// The claim's name goes into the file that is there; one that is another file too, or
// none, is replaced, and what it was stays as it is.
func TestTheHostsNameIsWrittenIntoNoOtherFile(t *testing.T) {
	const longer = "192.0.2.9 somebody's, and longer than what comes\n"
	for name, meanwhile := range map[string]func(path, other string) error{
		"nothing":  func(string, string) error { return nil },
		"longer":   func(path, _ string) error { return os.WriteFile(path, []byte(longer), 0o644) },
		"replaced": func(path, other string) error { return os.Rename(other, path) },
		"linked":   func(path, other string) error { return errors.Join(os.Remove(other), os.Link(path, other)) },
		"a link":   func(path, other string) error { return errors.Join(os.Remove(path), os.Symlink(other, path)) },
		"a fifo":   func(path, _ string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
		"gone":     func(path, _ string) error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			root := image(t)
			h := &hygiene{root: root}
			if _, err := h.renew(everything(), "a-name-that-is-longer-than-the-next"); err != nil {
				t.Fatal(err)
			}
			path, other := filepath.Join(root, "etc/hostname"), filepath.Join(root, "etc/other")
			if err := os.WriteFile(other, []byte(longer), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := meanwhile(path, other); err != nil {
				t.Fatal(err)
			}
			before, kept := inode(path), read(t, root, "etc/other")
			if err := h.follow("e-claimed"); err != nil {
				t.Fatal(err)
			}
			if got := read(t, root, "etc/hostname"); got != "e-claimed\n" {
				t.Errorf("hostname = %q", got)
			}
			if got := read(t, root, "etc/other"); got != kept {
				t.Errorf("the other file became %q, was %q", got, kept)
			}
			after, inPlace := inode(path), name == "nothing" || name == "longer" || name == "replaced"
			if after == 0 || inPlace && after != before {
				t.Errorf("inode %d, was %d", after, before)
			}
		})
	}
}

// inode is 0 for what is no regular file.
func inode(path string) uint64 {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0
	}
	return st.Ino
}

func TestHygieneLeavesWhatItIsNotAskedToRenew(t *testing.T) {
	root := image(t)
	keys, err := (&hygiene{root: root}).renew(wire.Hygiene{}, "s-one")
	if err != nil || len(keys) > 0 {
		t.Fatalf("keys = %v, %v", keys, err)
	}
	for name, want := range map[string]string{
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "builder\n",
		"etc/ssh/ssh_host_ed25519_key": "secret", "var/lib/systemd/random-seed": "seed",
	} {
		if got := read(t, root, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// What a parent environment left in the way costs its fork an error or nothing,
// never a wait.
func TestHygieneWaitsForNothingAndMakesNoDirectories(t *testing.T) {
	root := t.TempDir()
	if _, err := (&hygiene{root: root}).renew(everything(), "s-one"); err != nil {
		t.Errorf("an image without /etc: %v", err)
	}
	if entries, _ := os.ReadDir(root); len(entries) > 0 {
		t.Errorf("made %v", entries)
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/hosts", "etc/machine-id"} {
		if err := syscall.Mkfifo(filepath.Join(root, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (&hygiene{root: root}).renew(everything(), "s-one"); err != nil {
		t.Errorf("fifos in the way: %v", err)
	}
	if got := read(t, root, "etc/hosts"); got != "127.0.0.1\tlocalhost\n::1\tip6-localhost ip6-loopback\n127.0.1.1\ts-one # hearth\n" {
		t.Errorf("hosts = %q", got)
	}
	if err := os.Remove(filepath.Join(root, "etc/hostname")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/hostname/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := (&hygiene{root: root}).renew(everything(), "s-two"); err == nil {
		t.Error("a directory in the way of a file is no error")
	}
}

func TestHostsIsBoundedAndKeepsItsOtherLines(t *testing.T) {
	for name, c := range map[string]struct{ present, want string }{
		"none":           {"", "127.0.0.1\tlocalhost\n::1\tip6-localhost ip6-loopback\n127.0.1.1\tme # hearth\n"},
		"no line end":    {"127.0.0.1 localhost", "127.0.0.1 localhost\n127.0.1.1\tme # hearth\n"},
		"an older name":  {"127.0.0.1 localhost\n127.0.1.1\told # hearth\n", "127.0.0.1 localhost\n127.0.1.1\tme # hearth\n"},
		"blank and note": {"\n# note\n127.0.0.1 localhost\n", "\n# note\n127.0.0.1 localhost\n127.0.1.1\tme # hearth\n"},
	} {
		if diff := cmp.Diff(c.want, string(hosts([]byte(c.present), "me"))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), make([]byte, maxHosts+1), 0o644); err != nil {
		t.Fatal(err)
	}
	h := &hygiene{root: root}
	if got := h.present("etc/hosts", maxHosts); got != nil {
		t.Errorf("%d bytes of a file that is too long", len(got))
	}
}
