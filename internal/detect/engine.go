package detect

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hearth/internal/detect/flow"
	"hearth/internal/detect/rules"
	"hearth/internal/env"
)

// kernel is the part of the sensors that the engine needs between events.
type kernel interface {
	watch(s Subject) error
	unwatch(cgroup uint64) error
	// counts is what became of a slot's events since watch, by sensor.
	counts(cgroup uint64) (sensorCounts, error)
	// owner is the process that connected the flow, as seen at the connect.
	owner(k flow.Key) (Owner, bool)
	// holders are the processes that have the flow's socket open now.
	holders(k flow.Key) ([]Owner, error)
	close() error
}

// The sensors, as indexes of sensorCounts.
const (
	sensorExec = iota
	sensorConnect
	sensors
)

var sensorNames = [sensors]string{"exec", "connect"}

// fates are what can become of a sensor's event.
type fates struct{ emitted, shed, lost uint64 }

type sensorCounts [sensors]fates

// Engine is the node's detection. It is safe for concurrent use.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	set      atomic.Pointer[rules.Set]
	reload   sync.Mutex // serialises Reload
	subjects *subjects
	desk     *desk
	queue    chan finding
	recent   *recent
	kernel   kernel
	sources  func() ([]source, error)
	mono     func() time.Duration // CLOCK_MONOTONIC
	metrics  *metrics
	budget   budgetWatch
	events   sync.Mutex // one event line at a time

	// flows is the payload source's own; only its goroutine touches it.
	flows   *flow.Table
	evicted atomic.Uint64 // of flows, for the metrics
	expired time.Duration // when idle flows were last forgotten
}

// queueLen is far above slots × rules that can be news at once on a node.
const queueLen = 8192

func newEngine(cfg Config, k kernel, sources func() ([]source, error), mono func() time.Duration, log *slog.Logger) (*Engine, error) {
	if cfg.Respond == nil {
		return nil, fmt.Errorf("open detection: %w: Respond is needed", env.ErrInvalid)
	}
	if cfg.Window == 0 {
		cfg.Window = time.Minute
	}
	if cfg.Recent == 0 {
		cfg.Recent = 1024
	}
	set, err := rules.Load(layers(cfg.Rules)...)
	if err != nil {
		return nil, fmt.Errorf("load rules: %w", err)
	}
	e := &Engine{
		cfg: cfg, log: log, kernel: k, sources: sources, mono: mono,
		subjects: newSubjects(),
		desk:     &desk{window: cfg.Window, cases: map[caseKey]*openCase{}},
		queue:    make(chan finding, queueLen),
		recent:   newRecent(cfg.Recent),
		flows:    flow.NewTable(flow.Limits{}),
	}
	e.set.Store(set)
	e.metrics = newMetrics(e)
	return e, nil
}

func layers(operator []fs.FS) []fs.FS {
	return append([]fs.FS{rules.Builtin()}, operator...)
}

// Bind watches a slot. Do it before the slot's first process starts: what
// happened before is not seen. A slot, net id or cgroup that is bound already
// is env.ErrExists.
func (e *Engine) Bind(s Subject) error {
	if err := e.subjects.add(s); err != nil {
		return err
	}
	if err := e.kernel.watch(s); err != nil {
		e.subjects.remove(s.Slot)
		return fmt.Errorf("bind slot %s: %w", s.Slot, err)
	}
	return nil
}

// Claimed says which environment a bound slot has become. Detections from now
// on name it.
func (e *Engine) Claimed(slot env.SlotID, id env.ID) { e.subjects.claimed(slot, id) }

// Unbind stops watching a slot; unknown slots are ignored.
func (e *Engine) Unbind(slot env.SlotID) {
	b, ok := e.subjects.remove(slot)
	if !ok {
		return
	}
	e.desk.forget(slot)
	e.lastCounts(b)
	if err := e.kernel.unwatch(b.CgroupID); err != nil {
		e.log.Warn("slot not removed from the sensors", "slot", slot, "error", err)
	}
}

// Reload reads the rules again. On an error the old set goes on, and the error
// says what is wrong with the new one.
func (e *Engine) Reload(ctx context.Context) error {
	e.reload.Lock()
	defer e.reload.Unlock()
	set, err := rules.Load(layers(e.cfg.Rules)...)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		e.metrics.reloads.WithLabelValues("refused").Inc()
		return fmt.Errorf("reload rules: %w", err)
	}
	e.set.Store(set)
	e.metrics.reloads.WithLabelValues("done").Inc()
	e.log.Info("rules reloaded", "rules", len(set.Rules()))
	return nil
}

// Rules is the set in force.
func (e *Engine) Rules() *rules.Set { return e.set.Load() }

// Recent returns the last n detections, the newest last; n ≤ 0 means all that
// are kept.
func (e *Engine) Recent(n int) []env.Detection { return e.recent.last(n) }

// Subscribe sends every detection made from now on until ctx ends, then closes
// the channel. A subscriber that does not keep up loses detections, counted.
func (e *Engine) Subscribe(ctx context.Context) <-chan env.Detection { return e.recent.subscribe(ctx) }

// Owner names the process behind a TCP flow of an island, if it can be named.
// It may walk the node's open files, which takes milliseconds.
func (e *Engine) Owner(k flow.Key) (Owner, bool) {
	if o, ok := e.kernel.owner(k); ok {
		return o, true
	}
	holders, err := e.kernel.holders(k)
	if err != nil || len(holders) == 0 {
		return Owner{}, false
	}
	return holders[0], true
}

// Close unloads the sensors. Run must have returned.
func (e *Engine) Close() error {
	if err := e.kernel.close(); err != nil {
		return fmt.Errorf("close sensors: %w", err)
	}
	return nil
}

// report takes a finding to the desk and, if it is news, to the workers.
func (e *Engine) report(f finding) {
	if !e.desk.receive(f.subject.Slot, f.rule, e.mono()) {
		e.metrics.repeats.WithLabelValues(f.rule).Inc()
		return
	}
	select {
	case e.queue <- f:
	default:
		e.desk.abandon(f.subject.Slot, f.rule)
		e.metrics.drops.WithLabelValues("finding", "queue").Inc()
	}
}
