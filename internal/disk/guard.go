package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"hearth/internal/env"
)

const (
	// lookEvery is how often the filesystems are looked at.
	lookEvery = 100 * time.Millisecond
	// readEvery is how often counters are read while there is room: as old can
	// be what the first reading of a shortage is compared with.
	readEvery = time.Second
	// complainEvery bounds what a lasting failure writes to the log.
	complainEvery = 10 * time.Second
)

// Config says what is guarded and how.
type Config struct {
	// Paths are where environments' files lie. Those on one filesystem count as
	// one.
	Paths []string
	// KeepFree and KeepFreeFiles are what environments leave of each filesystem.
	KeepFree, KeepFreeFiles Mark
	// Stall freezes a slot. One that it does not find, or that cannot be frozen
	// now, is tried again with the next look if it still writes.
	Stall func(ctx context.Context, slot env.SlotID, why string) error
	// Relieve lets all that Stall has frozen go on. After an error it is called
	// again.
	Relieve func(ctx context.Context) error
}

// kernel counts what cgroups write.
type kernel interface {
	watch(cgroup uint64) error
	unwatch(cgroup uint64) error
	read(cgroup uint64) (Written, error)
	close() error
}

// subject is a watched slot.
type subject struct {
	cgroup uint64
	class  string
}

// Guard watches the disks. It is a prometheus.Collector.
type Guard struct {
	cfg     Config
	kernel  kernel
	statfs  func(path string) (Space, error)
	log     *slog.Logger
	metrics *metrics

	// Run's alone.
	before     map[env.SlotID]Written // the last reading
	readAt     time.Time
	relieved   bool // since the last shortage, or the start, all go on
	complained time.Time

	stalls sync.WaitGroup // calls of Stall under way

	mu       sync.Mutex // guards what follows
	stalling map[env.SlotID]struct{}
	subjects map[env.SlotID]subject
	levels   []level // as last looked at
	short    map[shortKey]bool
}

// shortKey names one level of one filesystem.
type shortKey struct {
	path     string
	resource resource
}

func newGuard(cfg Config, k kernel, statfs func(string) (Space, error), log *slog.Logger) (*Guard, error) {
	g := &Guard{
		cfg: cfg, kernel: k, statfs: statfs, log: log, metrics: newMetrics(),
		stalling: map[env.SlotID]struct{}{}, subjects: map[env.SlotID]subject{}, short: map[shortKey]bool{},
	}
	levels, err := g.look()
	if err != nil {
		return nil, err
	}
	g.note(levels)
	return g, nil
}

