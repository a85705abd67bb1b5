package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mmapChild stores counters into a shared mapping of a file until it is killed,
// twice into the same dirty page after each line it reads.
func mmapChild() int {
	f, err := os.OpenFile(os.Getenv("SNAPSHOT_TEST_FILE"), os.O_RDWR, 0)
	if err != nil {
		return 1
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 1
	}
	_ = f.Close()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		n, _ := strconv.Atoi(in.Text())
		m[0] = byte(n)
		fmt.Println("stored")
	}
	return 0
}

func TestStoresThroughAMappingAreNeverMissed(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	path := filepath.Join(dir, "mapped")
	write(t, path, make([]byte, 4096))
	cmd := startAs("mmap", "SNAPSHOT_TEST_FILE="+path)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	store := func(n int) {
		fmt.Fprintln(in, n)
		if !lines.Scan() {
			t.Error("the writer died")
		}
	}
	missed := 0
	for n := 1; n < 100; n += 4 {
		store(n) // dirties the page
		time.Sleep(2 * settleTime)
		f := &recorder{
			onFreeze: func() error { store(n + 1); return nil }, // the page is dirty or clean, as the running pass left it
			onThaw:   func() { store(n + 2) },                   // with no fault if the capture left it dirty
		}
		info := capture1(t, s, source(dir), f)
		if b, _ := os.ReadFile(filepath.Join(restore1(t, s, info.ID), "mapped")); b[0] != byte(n+1) {
			t.Fatalf("captured %d in the freeze, want %d", b[0], n+1)
		}
		info = capture1(t, s, source(dir), &recorder{})
		if b, _ := os.ReadFile(filepath.Join(restore1(t, s, info.ID), "mapped")); b[0] != byte(n+2) {
			missed++
		}
		time.Sleep(2 * settleTime)
	}
	if missed > 0 {
		t.Errorf("%d stores were missed", missed)
	}
	capture1(t, s, source(dir), &recorder{})
	time.Sleep(2 * settleTime)
	capture1(t, s, source(dir), &recorder{})
	if info := capture1(t, s, source(dir), &recorder{}); s.trusts(t, dir) && info.Read != 0 {
		t.Errorf("an idle mapping is read again: %+v", info)
	}
}

func (s *Store) trusts(t *testing.T, dir string) bool {
	t.Helper()
	fd, err := openRootDir(dir)
	must(t, err)
	defer unix.Close(fd)
	ok, err := trustsTimes(fd)
	must(t, err)
	return ok
}

// writer changes a tree until it is frozen, and is a freezer.
type writer struct {
	mu   sync.RWMutex // held for reading while it writes: taken by the freeze
	stop chan struct{}
	wg   sync.WaitGroup
	want func() map[string]string
	got  map[string]string
}

func (w *writer) Freeze(context.Context) error { w.mu.Lock(); w.got = w.want(); return nil }
func (w *writer) Thaw(context.Context) error   { w.mu.Unlock(); return nil }

func TestASnapshotOfABusyTreeIsTheMomentOfTheFreeze(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	w := &writer{stop: make(chan struct{}), want: func() map[string]string { return describe(t, dir) }}
	for k := range 2 {
		w.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-w.stop:
					return
				default:
				}
				w.mu.RLock()
				p := filepath.Join(dir, fmt.Sprint(k), fmt.Sprint(i%40))
				_ = os.MkdirAll(filepath.Dir(p), 0o755)
				switch i % 7 {
				case 6:
					_ = os.Rename(p, p+"r")
				case 5:
					_ = os.Remove(p)
				default:
					_ = os.WriteFile(p, random(uint64(i), 1000+i%300_000), 0o644)
				}
				w.mu.RUnlock()
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	for range 6 {
		info := capture1(t, s, source(dir), w)
		got := describe(t, restore1(t, s, info.ID))
		for k, v := range w.got {
			if got[k] != v {
				t.Errorf("%s: %s: got %q, want %q", info.ID, k, got[k], v)
			}
		}
		if len(got) != len(w.got) {
			t.Errorf("%d names, want %d", len(got), len(w.got))
		}
		time.Sleep(30 * time.Millisecond)
	}
	close(w.stop)
	w.wg.Wait()
}

func TestAFileThatNeverHoldsStillIsNotTrusted(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	path := filepath.Join(dir, "f")
	write(t, path, []byte("x"))
	fd, err := openRootDir(dir)
	must(t, err)
	defer unix.Close(fd)
	w := newWorker(&capture{s: s, trustTimes: true, addition: &addition{lin: &lineageDir{keys: s.keys}}})
	n := &node{name: "f"}
	tries := 0
	gone, err := w.readFile(t.Context(), fd, n, func(int, statResult) error {
		tries++
		return os.WriteFile(path, random(uint64(tries), 10*tries), 0o644)
	})
	if gone || !errors.Is(err, errChanging) || n.trusted || tries != readTries || w.c.redone.Load() != readTries {
		t.Errorf("gone %v, %v, trusted %v after %d tries", gone, err, n.trusted, tries)
	}
	must(t, os.Remove(path))
	must(t, unix.Mkfifo(path, 0o644))
	if gone, err := w.readFile(t.Context(), fd, n, nil); !gone || err != nil {
		t.Errorf("a fifo in its place: %v, %v", gone, err)
	}
}
