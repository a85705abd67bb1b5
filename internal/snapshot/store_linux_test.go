package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

func TestAFewEditsInALargeTreeCostLittle(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	for i := range 560 {
		write(t, filepath.Join(dir, fmt.Sprintf("d%d/e%d/f%d", i%7, i%31, i)), random(uint64(i), 64<<10))
	}
	for i := range 4 {
		write(t, filepath.Join(dir, "big", fmt.Sprint(i)), random(uint64(i+1000), 5<<20))
	}
	time.Sleep(2 * settleTime)
	first := capture1(t, s, source(dir), &recorder{})
	if first.Bytes < 50<<20 || first.NewBytes < 50<<20 {
		t.Fatalf("first = %+v", first)
	}
	again := capture1(t, s, source(dir), &recorder{})
	if s.trusts(t, dir) && (again.Read != 0 || again.Racy != 0) || again.NewBytes > 4096 {
		t.Errorf("nothing changed: %+v", again)
	}
	for _, name := range []string{"d1/e1/f1", "big/0", "big/1"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("edited"), 30_000)
		must(t, errors.Join(err, f.Close()))
	}
	f, err := os.OpenFile(filepath.Join(dir, "big/2"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("appended")
	must(t, errors.Join(err, f.Close()))
	must(t, os.Remove(filepath.Join(dir, "d2/e2/f2")))
	write(t, filepath.Join(dir, "etc/new"), []byte("new"))
	third := capture1(t, s, source(dir), &recorder{})
	if third.NewBytes <= 0 || third.NewBytes > 1<<20 || s.trusts(t, dir) && third.Read > 10 {
		t.Errorf("third = %+v", third)
	}
	wantSameTree(t, dir, restore1(t, s, third.ID))
	t.Logf("first %d bytes; unchanged %d bytes in %v, frozen %v; edits %d bytes in %v, frozen %v",
		first.NewBytes, again.NewBytes, again.Took, again.FreezeTime, third.NewBytes, third.Took, third.FreezeTime)
}

func TestALostCacheCostsReadingAndNothingElse(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), random(1, 500_000))
	capture1(t, s, source(dir), &recorder{})
	cache := filepath.Join(s.dir.Path(), "lin/e-test", cacheName)
	for _, spoil := range []func() error{
		func() error { return os.Remove(cache) },
		func() error { return os.WriteFile(cache, []byte("junk"), 0o600) },
	} {
		must(t, spoil())
		info := capture1(t, s, source(dir), &recorder{})
		if info.Read == 0 || info.NewBytes > 4096 {
			t.Errorf("info = %+v", info)
		}
	}
	src := source(dir)
	src.Roots[0].Exclude = []string{"f"} // another way to capture: the cache must not answer
	if info := capture1(t, s, src, &recorder{}); info.Files != 1 {
		t.Errorf("info = %+v", info)
	}
}

