package durable

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

func itoa(n int) string { return strconv.Itoa(n) }

// open opens the log and returns what it replayed.
func open(t *testing.T, d *Dir) (*Log, []string) {
	t.Helper()
	l, recs, err := tryOpen(d)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l, recs
}

func tryOpen(d *Dir) (*Log, []string, error) {
	var recs []string
	l, err := d.OpenLog("open", "log", func(rec []byte) error {
		recs = append(recs, string(rec))
		return nil
	})
	return l, recs, err
}

func seq(recs ...string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, r := range recs {
			if !yield([]byte(r)) {
				return
			}
		}
	}
}

func TestLogReplaysWhatWasAppended(t *testing.T) {
	d := testDir(t, nil)
	l, recs := open(t, d)
	if len(recs) != 0 {
		t.Fatalf("a new log has %q", recs)
	}
	want := []string{"one", "", strings.Repeat("x", MaxRecord)}
	for _, r := range want {
		must(t, l.Append("a", []byte(r)))
	}
	must(t, l.Sync("s"))
	must(t, l.Close())
	l, recs = open(t, d)
	if !slices.Equal(recs, want) {
		t.Errorf("replayed %d records", len(recs))
	}
	if l.Torn() != 0 {
		t.Errorf("torn = %d", l.Torn())
	}
	wantErr(t, l.Append("a", make([]byte, MaxRecord+1)), env.ErrInvalid)
}

func TestLogCutsATornTailWhereverItIsTorn(t *testing.T) {
	d := testDir(t, nil)
	l, _ := open(t, d)
	must(t, l.Append("a", []byte("first")))
	keep := l.Size()
	must(t, l.Append("a", []byte("second")))
	must(t, l.Close())
	whole, err := os.ReadFile(l.Path())
	must(t, err)
	for cut := keep; cut < int64(len(whole)); cut++ {
		for _, tail := range [][]byte{nil, make([]byte, 5000), bytes.Repeat([]byte{0xff}, 77)} {
			must(t, os.WriteFile(l.Path(), append(slices.Clone(whole[:cut]), tail...), 0o600))
			l, recs := open(t, d)
			if diff := cmp.Diff([]string{"first"}, recs); diff != "" {
				t.Fatalf("cut at %d: %s", cut, diff)
			}
			if want := cut - keep + int64(len(tail)); l.Torn() != want {
				t.Errorf("cut at %d: torn = %d, want %d", cut, l.Torn(), want)
			}
			must(t, l.Append("a", []byte("third")))
			must(t, l.Close())
			if _, recs := open(t, d); !slices.Equal(recs, []string{"first", "third"}) {
				t.Fatalf("cut at %d: then %q", cut, recs)
			}
		}
	}
}

func TestLogNamesTheOffsetOfADamagedMiddle(t *testing.T) {
	d := testDir(t, nil)
	l, _ := open(t, d)
	must(t, l.Append("a", []byte("first")))
	from := l.Size()
	must(t, l.Append("a", []byte("second")))
	to := l.Size()
	must(t, l.Append("a", make([]byte, 300<<10))) // zeros that a search must not skip over
	must(t, l.Append("a", []byte("last")))
	must(t, l.Close())
	whole, err := os.ReadFile(l.Path())
	must(t, err)
	for o := from; o < to; o++ {
		bad := slices.Clone(whole)
		bad[o] ^= 0x10
		must(t, os.WriteFile(l.Path(), bad, 0o600))
		_, _, err := tryOpen(d)
		wantErr(t, err, env.ErrCorrupt)
		if want := fmt.Sprintf("offset %d:", from); !strings.Contains(err.Error(), want) {
			t.Fatalf("byte %d: %v does not say %q", o, err, want)
		}
		if now, _ := os.ReadFile(l.Path()); !bytes.Equal(now, bad) {
			t.Fatal("a damaged log was changed")
		}
	}
}

func TestLogIsNotFooledByAPayloadThatImitatesARecord(t *testing.T) {
	d := testDir(t, nil)
	l, _ := open(t, d)
	must(t, l.Append("a", []byte("good")))
	// The writer of the payload knows everything but the place.
	fake := appendRecord(nil, l.salt, 4096, []byte("fake"))
	must(t, l.Append("a", append(fake, make([]byte, 50)...)))
	must(t, l.Close())
	must(t, os.Truncate(l.Path(), l.Size()-5))
	l, recs := open(t, d)
	if !slices.Equal(recs, []string{"good"}) || l.Torn() == 0 {
		t.Errorf("replayed %q, torn %d", recs, l.Torn())
	}
}

