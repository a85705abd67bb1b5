package agentlink

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/durable"
)

func openDir(t testing.TB) *durable.Dir {
	t.Helper()
	d, err := durable.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

const thisBoot = "9b1c6a3e-0d5f-4a57-8f51-3f1d2c6c0a11"

func TestTheRecordOutlivesTheAgentNotTheBoot(t *testing.T) {
	cases := map[string]struct {
		boot  string
		now   time.Duration
		spoil func([]byte) []byte
		want  Lease
	}{
		"same boot":              {thisBoot, time.Hour, nil, Lease{Last: 10 * time.Minute, FenceAfter: time.Minute}},
		"another boot":           {"other", time.Second, nil, Lease{Last: time.Second, FenceAfter: time.Minute}},
		"a boot id given twice":  {thisBoot, time.Second, nil, Lease{Last: time.Second, FenceAfter: time.Minute}},
		"one bit is wrong":       {thisBoot, time.Hour, func(b []byte) []byte { b[50] ^= 1; return b }, Lease{Last: time.Hour, FenceAfter: defaultFence}},
		"half of it":             {thisBoot, time.Hour, func(b []byte) []byte { return b[:30] }, Lease{Last: time.Hour, FenceAfter: defaultFence}},
		"empty":                  {thisBoot, time.Hour, func([]byte) []byte { return nil }, Lease{Last: time.Hour, FenceAfter: defaultFence}},
		"longer than any record": {thisBoot, time.Hour, func(b []byte) []byte { return append(b, b...) }, Lease{Last: time.Hour, FenceAfter: defaultFence}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir, log := openDir(t), slog.New(slog.DiscardHandler)
			r, l, err := openRecord(log, dir, thisBoot, 7)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Lease{Last: 7}, l); diff != "" {
				t.Errorf("without a record: %s", diff)
			}
			r.write(Lease{Last: 5 * time.Minute, FenceAfter: time.Minute})
			r.write(Lease{Last: 10 * time.Minute, FenceAfter: time.Minute})
			path := filepath.Join(dir.Path(), leaseFile)
			if tc.spoil != nil {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, tc.spoil(b), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, got, err := openRecord(log, dir, tc.boot, tc.now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestALeaseThatCannotBeKeptIsSaidOnce(t *testing.T) {
	dir := openDir(t)
	var logged bytes.Buffer
	r, _, err := openRecord(slog.New(slog.NewTextHandler(&logged, nil)), dir, thisBoot, 0)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "victim")
	if err := os.Symlink(elsewhere, filepath.Join(dir.Path(), leaseFile)); err != nil {
		t.Fatal(err)
	}
	r.write(Lease{Last: 1})
	r.write(Lease{Last: 2})
	if n := strings.Count(logged.String(), "lease not kept"); n != 1 {
		t.Errorf("said %d times:\n%s", n, logged.String())
	}
	if _, err := os.Lstat(elsewhere); !os.IsNotExist(err) {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestSinceBootGoesOn(t *testing.T) {
	a := sinceBoot()
	time.Sleep(2 * time.Millisecond)
	if b := sinceBoot(); a <= 0 || b-a < 2*time.Millisecond {
		t.Errorf("from %s to %s in 2 ms", a, b)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(encodeRecord(thisBoot, Lease{Last: time.Hour, FenceAfter: time.Minute}))
	f.Add([]byte(recordMark))
	f.Fuzz(func(t *testing.T, b []byte) {
		boot, l, err := decodeRecord(b)
		if err != nil {
			return
		}
		if again := encodeRecord(boot, l); !bytes.Equal(again, b) {
			t.Errorf("%x came back as %x", b, again)
		}
	})
}