func TestExcludedPathsAndSeveralRoots(t *testing.T) {
	s, upper, work := newStore(t), t.TempDir(), t.TempDir()
	write(t, filepath.Join(upper, "etc/machine-id"), []byte("secret"))
	write(t, filepath.Join(upper, "etc/passwd"), []byte("p"))
	write(t, filepath.Join(upper, "run/hearth/env"), []byte("secret"))
	write(t, filepath.Join(work, "main.go"), []byte("package main"))
	src := Source{Lineage: "e-two", Base: "sha256:abc", Roots: []Root{
		{Name: "upper", Path: upper, Exclude: []string{"etc/machine-id", "run"}},
		{Name: "workspace", Path: work},
	}}
	info := capture1(t, s, src, &recorder{})
	a, b := t.TempDir(), t.TempDir()
	stats, err := s.Restore(t.Context(), info.ID, map[string]string{"upper": a, "workspace": b}, env.IDRange{})
	must(t, err)
	if stats.Info.Base != "sha256:abc" || stats.Files != info.Files {
		t.Errorf("stats = %+v, info = %+v", stats, info)
	}
	wantSameTree(t, work, b)
	for _, name := range []string{"etc/machine-id", "run"} {
		if _, err := os.Lstat(filepath.Join(a, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was captured", name)
		}
	}
	for name, targets := range map[string]map[string]string{
		"one is missing": {"upper": t.TempDir()},
		"not empty":      {"upper": a, "workspace": t.TempDir()},
		"one too many":   {"upper": t.TempDir(), "workspace": t.TempDir(), "x": t.TempDir()},
		"no directory":   {"upper": filepath.Join(work, "main.go"), "workspace": t.TempDir()},
	} {
		if _, err := s.Restore(t.Context(), info.ID, targets, env.IDRange{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestAForkGoesItsOwnWayAndHoldsItsParent(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), random(1, 400_000))
	labelled := source(dir)
	labelled.Labels = map[string]string{"class": "python"}
	parent := capture1(t, s, labelled, &recorder{})
	old := describe(t, dir)
	child, err := s.Fork(t.Context(), parent.ID, "e-child", "")
	must(t, err)
	if child.ID != "e-child/1" || child.Parent != parent.ID || child.Labels["class"] != "python" {
		t.Errorf("child = %+v", child)
	}
	_, err = s.Fork(t.Context(), child.ID, "e-grandchild", "")
	must(t, err)
	write(t, filepath.Join(dir, "g"), random(2, 400_000))
	src := source(dir)
	src.Lineage = "e-child"
	second := capture1(t, s, src, &recorder{})
	if second.ID != "e-child/2" || second.NewBytes > 410_000 {
		t.Errorf("the fork stored again what its parent has: %+v", second)
	}
	for id, want := range map[ID]map[string]string{"e-child/1": old, "e-grandchild/1": old, "e-child/2": describe(t, dir)} {
		if diff := cmp.Diff(want, describe(t, restore1(t, s, id))); diff != "" {
			t.Errorf("%s: %s", id, diff)
		}
	}
	if err := s.Delete("e-test"); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "e-child") {
		t.Errorf("delete of a borrowed lineage: %v", err)
	}
	if _, err := s.Fork(t.Context(), parent.ID, "e-child", ""); !errors.Is(err, env.ErrExists) {
		t.Errorf("second fork: %v", err)
	}
	for _, l := range []Lineage{"e-grandchild", "e-child", "e-test"} {
		must(t, s.Delete(l))
	}
	if all, err := s.Lineages(); len(all) != 0 || err != nil {
		t.Errorf("lineages = %v, %v", all, err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir.Path(), "lin")); len(left) != 0 {
		t.Errorf("left = %v", left)
	}
}

func TestListGetAndHeadNameWhatIsThere(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	var want []Info
	for range 3 {
		info := capture1(t, s, source(dir), &recorder{})
		info.Took = 0
		want = append(want, info)
	}
	got, err := s.List("e-test")
	must(t, err)
	for i := range got {
		got[i].Took = 0
		got[i].Time = want[i].Time // without its monotonic part
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if head, err := s.Head("e-test"); err != nil || head.Seq != 3 || head.Parent != "e-test/2" {
		t.Errorf("head = %+v, %v", head, err)
	}
	for _, id := range []ID{"e-test/4", "e-none/1"} {
		if _, err := s.Get(id); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("Get(%s) = %v", id, err)
		}
	}
	if _, err := s.Get("../../etc/1"); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("error = %v", err)
	}
	if err := s.Delete("e-none"); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("error = %v", err)
	}
}

func TestAStoreHasOneOwnerAndAnyReaders(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	info := capture1(t, s, source(dir), nil)
	path := s.dir.Path()
	if _, err := Open(Config{Dir: path}, nil, quiet()); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second owner: %v", err)
	}
	r, err := Open(Config{Dir: path, ReadOnly: true}, nil, quiet())
	must(t, err)
	defer r.Close()
	wantSameTree(t, dir, restore1(t, r, info.ID))
	if _, err := r.Capture(t.Context(), source(dir), nil); !errors.Is(err, env.ErrState) {
		t.Errorf("capture: %v", err)
	}
	if err := r.Delete("e-test"); !errors.Is(err, env.ErrState) {
		t.Errorf("delete: %v", err)
	}
}

