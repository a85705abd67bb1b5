package snapshot

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

// An environment may go on with one of its trees only, on another image. Its next
// snapshot is of what it has then, though names, sizes and times are as before.
func TestALineageGoesOnWithSomeOfItsTreesOnAnotherImage(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	in := func(name string) string {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(path, 0o755))
		return path
	}
	src := func(upper, workspace, base string) Source {
		return Source{Lineage: "e-test", Base: base, Roots: []Root{{Name: "upper", Path: upper}, {Name: "workspace", Path: workspace}}}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	put := func(path string, data []byte) {
		write(t, path, data)
		must(t, os.Chtimes(path, at, at))
	}
	upper, workspace := in("upper1"), in("workspace1")
	put(filepath.Join(upper, "etc/release"), []byte("one"))
	put(filepath.Join(upper, "usr/old"), random(1, 100_000))
	put(filepath.Join(workspace, "work"), random(2, 200_000))
	first := capture1(t, s, src(upper, workspace, "sha256:one"), &recorder{})
	wantUpper, wantWorkspace := describe(t, upper), describe(t, workspace)

	next, carried := in("upper2"), in("workspace2")
	_, err := s.Restore(t.Context(), first.ID, map[string]string{"upper": "", "workspace": carried}, env.IDRange{})
	must(t, err)
	if diff := cmp.Diff(wantWorkspace, describe(t, carried)); diff != "" {
		t.Fatalf("what was carried over (-want +got):\n%s", diff)
	}
	must(t, os.RemoveAll(upper)) // its inodes are free for others
	must(t, os.RemoveAll(workspace))
	put(filepath.Join(next, "etc/release"), []byte("two"))
	put(filepath.Join(next, "usr/new"), random(3, 100_000))
	second := capture1(t, s, src(next, carried, "sha256:two"), &recorder{})
	if second.Base != "sha256:two" || second.Parent != first.ID {
		t.Errorf("the next snapshot lies on %s, after %s", second.Base, second.Parent)
	}
	if second.NewBytes > 150_000 {
		t.Errorf("%d bytes are new, though the workspace was stored before", second.NewBytes)
	}
	for id, want := range map[ID][2]map[string]string{
		first.ID: {wantUpper, wantWorkspace}, second.ID: {describe(t, next), describe(t, carried)},
	} {
		a, b := t.TempDir(), t.TempDir()
		_, err := s.Restore(t.Context(), id, map[string]string{"upper": a, "workspace": b}, env.IDRange{})
		must(t, err)
		if diff := cmp.Diff(want, [2]map[string]string{describe(t, a), describe(t, b)}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id, diff)
		}
	}
}
