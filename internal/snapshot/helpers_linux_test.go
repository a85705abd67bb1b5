package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hearth/internal/durable"
	"hearth/internal/env"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func openStore(t testing.TB, dir string, fault durable.Fault) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir}, fault, quiet())
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "store"), nil)
}

// recorder is a freezer that does nothing but count, and runs hooks.
type recorder struct {
	freezes, thaws int
	frozen         bool
	onFreeze       func() error
	onThaw         func()
}

func (r *recorder) Freeze(context.Context) error {
	r.freezes++
	r.frozen = true
	if r.onFreeze != nil {
		return r.onFreeze()
	}
	return nil
}

func (r *recorder) Thaw(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.thaws++
	r.frozen = false
	if r.onThaw != nil {
		r.onThaw()
	}
	return nil
}

func source(dir string) Source {
	return Source{Lineage: "e-test", Roots: []Root{{Name: "upper", Path: dir}}}
}

func capture1(t testing.TB, s *Store, src Source, f freezer) Info {
	t.Helper()
	info, err := s.Capture(t.Context(), src, f)
	must(t, err)
	return info
}

func restore1(t testing.TB, s *Store, id ID) string {
	t.Helper()
	dir := t.TempDir()
	_, err := s.Restore(t.Context(), id, map[string]string{"upper": dir}, env.IDRange{})
	must(t, err)
	return dir
}

// describe is a walk of its own, with nothing of the package under test: a line
// for each name. Hard links are told by the first name in order.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	var paths []string
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		paths = append(paths, p)
		return err
	}))
	sort.Strings(paths)
	for _, p := range paths {
		var st syscall.Stat_t
		must(t, syscall.Lstat(p, &st))
		rel, _ := filepath.Rel(root, p)
		line := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			b, err := os.ReadFile(p)
			must(t, err)
			sum := sha256.Sum256(b)
			line += fmt.Sprintf(" %d %s", len(b), hex.EncodeToString(sum[:8]))
		case syscall.S_IFLNK:
			l, err := os.Readlink(p)
			must(t, err)
			line += " -> " + l
		case syscall.S_IFCHR, syscall.S_IFBLK:
			line += fmt.Sprintf(" dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Mode&syscall.S_IFMT != syscall.S_IFDIR && st.Nlink > 1 {
			if f, ok := first[st.Ino]; ok {
				line += " same as " + f
			} else {
				first[st.Ino] = rel
			}
		}
		out[rel] = line + xattrLine(t, p)
	}
	return out
}

func xattrLine(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err == unix.EOPNOTSUPP {
		return ""
	}
	must(t, err)
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	sort.Strings(names)
	var sb strings.Builder
	for _, name := range names {
		n, err := unix.Lgetxattr(p, name, buf)
		must(t, err)
		fmt.Fprintf(&sb, " %s=%x", name, buf[:n])
	}
	return sb.String()
}

func wantSameTree(t testing.TB, want, got string) {
	t.Helper()
	if diff := cmp.Diff(describe(t, want), describe(t, got)); diff != "" {
		t.Fatalf("trees differ (-want +got):\n%s", diff)
	}
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, data, 0o644))
}

func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	words := strings.Fields("func return error package import string if nil for range the a of machine snapshot freeze thaw")
	var sb strings.Builder
	for sb.Len() < n {
		sb.WriteString(words[r.IntN(len(words))])
		sb.WriteByte(" \n"[r.IntN(2)])
	}
	return []byte(sb.String()[:n])
}

// lineageKeys are those of a lineage that exists.
func lineageKeys(t testing.TB, s *Store, name Lineage) *keys {
	t.Helper()
	lin, err := s.openLineage(name)
	must(t, err)
	defer lin.close()
	return lin.keys
}