// Watch counts what a slot writes from now on.
func (g *Guard) Watch(slot env.SlotID, cgroup uint64, class string) error {
	if err := g.kernel.watch(cgroup); err != nil {
		return fmt.Errorf("watch writes of slot %s: %w", slot, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.subjects[slot] = subject{cgroup, class}
	return nil
}

// Unwatch ends Watch. It may be repeated.
func (g *Guard) Unwatch(slot env.SlotID) {
	g.mu.Lock()
	s, known := g.subjects[slot]
	delete(g.subjects, slot)
	g.mu.Unlock()
	if !known {
		return
	}
	if err := g.kernel.unwatch(s.cgroup); err != nil {
		g.log.Warn("end watch of writes", "slot", slot, "error", err)
	}
}

// Admit reports whether so many bytes, which may be 0, can be written now. The
// error is env.ErrExhausted.
func (g *Guard) Admit(need uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.levels {
		if l.without(need).short(g.short[shortKey{l.path, l.resource}]) {
			return fmt.Errorf("%w: %s", env.ErrExhausted, l)
		}
	}
	return nil
}

// Run guards until ctx ends. What is stalled then stays so.
func (g *Guard) Run(ctx context.Context) error {
	defer g.stalls.Wait()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		g.step(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Close lets go of the kernel's counters.
func (g *Guard) Close() error { return g.kernel.close() }

// step is one look at the disks, and what follows from it.
func (g *Guard) step(ctx context.Context, now time.Time) {
	levels, err := g.look()
	if err != nil {
		g.complain(now, "look at disks", err)
		levels, _ = g.seen()
	}
	paces := g.paces(levels, now)
	for i := range levels {
		levels[i].soon = uint64(total(paces[levels[i].resource]) * lookEvery.Seconds())
	}
	short := g.note(levels)
	if len(short) == 0 {
		if !g.relieved {
			g.relieve(ctx, now)
		}
		return
	}
	g.relieved = false
	for _, l := range short {
		for _, r := range excess(paces[l.resource], l.tolerated()) {
			g.stall(ctx, r, l)
		}
	}
}

// paces ranks the slots by what they take of each resource: with every look while
// something is near its mark, and seldom otherwise, when nobody needs to know.
func (g *Guard) paces(levels []level, now time.Time) map[resource][]rate {
	since := now.Sub(g.readAt)
	if !slices.ContainsFunc(levels, level.near) && since < readEvery {
		return nil
	}
	before := g.before
	after := g.reading(now)
	return map[resource][]rate{bytes: rates(before, after, since, bytes), files: rates(before, after, since, files)}
}

// look asks every filesystem.
func (g *Guard) look() ([]level, error) {
	var out []level
	for _, path := range g.cfg.Paths {
		space, err := g.statfs(path)
		if err != nil {
			return nil, fmt.Errorf("look at the disk of %s: %w", path, err)
		}
		out = append(out, levelsOf(path, space, g.cfg.KeepFree, g.cfg.KeepFreeFiles)...)
	}
	return out, nil
}

// note keeps what was seen, and returns the levels that are short.
func (g *Guard) note(levels []level) (short []level) {
	g.mu.Lock()
	var changed []level
	for _, l := range levels {
		key := shortKey{l.path, l.resource}
		was := g.short[key]
		is := l.short(was)
		if is {
			short = append(short, l)
		}
		if is != was {
			g.short[key] = is
			changed = append(changed, l)
		}
	}
	g.levels = levels
	g.mu.Unlock()
	for _, l := range changed {
		if slices.Contains(short, l) {
			g.log.Warn("disk is short: environments that write are stalled", "path", l.path, "resource", l.resource.String(), "available", l.free, "kept_free", l.keep)
		} else {
			g.log.Info("disk has room again", "path", l.path, "resource", l.resource.String(), "available", l.free, "kept_free", l.keep)
		}
	}
	return short
}

// reading reads all counters.
func (g *Guard) reading(now time.Time) map[env.SlotID]Written {
	g.mu.Lock()
	subjects := maps.Clone(g.subjects)
	g.mu.Unlock()
	out := make(map[env.SlotID]Written, len(subjects))
	for slot, s := range subjects {
		w, err := g.kernel.read(s.cgroup)
		switch {
		case err == nil:
			out[slot] = w
		case !errors.Is(err, env.ErrNotFound): // it ended meanwhile
			g.complain(now, "read what a slot wrote", err)
		}
	}
	g.before, g.readAt = out, now
	return out
}

// stall stalls a slot beside the looks: a process that waits for the disk in the
// kernel is not frozen before that answers, and meanwhile the others write on.
func (g *Guard) stall(ctx context.Context, r rate, l level) {
	g.mu.Lock()
	class := g.subjects[r.slot].class
	_, under := g.stalling[r.slot]
	g.stalling[r.slot] = struct{}{}
	g.mu.Unlock()
	if under {
		return
	}
	g.stalls.Go(func() {
		g.stallNow(ctx, r, l, class)
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.stalling, r.slot)
	})
}

func (g *Guard) stallNow(ctx context.Context, r rate, l level, class string) {
	err := g.cfg.Stall(ctx, r.slot, l.String())
	switch {
	case err == nil:
		g.metrics.stalls.WithLabelValues(class).Inc()
		g.log.Warn("slot stalled: it writes while the disk is short", "slot", r.slot, "class", class,
			"resource", l.resource.String(), "pace", int64(r.pace), "available", l.free)
	case errors.Is(err, env.ErrNotFound), errors.Is(err, env.ErrState): // the next look will tell
		g.log.Debug("slot not stalled", "slot", r.slot, "error", err)
	default:
		g.metrics.failures.Inc()
		g.log.Error("stall slot", "slot", r.slot, "error", err)
	}
}

func (g *Guard) relieve(ctx context.Context, now time.Time) {
	if err := g.cfg.Relieve(ctx); err != nil {
		g.complain(now, "let stalled environments go on", err)
		return
	}
	g.relieved = true
}

// complain logs an error, but a lasting one not with every look.
func (g *Guard) complain(now time.Time, what string, err error) {
	g.metrics.failures.Inc()
	if now.Sub(g.complained) >= complainEvery {
		g.complained = now
		g.log.Error("disk guard", "step", what, "error", err)
	}
}

// seen is what was last looked at, and whether each is short.
func (g *Guard) seen() ([]level, map[shortKey]bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.levels), maps.Clone(g.short)
}
