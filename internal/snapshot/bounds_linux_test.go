package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

func TestReadingWaitsForNoCapture(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), random(1, 100_000))
	info := capture1(t, s, acmeSource(dir), &recorder{})
	looked := 0
	capture1(t, s, acmeSource(dir), &recorder{onFreeze: func() error {
		_, err := s.Get(info.ID)
		_, lerr := s.List("e-test")
		_, verr := s.Verify(t.Context(), info.ID)
		looked++
		return errors.Join(err, lerr, verr, s.Export(t.Context(), info.ID, &bytes.Buffer{}))
	}})
	if looked != 1 {
		t.Error("the capture did not freeze")
	}
}

func TestManyHardLinkedDirectoriesNeedFewDescriptors(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "store/file"), random(1, 10_000))
	old := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	for i := range 600 {
		d := filepath.Join(dir, fmt.Sprintf("a/d%d", i))
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.Link(filepath.Join(dir, "store/file"), filepath.Join(d, "linked")))
		must(t, os.Link(filepath.Join(dir, "store/file"), filepath.Join(d, "again")))
		must(t, os.Chtimes(d, old, old))
	}
	info := capture1(t, s, source(dir), &recorder{})
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	few := lim
	few.Cur = uint64(openFDs(t) + 200)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	got := t.TempDir()
	_, err := s.Restore(t.Context(), info.ID, map[string]string{"upper": got}, env.IDRange{})
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lim))
	must(t, err)
	wantSameTree(t, dir, got)
}

func TestManyPacksNeedFewDescriptors(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	var last ID
	for i := range maxOpenPacks + 40 { // a pack each
		write(t, filepath.Join(dir, fmt.Sprint(i)), random(uint64(i), 1000))
		last = capture1(t, s, source(dir), &recorder{}).ID
	}
	before, most := openFDs(t), 0
	err := s.withSnapshot(last, func(_ *lineageDir, ref *refRecord, x *index) error {
		r := x.newReader(s.comp)
		return newTracer(t.Context(), r, func(kind recordKind, id chunkID, _ uint64) error {
			_, err := r.read(id, kind)
			most = max(most, openFDs(t)-before)
			return err
		}).snapshot(ref)
	})
	must(t, err)
	if most > maxOpenPacks+10 || most < maxOpenPacks {
		t.Errorf("%d descriptors", most)
	}
	if now := openFDs(t); now != before {
		t.Errorf("%d descriptors leaked", now-before)
	}
	wantSameTree(t, dir, restore1(t, s, last))
}

func TestALeaseHoldsACaptureUpForAMomentOnly(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "leased"), []byte("x"))
	f, err := os.OpenFile(filepath.Join(dir, "leased"), os.O_RDONLY, 0)
	must(t, err)
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no leases on this file system: %v", err)
	}
	start := time.Now()
	_, err = s.Capture(t.Context(), source(dir), &recorder{})
	if took := time.Since(start); !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "lease") || took > 10*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	must(t, err)
	capture1(t, s, source(dir), &recorder{})
}

func TestALongCopyInTheFreezeEndsWithIt(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "src"), random(1, 32<<20))
	src, err := os.Open(filepath.Join(dir, "src"))
	must(t, err)
	defer src.Close()
	dst, err := os.Create(filepath.Join(dir, "dst"))
	must(t, err)
	defer dst.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"in the kernel": copyRange(ctx, int(dst.Fd()), 0, int(src.Fd()), 0, 32<<20),
		"through here":  copyBytes(ctx, int(dst.Fd()), 0, int(src.Fd()), 0, 32<<20),
		"written back":  flush(ctx, int(src.Fd()), 1<<40),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if info, err := dst.Stat(); err != nil || info.Size() > copyStep {
		t.Errorf("copied %d bytes, %v", info.Size(), err)
	}
}

func TestSmallFilesAreOneChunk(t *testing.T) {
	k := testKeys(t)
	data := random(7, wholeFile)
	for size := chunkMin; size <= wholeFile; size += 4096 {
		for off := 0; off+size <= len(data); off += 8192 {
			piece := data[off : off+size]
			if got := k.gear.cutterFor(int64(size), piece)(piece); got != size {
				t.Fatalf("a file of %d bytes is cut at %d", size, got)
			}
		}
	}
}

func TestAZeroRecordThatSaysItIsCompressedIsRefused(t *testing.T) {
	b := appendRecord(nil, location{kind: kindData, codec: codecZstd}, []byte{1, 2, 3})
	if _, _, err := decodeRecord(b, packHeaderLen); !errors.Is(err, env.ErrCorrupt) {
		t.Errorf("error = %v", err)
	}
}
