package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// TestMain lets the test binary play processes that die or write.
func TestMain(m *testing.M) {
	switch os.Getenv("SNAPSHOT_TEST_ROLE") {
	case "crash":
		os.Exit(crashChild(crashWork))
	case "import":
		os.Exit(crashChild(importWork))
	case "mmap":
		os.Exit(mmapChild())
	}
	os.Exit(m.Run())
}

func startAs(role string, extra ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "SNAPSHOT_TEST_ROLE="+role), extra...)
	cmd.Stderr = os.Stderr
	return cmd
}

// crashChild captures a tree, changes it, captures it again, forks, and deletes
// the fork; it kills itself before step number SNAPSHOT_TEST_KILL.
func crashChild(work func(dir string, fault func(string) error) error) int {
	kill, _ := strconv.Atoi(os.Getenv("SNAPSHOT_TEST_KILL"))
	dir := os.Getenv("SNAPSHOT_TEST_DIR")
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
	if err := work(dir, fault); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func crashWork(dir string, fault func(string) error) error {
	s, err := Open(Config{Dir: filepath.Join(dir, "store")}, fault, quiet())
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	for i := range 2 {
		if err := os.WriteFile(filepath.Join(tree, "f"+strconv.Itoa(i)), random(uint64(i), 300_000), 0o644); err != nil {
			return err
		}
		info, err := s.Capture(context.Background(), source(tree), &recorder{})
		if err != nil {
			return err
		}
		fmt.Println("ack", info.ID)
	}
	info, err := s.Fork(context.Background(), "e-test/2", "e-fork", "")
	if err != nil {
		return err
	}
	fmt.Println("ack", info.ID)
	fmt.Println("begin delete")
	return s.Delete("e-fork")
}

func TestACrashAtAnyStepKeepsEveryAcknowledgedSnapshot(t *testing.T) {
	run := func(kill int) (dir, out string) {
		dir = t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "tree"), 0o755))
		cmd := startAs("crash", "SNAPSHOT_TEST_DIR="+dir, "SNAPSHOT_TEST_KILL="+strconv.Itoa(kill))
		b, err := cmd.Output()
		if kill == 0 {
			must(t, err)
		} else if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("kill at %d: %v", kill, err)
		}
		return dir, string(b)
	}
	_, out := run(0)
	steps := strings.Count(out, "step ")
	if steps < 45 {
		t.Fatalf("only %d steps:\n%s", steps, out)
	}
	for kill := 1; kill <= steps; kill++ {
		dir, out := run(kill)
		checkCrashed(t, dir, out)
	}
}

// checkCrashed opens the store again and looks for what was acknowledged.
func checkCrashed(t *testing.T, dir, out string) {
	t.Helper()
	s, err := Open(Config{Dir: filepath.Join(dir, "store")}, nil, quiet())
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	defer s.Close()
	deleting := strings.Contains(out, "begin delete")
	files := 0
	for sc := bufio.NewScanner(strings.NewReader(out)); sc.Scan(); {
		id, ok := strings.CutPrefix(sc.Text(), "ack ")
		if !ok {
			continue
		}
		l, seq, err := ParseID(id)
		must(t, err)
		if l == "e-fork" && deleting {
			continue
		}
		got := restore1(t, s, ID(id))
		for i := range uint64(2) {
			b, err := os.ReadFile(filepath.Join(got, "f"+strconv.Itoa(int(i))))
			if i < seq || l == "e-fork" {
				if !bytes.Equal(b, random(i, 300_000)) {
					t.Errorf("%s: f%d is wrong: %v", id, i, err)
				}
			} else if err == nil {
				t.Errorf("%s: f%d should not be there", id, i)
			}
		}
		files++
	}
	tree := filepath.Join(dir, "tree")
	info := capture1(t, s, source(tree), &recorder{})
	wantSameTree(t, tree, restore1(t, s, info.ID))
	lin, err := s.openLineage("e-test")
	must(t, err)
	defer lin.close()
	ref, err := lin.ref(info.Seq)
	must(t, err)
	packs, err := lin.packs.List()
	must(t, err)
	for _, p := range packs {
		if seq, _ := parsePackName(p, packExt); seq >= ref.NextPack {
			t.Errorf("orphan %s", p)
		}
	}
	if _, err := s.Fork(t.Context(), info.ID, "e-fork", ""); err != nil && !errors.Is(err, env.ErrExists) {
		t.Errorf("fork after the crash: %v", err)
	}
}

