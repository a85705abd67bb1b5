package snapshot

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestATreeComesBackAsItWas(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "empty"), nil)
	write(t, filepath.Join(dir, "a/b/c/deep"), []byte("deep"))
	write(t, filepath.Join(dir, "big"), random(1, 3<<20))
	write(t, filepath.Join(dir, "text"), text(1, 200_000))
	must(t, os.Symlink("../nowhere", filepath.Join(dir, "a/link")))
	for i := range 1000 {
		write(t, filepath.Join(dir, "many", strconv.Itoa(i)), text(uint64(i), i))
	}
	info := capture1(t, s, source(dir), &recorder{})
	if info.Files < 1008 || info.Bytes < 3<<20 || info.NewBytes < 3<<20 {
		t.Errorf("info = %+v", info)
	}
	wantSameTree(t, dir, restore1(t, s, info.ID))
	if _, err := s.Verify(t.Context(), info.ID); err != nil {
		t.Error(err)
	}
}
