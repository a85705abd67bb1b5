package durable

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

var errInjected = errors.New("injected")

// failAt is a fault that fails one step and records all.
type failAt struct {
	step string
	seen []string
}

func (f *failAt) fault(op string) error {
	f.seen = append(f.seen, op)
	if op == f.step {
		return errInjected
	}
	return nil
}

func testDir(t *testing.T, fault Fault) *Dir {
	t.Helper()
	d, err := OpenDir(filepath.Join(t.TempDir(), "state"), fault)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error = %v, want %v", err, want)
	}
}

func readString(t *testing.T, d *Dir, name string) string {
	t.Helper()
	b, err := d.ReadFile(name, 1<<20)
	must(t, err)
	return string(b)
}

func TestWriteFileReplacesTheContentAndSetsTheMode(t *testing.T) {
	d := testDir(t, nil)
	must(t, d.WriteFile("w", "f", []byte("one"), 0o600))
	must(t, d.WriteFile("w", "f", []byte("two"), 0o644))
	if got := readString(t, d, "f"); got != "two" {
		t.Errorf("content = %q", got)
	}
	info, err := os.Stat(filepath.Join(d.Path(), "f"))
	must(t, err)
	if info.Mode().Perm() != 0o644 {
		t.Errorf("mode = %v", info.Mode())
	}
}

func TestAFailedWriteLeavesTheOldContentAndNoRemainder(t *testing.T) {
	for _, step := range []string{"w:write", "w:sync", "w:rename"} {
		f := &failAt{}
		d := testDir(t, f.fault)
		must(t, d.WriteFile("first", "f", []byte("old"), 0o600))
		f.step = step
		wantErr(t, d.WriteFile("w", "f", []byte("new"), 0o600), errInjected)
		if got := readString(t, d, "f"); got != "old" {
			t.Errorf("%s: content = %q", step, got)
		}
		if n, err := d.Sweep(); n != 0 || err != nil {
			t.Errorf("%s: %d remainders (%v)", step, n, err)
		}
	}
}

func TestAWriteReportsThatTheDirectoryWasNotSynced(t *testing.T) {
	f := &failAt{step: "w:syncdir"}
	d := testDir(t, f.fault)
	wantErr(t, d.WriteFile("w", "f", []byte("new"), 0o600), errInjected)
	if diff := cmp.Diff([]string{"w:write", "w:sync", "w:rename", "w:syncdir"}, f.seen); diff != "" {
		t.Error(diff)
	}
}

func TestWriteNewNeverReplaces(t *testing.T) {
	f := &failAt{}
	d := testDir(t, f.fault)
	must(t, d.WriteNew("w", "f", []byte("one"), 0o600))
	wantErr(t, d.WriteNew("w", "f", []byte("two"), 0o600), env.ErrExists)
	if got := readString(t, d, "f"); got != "one" {
		t.Errorf("content = %q", got)
	}
	f.step = "w:link"
	wantErr(t, d.WriteNew("w", "g", []byte("x"), 0o600), errInjected)
	names, err := d.List()
	must(t, err)
	if diff := cmp.Diff([]string{"f"}, names); diff != "" {
		t.Error(diff)
	}
	if n, _ := d.Sweep(); n != 0 {
		t.Errorf("%d remainders", n)
	}
}

func TestAFileIsInvisibleUntilItIsCommitted(t *testing.T) {
	d := testDir(t, nil)
	f, err := d.Create("c", "pack", 0o600)
	must(t, err)
	_, err = f.Write([]byte("half"))
	must(t, err)
	if names, _ := d.List(); len(names) != 0 {
		t.Errorf("names = %v", names)
	}
	must(t, f.Commit())
	f.Abort()
	if got := readString(t, d, "pack"); got != "half" {
		t.Errorf("content = %q", got)
	}
	wantErr(t, f.Commit(), env.ErrState)
}

func TestRemoveTreeMakesTheNameDisappearFirst(t *testing.T) {
	f := &failAt{step: "rm:remove"}
	d := testDir(t, f.fault)
	sub, err := d.Sub("mk", "lineage")
	must(t, err)
	must(t, sub.WriteFile("w", "f", nil, 0o600))
	must(t, sub.Close())
	wantErr(t, d.RemoveTree("rm", "lineage"), errInjected)
	if names, _ := d.List(); len(names) != 0 {
		t.Errorf("names = %v", names)
	}
	if n, err := d.Sweep(); n != 1 || err != nil {
		t.Errorf("Sweep = %d, %v", n, err)
	}
	must(t, d.RemoveTree("rm", "lineage"))
}

func TestRemoveIsRepeatable(t *testing.T) {
	d := testDir(t, nil)
	must(t, d.WriteFile("w", "f", nil, 0o600))
	must(t, d.Remove("rm", "f"))
	must(t, d.Remove("rm", "f"))
	_, err := d.ReadFile("f", 10)
	wantErr(t, err, env.ErrNotFound)
}

func TestDirRefusesNamesThatLeaveItOrImitateRemainders(t *testing.T) {
	d := testDir(t, nil)
	for _, name := range []string{"", ".", "..", "a/b", "../x", "/etc/passwd", ".tmp-x", "a\x00b", strings.Repeat("n", 201)} {
		wantErr(t, d.WriteFile("w", name, nil, 0o600), env.ErrInvalid)
		wantErr(t, d.Remove("rm", name), env.ErrInvalid)
		_, err := d.Open(name)
		wantErr(t, err, env.ErrInvalid)
		_, err = d.Sub("mk", name)
		wantErr(t, err, env.ErrInvalid)
	}
}

func TestDirDoesNotFollowALinkOutOfItself(t *testing.T) {
	d := testDir(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("s"), 0o600))
	must(t, os.Symlink(secret, filepath.Join(d.Path(), "link")))
	if _, err := d.ReadFile("link", 10); err == nil {
		t.Error("read through a link that leaves the directory")
	}
}

func TestOpenDirRefusesWhatOthersMayWrite(t *testing.T) {
	path := t.TempDir()
	must(t, os.Chmod(path, 0o770))
	_, err := OpenDir(path, nil)
	wantErr(t, err, env.ErrInvalid)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	_, err = OpenDir(file, nil)
	wantErr(t, err, env.ErrInvalid)
}

func TestReadFileRefusesWhatIsTooLong(t *testing.T) {
	d := testDir(t, nil)
	must(t, d.WriteFile("w", "f", make([]byte, 11), 0o600))
	_, err := d.ReadFile("f", 10)
	wantErr(t, err, env.ErrCorrupt)
}

func TestLockNamesItsHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := Lock(path)
	must(t, err)
	_, err = Lock(path)
	wantErr(t, err, env.ErrState)
	if want := "process " + itoa(os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Errorf("%v does not name %s", err, want)
	}
	must(t, l.Unlock())
	l, err = Lock(path)
	must(t, err)
	must(t, l.Unlock())
}