func TestOpenRefusesWhatIsNoStore(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "letter.txt"), []byte("dear"))
	if _, err := Open(Config{Dir: dir}, nil, quiet()); !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), "letter.txt") {
		t.Errorf("foreign directory: %v", err)
	}
	s := newStore(t)
	path := s.dir.Path()
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(path, formatName), []byte(formatPrefix+"2\n"), 0o600))
	if _, err := Open(Config{Dir: path}, nil, quiet()); !errors.Is(err, env.ErrUnsupported) {
		t.Errorf("newer: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(path, formatName), []byte(formatPrefix+"1\n"), 0o600))
	must(t, os.Remove(filepath.Join(path, keyName)))
	if _, err := Open(Config{Dir: path}, nil, quiet()); !errors.Is(err, env.ErrNotFound) || !strings.Contains(err.Error(), "key") {
		t.Errorf("no key: %v", err)
	}
	if _, err := Open(Config{Dir: filepath.Join(t.TempDir(), "none"), ReadOnly: true}, nil, quiet()); err == nil {
		t.Error("read-only open of nothing")
	}
}

func TestLineagesWorkAtOnceAndOneAfterTheOther(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	for k := range 3 {
		dir := t.TempDir()
		for i := range 30 {
			write(t, filepath.Join(dir, fmt.Sprint(i)), random(uint64(k*100+i), 40_000))
		}
		for range 3 {
			wg.Go(func() {
				src := source(dir)
				src.Lineage = Lineage(fmt.Sprintf("e-%d", k))
				info, err := s.Capture(context.Background(), src, &recorder{})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := s.Verify(context.Background(), info.ID); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for k := range 3 {
		all, err := s.List(Lineage(fmt.Sprintf("e-%d", k)))
		if len(all) != 3 || err != nil {
			t.Errorf("%d snapshots, %v", len(all), err)
		}
	}
	if len(s.locks.m) != 0 {
		t.Errorf("%d locks left", len(s.locks.m))
	}
}

func TestLimitsStopAHostileTreeAndNameIt(t *testing.T) {
	for name, c := range map[string]struct {
		limits Limits
		make   func(dir string)
		says   string
	}{
		"too many names": {Limits{Entries: 10}, func(dir string) {
			for i := range 20 {
				write(t, filepath.Join(dir, fmt.Sprint(i)), nil)
			}
		}, "names"},
		"too deep": {Limits{Depth: 5}, func(dir string) {
			must(t, os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", 10)), 0o755))
		}, "below each other"},
		"a file too long": {Limits{FileBytes: 1 << 20}, func(dir string) {
			write(t, filepath.Join(dir, "long"), nil)
			must(t, os.Truncate(filepath.Join(dir, "long"), 1<<40))
		}, "\"upper/long\""},
		"long names": {Limits{NameBytes: 10_000}, func(dir string) {
			for i := range 100 {
				write(t, filepath.Join(dir, fmt.Sprintf("%0200d", i)), nil)
			}
		}, "bytes of names"},
		"long links": {Limits{NameBytes: 10_000}, func(dir string) {
			for i := range 20 {
				must(t, os.Symlink(strings.Repeat("x", 4000), filepath.Join(dir, fmt.Sprint(i))))
			}
		}, "bytes of names, links"},
		"long attributes": {Limits{NameBytes: 10_000}, func(dir string) {
			for i := range 20 {
				write(t, filepath.Join(dir, fmt.Sprint(i)), nil)
				must(t, unix.Setxattr(filepath.Join(dir, fmt.Sprint(i)), "user.x", make([]byte, 2000), 0))
			}
		}, "bytes of names, links"},
		"too much data": {Limits{Bytes: 100_000}, func(dir string) {
			write(t, filepath.Join(dir, "a"), random(1, 80_000))
			write(t, filepath.Join(dir, "b"), random(2, 80_000))
			unix.Sync()
		}, "bytes of data"},
	} {
		dir := t.TempDir()
		c.make(dir)
		s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store"), Limits: c.limits}, nil, quiet())
		must(t, err)
		_, err = s.Capture(t.Context(), source(dir), &recorder{})
		if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, s.Close())
	}
}

func TestAPathIsNeverFollowedOutOfTheTree(t *testing.T) {
	s, dir, outside := newStore(t), t.TempDir(), t.TempDir()
	write(t, filepath.Join(outside, "secret"), []byte("the host's secret"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	p, q := filepath.Join(dir, "d"), filepath.Join(dir, "f")
	wg.Go(func() { // swaps directory and link, file and fifo and link, as fast as it can
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.RemoveAll(p)
			_ = os.RemoveAll(q)
			switch i % 3 {
			case 0:
				_ = os.Mkdir(p, 0o755)
				_ = os.WriteFile(filepath.Join(p, "secret"), []byte("inside"), 0o644)
				_ = os.WriteFile(q, []byte("inside"), 0o644)
			case 1:
				_ = os.Symlink(outside, p)
				_ = os.Symlink(filepath.Join(outside, "secret"), q)
			case 2:
				_ = unix.Mkfifo(p, 0o644)
				_ = unix.Mkfifo(q, 0o644) // opening it for reading would wait for ever
			}
		}
	})
	done := time.AfterFunc(30*time.Second, func() { panic("a capture hangs") })
	defer done.Stop()
	for range 150 {
		info, err := s.Capture(t.Context(), source(dir), &recorder{}) // the freezer lies: it goes on
		if err != nil {
			if !errors.Is(err, env.ErrUnavailable) && !errors.Is(err, errChanging) {
				t.Fatal(err)
			}
			continue
		}
		got := restore1(t, s, info.ID)
		for _, f := range []string{filepath.Join(got, "d/secret"), filepath.Join(got, "f")} {
			if st, err := os.Lstat(f); err == nil && st.Mode().IsRegular() {
				if b, _ := os.ReadFile(f); strings.Contains(string(b), "host") {
					if ds, _ := os.Lstat(filepath.Dir(f)); ds.IsDir() {
						t.Fatal("a file outside was captured")
					}
				}
			}
		}
	}
	close(stop)
	wg.Wait()
}

func TestAFileThatGrowsForEverIsReadToItsLength(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	path := filepath.Join(dir, "log")
	write(t, path, random(1, 4<<20))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		line := []byte("x")
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = f.Write(line)
			}
		}
	})
	time.Sleep(20 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	info, err := s.Capture(ctx, source(dir), nil) // offline: nothing is frozen
	must(t, err)
	_, err = s.Capture(ctx, source(dir), &recorder{}) // a freezer that lies is found out, if it shows
	if err != nil && (!errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "something outside")) {
		t.Errorf("error = %v", err)
	}
	close(stop)
	wg.Wait()
	if _, err := s.Verify(t.Context(), info.ID); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(filepath.Join(restore1(t, s, info.ID), "log")); err != nil || st.Size() == 0 {
		t.Errorf("restored %v, %v", st, err)
	}
}

func TestKernelMountsInATreeAreNotEntered(t *testing.T) {
	needRoot(t)
	s, dir := newStore(t), t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	must(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(mnt, 0)) })
	write(t, filepath.Join(mnt, "f"), []byte("x"))
	info := capture1(t, s, source(dir), &recorder{})
	if info.Mounts != 1 || info.Files != 2 {
		t.Errorf("info = %+v", info)
	}
}

func TestKernelATreeOnTmpfsIsReadAgainEachTime(t *testing.T) {
	needRoot(t)
	s, dir := newStore(t), t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	write(t, filepath.Join(dir, "f"), random(1, 600_000))
	for range 2 {
		info := capture1(t, s, source(dir), &recorder{})
		if info.Read != 1 || info.Racy == 0 {
			t.Errorf("info = %+v", info)
		}
		wantSameTree(t, dir, restore1(t, s, info.ID))
	}
}