func TestEveryFailingStepThawsAndLeavesTheLineageAsItWas(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), random(1, 300_000))
	var names []string
	fail := ""
	injected := errors.New("injected")
	s := openStore(t, filepath.Join(t.TempDir(), "store"), func(op string) error {
		names = append(names, op)
		if op == fail {
			return injected
		}
		return nil
	})
	first := capture1(t, s, source(dir), &recorder{})
	names = nil
	fds := openFDs(t)
	write(t, filepath.Join(dir, "f"), random(2, 300_000))
	for _, step := range []string{"pack:write", "pack:sync", "pack:rename", "pack:syncdir", "index:write", "index:sync", "index:rename", "index:syncdir", "ref:write", "ref:sync", "ref:link"} {
		fail = step
		f := &recorder{}
		_, err := s.Capture(t.Context(), source(dir), f)
		if !errors.Is(err, injected) {
			t.Fatalf("%s: %v", step, err)
		}
		if f.freezes != f.thaws || f.frozen {
			t.Errorf("%s: %d freezes, %d thaws", step, f.freezes, f.thaws)
		}
		fail = ""
		if head, err := s.Head("e-test"); err != nil || head.ID != first.ID {
			t.Errorf("%s: head = %s, %v", step, head.ID, err)
		}
	}
	if now := openFDs(t); now > fds {
		t.Errorf("%d descriptors leaked", now-fds)
	}
	info := capture1(t, s, source(dir), &recorder{})
	wantSameTree(t, dir, restore1(t, s, info.ID))
	packs, err := os.ReadDir(filepath.Join(s.dir.Path(), "lin/e-test/packs"))
	must(t, err)
	if len(packs) != 2 {
		t.Errorf("packs = %v", packs)
	}
}

func TestTheThawHappensWhateverHappensInTheFreeze(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), []byte("x"))
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	for name, f := range map[string]*recorder{
		"freeze fails":     {onFreeze: func() error { return errors.New("no") }},
		"context is ended": {onFreeze: func() error { cancel(); return nil }},
	} {
		c := t.Context()
		if name == "context is ended" {
			c = ctx
		}
		if _, err := s.Capture(c, source(dir), f); err == nil {
			t.Errorf("%s: no error", name)
		}
		if f.freezes != 1 || f.thaws != 1 {
			t.Errorf("%s: %d freezes, %d thaws", name, f.freezes, f.thaws)
		}
	}
	f := &recorder{onFreeze: func() error { panic("bug") }}
	func() {
		defer func() { _ = recover() }()
		_, _ = s.Capture(t.Context(), source(dir), f)
	}()
	if f.thaws != 1 {
		t.Error("a panic left it frozen")
	}
	capture1(t, s, source(dir), &recorder{}) // and nothing locked
}

func TestAFreezeThatTakesTooLongIsTriedAgainAndGivenUp(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), []byte("x"))
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store"), Limits: Limits{Freeze: 20 * time.Millisecond}}, nil, quiet())
	must(t, err)
	defer s.Close()
	f := &recorder{onFreeze: func() error { time.Sleep(200 * time.Millisecond); return nil }}
	_, err = s.Capture(t.Context(), source(dir), f)
	if !errors.Is(err, env.ErrUnavailable) || f.freezes != freezeTries || f.thaws != freezeTries {
		t.Errorf("%v after %d freezes, %d thaws", err, f.freezes, f.thaws)
	}
	slow := true
	f = &recorder{onFreeze: func() error {
		if slow {
			time.Sleep(200 * time.Millisecond)
		}
		slow = false
		return nil
	}}
	if info := capture1(t, s, source(dir), f); info.Redone != 1 || f.freezes != 2 {
		t.Errorf("redone %d, %d freezes", info.Redone, f.freezes)
	}
}

