package snapshot

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAChainOfForksMayBeAsLongAsItLikes(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), random(1, 100_000))
	last := capture1(t, s, acmeSource(dir), &recorder{}).ID
	copied := 0
	for i := range 2*maxBorrow + 10 {
		info, err := s.Fork(t.Context(), last, Lineage(fmt.Sprintf("e-%d", i)), acme)
		must(t, err)
		if info.NewBytes > 0 {
			copied++
		}
		last = info.ID
	}
	if want := (2*maxBorrow + 10) / (copyBorrow + 1); copied != want {
		t.Errorf("%d copies, want %d", copied, want)
	}
	wantSameTree(t, dir, restore1(t, s, last))
	src := acmeSource(dir)
	src.Lineage, _, _ = ParseID(string(last))
	if info := capture1(t, s, src, &recorder{}); info.NewBytes > 10_000 {
		t.Errorf("the copy is stored again: %+v", info)
	}
	// A copy holds nobody.
	must(t, s.Delete("e-15"))
}

func TestAForkThatFailsLeavesNoChildAndNoPin(t *testing.T) {
	fail, injected := "", errors.New("injected")
	dir := t.TempDir()
	s := openStore(t, filepath.Join(t.TempDir(), "store"), func(op string) error {
		if op == fail {
			return injected
		}
		return nil
	})
	write(t, filepath.Join(dir, "f"), random(1, 100_000))
	parent := capture1(t, s, acmeSource(dir), &recorder{}).ID
	deep := parent
	for i := range copyBorrow {
		info, err := s.Fork(t.Context(), deep, Lineage(fmt.Sprintf("e-%d", i)), acme)
		must(t, err)
		deep = info.ID
	}
	want := describe(t, s.lin.Path())
	for _, from := range []ID{parent, deep} {
		for _, step := range []string{"pin:write", "pin:syncdir", "lineage:mkdir", "lineage:syncdir", "owner:sync", "borrow:rename", "pack:sync", "index:write", "ref:write", "ref:link"} {
			copies := from == deep
			if copies && (strings.HasPrefix(step, "pin") || strings.HasPrefix(step, "borrow")) || !copies && (strings.HasPrefix(step, "pack") || strings.HasPrefix(step, "index")) {
				continue
			}
			fail = step
			if _, err := s.Fork(t.Context(), from, "e-child", acme); !errors.Is(err, injected) {
				t.Fatalf("%s: %v", step, err)
			}
			fail = ""
			got := describe(t, s.lin.Path())
			for _, m := range []map[string]string{got, want} {
				for name, line := range m {
					if strings.HasPrefix(line, "4") {
						m[name] = "directory"
					}
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s: %s", step, diff)
			}
		}
	}
}
