package agentlink

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"hearth/internal/durable"
	"hearth/internal/env"
)

func epochOf(t *testing.T, dir *durable.Dir) *epoch {
	t.Helper()
	e, err := loadEpoch(slog.New(slog.DiscardHandler), dir)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestALowerEpochIsRefusedOverRestarts(t *testing.T) {
	dir := openDir(t)
	e := epochOf(t, dir)
	for _, n := range []uint64{3, 3, 7, 7} {
		if err := e.obey(n); err != nil {
			t.Errorf("epoch %d: %v", n, err)
		}
	}
	for _, e := range []*epoch{e, epochOf(t, dir)} {
		err := e.obey(6)
		if !errors.Is(err, env.ErrSuperseded) || !errors.Is(err, env.ErrFenced) {
			t.Errorf("epoch 6 after 7: %v", err)
		}
		if err := e.obey(7); err != nil {
			t.Error(err)
		}
	}
}

func TestConcurrentEpochsLeaveTheHighest(t *testing.T) {
	dir := openDir(t)
	e := epochOf(t, dir)
	var wg sync.WaitGroup
	for n := range uint64(20) {
		wg.Go(func() { _ = e.obey(n) })
	}
	wg.Wait()
	if got := epochOf(t, dir).highest; got != 19 {
		t.Errorf("kept %d", got)
	}
}

func TestAFullDiskDoesNotCutANodeOff(t *testing.T) {
	full := true
	dir, err := durable.OpenDir(t.TempDir(), func(op string) error {
		if full && op == "controller-epoch:write" {
			return env.ErrExhausted
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	e := epochOf(t, dir)
	if err := e.obey(5); err != nil {
		t.Error(err)
	}
	if err := e.obey(4); !errors.Is(err, env.ErrSuperseded) {
		t.Errorf("epoch 4 after 5: %v", err)
	}
	full = false
	if err := e.obey(5); err != nil {
		t.Error(err)
	}
	if got := epochOf(t, dir).highest; got != 5 {
		t.Errorf("kept %d once there was room", got)
	}
}

func TestADamagedEpochIsNamed(t *testing.T) {
	dir := openDir(t)
	if err := os.WriteFile(filepath.Join(dir.Path(), epochFile), []byte("seven"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadEpoch(slog.New(slog.DiscardHandler), dir); !errors.Is(err, env.ErrCorrupt) {
		t.Errorf("error = %v", err)
	}
}