func TestDamageIsFoundAndNamed(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	for i := range 20 {
		write(t, filepath.Join(dir, "d", fmt.Sprint(i)), random(uint64(i), 30_000))
	}
	info := capture1(t, s, source(dir), &recorder{})
	packs, err := filepath.Glob(filepath.Join(s.dir.Path(), "lin/e-test/packs/*"))
	must(t, err)
	whole, err := os.ReadFile(packs[0])
	must(t, err)
	table, _, err := readPack(bytes.NewReader(whole), int64(len(whole)), lineageKeys(t, s, "e-test").id)
	must(t, err)
	fds := openFDs(t)
	for _, l := range table {
		for _, at := range []uint64{l.offset + 1, l.offset + 20, l.offset + 50, l.end() - 1} {
			bad := bytes.Clone(whole)
			bad[at] ^= 4
			must(t, os.WriteFile(packs[0], bad, 0o600))
			_, verr := s.Verify(t.Context(), info.ID)
			_, rerr := s.Restore(t.Context(), info.ID, map[string]string{"upper": t.TempDir()}, env.IDRange{})
			for _, err := range []error{verr, rerr} {
				if !errors.Is(err, env.ErrCorrupt) || !strings.Contains(err.Error(), packs[0]) ||
					!strings.Contains(err.Error(), fmt.Sprintf("offset %d", l.offset)) || !strings.Contains(err.Error(), "\"upper") && !strings.Contains(err.Error(), "\"/upper") {
					t.Fatalf("byte %d: %v", at, err)
				}
			}
		}
	}
	if now := openFDs(t); now > fds {
		t.Errorf("%d descriptors leaked", now-fds)
	}
	must(t, os.WriteFile(packs[0], whole[:len(whole)/2], 0o600))
	if _, err := s.Verify(t.Context(), info.ID); !errors.Is(err, env.ErrCorrupt) {
		t.Errorf("half a pack: %v", err)
	}
	must(t, os.WriteFile(packs[0], whole, 0o600))
	if _, err := s.Verify(t.Context(), info.ID); err != nil {
		t.Errorf("undamaged: %v", err)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

func TestALostOrDamagedIndexIsMadeAgain(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), random(1, 500_000))
	info := capture1(t, s, source(dir), &recorder{})
	ix, err := filepath.Glob(filepath.Join(s.dir.Path(), "lin/e-test/idx/*"))
	must(t, err)
	whole, err := os.ReadFile(ix[0])
	must(t, err)
	must(t, os.Remove(ix[0]))
	wantSameTree(t, dir, restore1(t, s, info.ID))
	must(t, os.WriteFile(ix[0], append([]byte{1}, whole...), 0o600))
	wantSameTree(t, dir, restore1(t, s, info.ID))
	capture1(t, s, source(dir), &recorder{})
	if again, err := os.ReadFile(ix[0]); err != nil || !bytes.Equal(again, whole) {
		t.Errorf("the index was not written again: %v", err)
	}
}

func TestADamagedHeadIsAnErrorAndNeverAnOlderSnapshot(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	capture1(t, s, source(dir), &recorder{})
	info := capture1(t, s, source(dir), &recorder{})
	ref := filepath.Join(s.dir.Path(), "lin/e-test/refs", refName(info.Seq))
	b, err := os.ReadFile(ref)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(ref, b, 0o600))
	_, headErr := s.Head("e-test")
	_, capErr := s.Capture(t.Context(), source(dir), &recorder{})
	for _, err := range []error{headErr, capErr} {
		if !errors.Is(err, env.ErrCorrupt) || !strings.Contains(err.Error(), string(info.ID)) {
			t.Errorf("error = %v", err)
		}
	}
}

func TestKernelAFullDiskFailsCleanlyAndNothingIsLost(t *testing.T) {
	needRoot(t)
	mnt, dir := t.TempDir(), t.TempDir()
	must(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(mnt, 0)) })
	s, err := Open(Config{Dir: filepath.Join(mnt, "store")}, nil, quiet())
	must(t, err)
	defer s.Close()
	write(t, filepath.Join(dir, "small"), random(1, 100_000))
	info := capture1(t, s, source(dir), &recorder{})
	want := describe(t, dir)
	write(t, filepath.Join(dir, "big"), random(2, 8<<20))
	f := &recorder{}
	_, err = s.Capture(t.Context(), source(dir), f)
	if !errors.Is(err, env.ErrExhausted) || f.frozen {
		t.Fatalf("error = %v, frozen %v", err, f.frozen)
	}
	if got := describe(t, restore1(t, s, info.ID)); len(got) != len(want) {
		t.Errorf("restored %v", got)
	}
	must(t, os.Remove(filepath.Join(dir, "big")))
	again := capture1(t, s, source(dir), &recorder{}) // the room was given back
	wantSameTree(t, dir, restore1(t, s, again.ID))
	small := t.TempDir()
	must(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(small, 0)) })
	_, err = s.Restore(t.Context(), info.ID, map[string]string{"upper": small}, env.IDRange{})
	if !errors.Is(err, env.ErrExhausted) {
		t.Errorf("restore to a full disk: %v", err)
	}
}
