package agentlink

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"

	"hearth/internal/durable"
	"hearth/internal/env"
)

const epochFile = "controller-epoch"

// epoch is the highest that was obeyed, over restarts too.
type epoch struct {
	log *slog.Logger
	dir *durable.Dir

	mu      sync.Mutex // guards highest
	highest uint64

	writing sync.Mutex // guards the file and written, its content
	written uint64
}

func loadEpoch(log *slog.Logger, dir *durable.Dir) (*epoch, error) {
	e := &epoch{log: log, dir: dir}
	raw, err := dir.ReadFile(epochFile, maxFile)
	if errors.Is(err, env.ErrNotFound) {
		return e, nil
	}
	if err != nil {
		return nil, err
	}
	if e.highest, err = strconv.ParseUint(string(raw), 10, 64); err != nil {
		return nil, fmt.Errorf("%w: %s: %.32q is no number", env.ErrCorrupt, e.path(), raw)
	}
	e.written = e.highest
	return e, nil
}

func (e *epoch) path() string { return filepath.Join(e.dir.Path(), epochFile) }

// obey refuses an epoch that is lower than one seen before.
func (e *epoch) obey(epoch uint64) error {
	e.mu.Lock()
	have := e.highest
	e.highest = max(have, epoch)
	e.mu.Unlock()
	if epoch < have {
		return fmt.Errorf("%w: controller has epoch %d, a later one had %d; if its state was restored from a copy, remove %s and restart the agent",
			env.ErrSuperseded, epoch, have, e.path())
	}
	e.keep(epoch)
	return nil
}

// forget begins anew: epochs are counted by one authority's controllers, and this
// agent goes over to another's, whose calls alone will reach it.
func (e *epoch) forget() error {
	e.writing.Lock()
	defer e.writing.Unlock()
	if err := e.dir.Remove("controller-epoch", epochFile); err != nil {
		return err
	}
	e.written = 0
	e.mu.Lock()
	e.highest = 0
	e.mu.Unlock()
	return nil
}

// keep makes the epoch durable before the controller is obeyed. A disk that is
// full must not cut a node off from its controller: then it is kept in memory,
// and written by a later call.
func (e *epoch) keep(epoch uint64) {
	e.writing.Lock()
	defer e.writing.Unlock()
	if epoch <= e.written {
		return
	}
	if err := e.dir.WriteFile("controller-epoch", epochFile, strconv.AppendUint(nil, epoch, 10), 0o600); err != nil {
		e.log.Warn("controller epoch not kept", "file", e.path(), "epoch", epoch, "error", err)
		return
	}
	e.written = epoch
}
