package detect

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// source is a ring of records. read blocks until one is there; it is valid
// until the next call. close makes read fail.
type source struct {
	name   string
	handle func(record []byte)
	read   func() ([]byte, error)
	close  func() error
}

// workers answer findings. Freezing takes well under a millisecond; a response
// that hangs holds up one of them.
const workers = 4

// tick is how often budgets are looked at and old things forgotten.
const tick = time.Second

// Run consumes events until ctx ends or a source fails; findings that are made
// by then are answered. It may be called once. Bind the slots that exist
// before: records of slots that are not bound are dropped and counted.
func (e *Engine) Run(ctx context.Context) error {
	srcs, err := e.sources()
	if err != nil {
		return fmt.Errorf("open event rings: %w", err)
	}
	var answering sync.WaitGroup
	for range workers {
		answering.Go(func() {
			for f := range e.queue {
				e.answer(ctx, f)
			}
		})
	}
	group, running := errgroup.WithContext(ctx)
	for _, s := range srcs {
		stop := context.AfterFunc(running, func() { _ = s.close() })
		group.Go(func() error {
			defer stop()
			defer func() { _ = s.close() }()
			return consume(running, s)
		})
	}
	group.Go(func() error { return e.keep(running) })
	err = group.Wait()
	close(e.queue)
	answering.Wait()
	return err
}

func consume(ctx context.Context, s source) error {
	for {
		record, err := s.read()
		if err == nil {
			s.handle(record)
			continue
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the ring was closed because the end has come
		}
		return fmt.Errorf("read %s ring: %w", s.name, err)
	}
}

// keep does what is due from time to time.
func (e *Engine) keep(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			e.checkBudgets()
			e.desk.sweep(e.mono())
		}
	}
}