func TestLogRefusesForeignAndNewerFiles(t *testing.T) {
	d := testDir(t, nil)
	newer := encodeLogHeader(7)
	newer[8] = 9
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":   {nil, env.ErrCorrupt},
		"foreign": {bytes.Repeat([]byte("x"), 100), env.ErrCorrupt},
		"newer":   {newer, env.ErrUnsupported},
	} {
		must(t, d.WriteFile("w", "log", c.data, 0o600))
		_, _, err := tryOpen(d)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestAFaultInAppendLeavesTheLogUsable(t *testing.T) {
	f := &failAt{step: "bad:write"}
	d := testDir(t, f.fault)
	l, _ := open(t, d)
	wantErr(t, l.Append("bad", []byte("x")), errInjected)
	must(t, l.Append("good", []byte("y")))
	must(t, l.Close())
	if _, recs := open(t, d); !slices.Equal(recs, []string{"y"}) {
		t.Errorf("replayed %q", recs)
	}
}

func TestALogWhoseFileFailsRefusesEverything(t *testing.T) {
	d := testDir(t, nil)
	l, _ := open(t, d)
	must(t, l.f.Close()) // every system call fails now, the undo too
	if err := l.Append("a", []byte("x")); err == nil {
		t.Fatal("append to a closed file succeeded")
	}
	wantErr(t, l.Append("a", []byte("y")), env.ErrUnavailable)
	wantErr(t, l.Sync("s"), env.ErrUnavailable)
	wantErr(t, l.Rewrite("r", seq()), env.ErrUnavailable)
}

func TestALogWhoseSyncFailedRefusesEverything(t *testing.T) {
	d := testDir(t, nil)
	l, _ := open(t, d)
	must(t, l.Append("a", []byte("x")))
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	old := l.f
	l.f = w // fdatasync of a pipe is EINVAL
	if err := l.Sync("s"); err == nil {
		t.Fatal("sync of a pipe succeeded")
	}
	l.f = old
	wantErr(t, l.Append("a", []byte("y")), env.ErrUnavailable)
}

func TestRewriteReplacesAllRecordsOrNone(t *testing.T) {
	for _, step := range []string{"", "r:write", "r:sync", "r:rename"} {
		f := &failAt{step: step}
		d := testDir(t, f.fault)
		l, _ := open(t, d)
		must(t, l.Append("a", []byte("old")))
		before := l.Size()
		err := l.Rewrite("r", seq("new1", "new2"))
		want := []string{"new1", "new2", "more"}
		if step != "" {
			wantErr(t, err, errInjected)
			want = []string{"old", "more"}
			if l.Size() != before {
				t.Errorf("%s: size = %d", step, l.Size())
			}
		} else {
			must(t, err)
		}
		must(t, l.Append("a", []byte("more")))
		must(t, l.Close())
		if _, recs := open(t, d); !slices.Equal(recs, want) {
			t.Errorf("%q: replayed %q, want %q", step, recs, want)
		}
	}
}

func TestRewriteThatWasNotSyncedRefusesEverything(t *testing.T) {
	f := &failAt{step: "r:syncdir"}
	d := testDir(t, f.fault)
	l, _ := open(t, d)
	must(t, l.Append("a", []byte("old")))
	wantErr(t, l.Rewrite("r", seq("new")), env.ErrUnavailable)
	wantErr(t, l.Append("a", []byte("more")), env.ErrUnavailable)
	must(t, l.Close())
	if _, recs := open(t, d); !slices.Equal(recs, []string{"new"}) {
		t.Errorf("replayed %q", recs)
	}
}

func TestLogServesAppendSyncAndRewriteAtOnce(t *testing.T) {
	d := testDir(t, nil)
	l, _ := open(t, d)
	const writers, each = 4, 100
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := l.Append("a", fmt.Appendf(nil, "%d-%d", w, i)); err != nil {
					t.Error(err)
				}
				if i%10 == 0 {
					if err := l.Sync("s"); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	must(t, l.Close())
	if _, recs := open(t, d); len(recs) != writers*each {
		t.Errorf("%d records", len(recs))
	}
}

func TestVisitsErrorStopsTheReplayAndKeepsTheFile(t *testing.T) {
	d := testDir(t, nil)
	l, _ := open(t, d)
	must(t, l.Append("a", []byte("x")))
	must(t, l.Close())
	_, err := d.OpenLog("open", "log", func([]byte) error { return errInjected })
	wantErr(t, err, errInjected)
	if _, recs := open(t, d); len(recs) != 1 {
		t.Errorf("replayed %q", recs)
	}
}

func FuzzReplay(f *testing.F) {
	var good []byte
	good = append(good, encodeLogHeader(42)...)
	for _, r := range []string{"a", "", "a longer record"} {
		good = appendRecord(good, 42, int64(len(good)), []byte(r))
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add(append(slices.Clone(good), make([]byte, 100)...))
	f.Add(encodeLogHeader(1))
	f.Fuzz(func(t *testing.T, data []byte) {
		salt, err := decodeLogHeader(data)
		if err != nil {
			return
		}
		again := encodeLogHeader(salt)
		end, err := replay(data, salt, func(rec []byte) error {
			again = appendRecord(again, salt, int64(len(again)), rec)
			return nil
		})
		if end < logHeaderLen || end > int64(len(data)) {
			t.Fatalf("end = %d of %d", end, len(data))
		}
		if err == nil && !bytes.Equal(again, data[:end]) {
			t.Fatal("what was replayed does not encode to what was read")
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	d, err := OpenDir(filepath.Join(b.TempDir(), "state"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	l, err := d.OpenLog("open", "log", func([]byte) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	rec := make([]byte, 300)
	for b.Loop() {
		if l.Size() > MaxLog-1000 {
			if err := l.Rewrite("r", seq()); err != nil {
				b.Fatal(err)
			}
		}
		if err := l.Append("a", rec); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendSync(b *testing.B) {
	d, err := OpenDir(filepath.Join(b.TempDir(), "state"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	l, err := d.OpenLog("open", "log", func([]byte) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	rec := make([]byte, 300)
	for b.Loop() {
		if err := errors.Join(l.Append("a", rec), l.Sync("s")); err != nil {
			b.Fatal(err)
		}
	}
}
