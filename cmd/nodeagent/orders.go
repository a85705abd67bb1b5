package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"hearth/internal/cgroups"
	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/warm"
)

// orders keeps what a controller wants of the node as a whole: its classes and
// its budget. Both outlive the agent, so that it restarts without a controller.
type orders struct {
	cfg  config.Agent
	dir  *durable.Dir
	log  *slog.Logger
	node *warm.Node    // once it is open
	tree *cgroups.Tree // likewise
	wake chan struct{} // capacity 1: the budget has changed

	mu       sync.Mutex // guards all below, and the order of what is written
	closed   bool       // a successor writes now
	revision string     // of the classes that the controller gave; empty without
	budget   budget
}

// budget is a controller's, as it is kept. Zero is the configuration's.
type budget struct {
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	CPUMillis   int64 `json:"cpuMillis,omitempty"`
}

// classSet is a controller's set of classes, as it is kept.
type classSet struct {
	Revision  string            `json:"revision"`
	Manifests []json.RawMessage `json:"manifests"`
}

const (
	classesFile = "classes.json"
	budgetFile  = "budget.json"
	maxClasses  = 16 << 20 // bytes of classesFile
)

func newOrders(cfg config.Agent, dir *durable.Dir, log *slog.Logger) (*orders, error) {
	o := &orders{cfg: cfg, dir: dir, log: log, wake: make(chan struct{}, 1)}
	raw, err := dir.ReadFile(budgetFile, 4096)
	if errors.Is(err, env.ErrNotFound) {
		return o, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &o.budget)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: budget in %s/%s: %v; remove the file: the controller gives it again", env.ErrCorrupt, dir.Path(), budgetFile, err)
	}
	return o, nil
}

// classes are those that the agent starts with: the controller's, if it has one
// that gave some, else those of classesDir.
func (o *orders) classes() ([]*env.Class, error) {
	if o.cfg.Controller != nil {
		classes, revision, err := o.kept()
		if err == nil {
			o.revision = revision
			return classes, nil
		}
		if !errors.Is(err, env.ErrNotFound) {
			// The controller gives them again; environments and slots keep theirs.
			o.log.Error("classes of the controller are not usable; those of classesDir serve until it gives them again", "error", err)
		}
	}
	list, err := config.LoadClasses(o.cfg.ClassesDir)
	if err != nil && o.cfg.Controller != nil && isMissing(o.cfg.ClassesDir) {
		o.log.Info("no classes yet: the controller gives them", "classes_dir", o.cfg.ClassesDir)
		return nil, nil
	}
	return classesOf(list, o.cfg.Defaults.Complete), err
}

// kept reads the set that the controller gave last.
func (o *orders) kept() ([]*env.Class, string, error) {
	raw, err := o.dir.ReadFile(classesFile, maxClasses)
	if err != nil {
		return nil, "", err
	}
	var set classSet
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, "", fmt.Errorf("%w: %s/%s: %v", env.ErrCorrupt, o.dir.Path(), classesFile, err)
	}
	manifests := make([][]byte, len(set.Manifests))
	for i, m := range set.Manifests {
		manifests[i] = m
	}
	classes, err := o.decode(manifests)
	return classes, set.Revision, err
}

func (o *orders) decode(manifests [][]byte) ([]*env.Class, error) {
	list := make([]env.Class, 0, len(manifests))
	var faults []error
	for _, m := range manifests {
		c, err := config.DecodeClass(m)
		list = append(list, c)
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return classesOf(list, o.cfg.Defaults.Complete), nil
}

// SetClasses implements nodeapi's orders.
func (o *orders) SetClasses(ctx context.Context, revision string, manifests [][]byte) error {
	classes, err := o.decode(manifests)
	if err != nil {
		return err
	}
	set := classSet{Revision: revision, Manifests: make([]json.RawMessage, len(manifests))}
	for i, m := range manifests {
		set.Manifests[i] = m
	}
	raw, err := json.Marshal(set)
	if err != nil {
		return fmt.Errorf("encode classes: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return errHandedOver
	}
	if err := o.node.SetClasses(ctx, classes); err != nil {
		return err
	}
	if err := o.dir.WriteFile("classes", classesFile, raw, 0o600); err != nil {
		return err // they are in force until a restart; the controller tries again
	}
	o.revision = revision
	o.log.Info("classes given by the controller", "revision", revision, "classes", len(classes))
	return nil
}

// ClassesRevision implements nodeapi's orders.
func (o *orders) ClassesRevision() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.revision
}

// reload reads classesDir again, unless a controller gives the classes.
func (o *orders) reload(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.revision != "" {
		return nil
	}
	list, err := config.LoadClasses(o.cfg.ClassesDir)
	if err != nil {
		return err
	}
	return o.node.SetClasses(ctx, classesOf(list, o.cfg.Defaults.Complete))
}

// maxBudget keeps sums of budgets inside of 64 bits.
const maxBudget = 1 << 50

// SetBudget implements nodeapi's orders.
func (o *orders) SetBudget(_ context.Context, memoryBytes, cpuMillis uint64) error {
	if memoryBytes > maxBudget || cpuMillis > maxBudget {
		return fmt.Errorf("%w: budget of %d bytes and %d thousandths of a CPU", env.ErrInvalid, memoryBytes, cpuMillis)
	}
	b := budget{MemoryBytes: int64(memoryBytes), CPUMillis: int64(cpuMillis)}
	raw, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("encode budget: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return errHandedOver
	case o.budget == b:
		return nil
	}
	if err := o.dir.WriteFile("budget", budgetFile, raw, 0o600); err != nil {
		return err
	}
	o.budget = b
	o.node.SetMemory(o.memoryLocked())
	o.log.Info("budget given by the controller", "memory_bytes", b.MemoryBytes, "cpu_millis", b.CPUMillis)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

// memory is the bound of all environments together, in bytes.
func (o *orders) memory() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.memoryLocked()
}

func (o *orders) memoryLocked() int64 {
	if o.budget.MemoryBytes > 0 {
		return o.budget.MemoryBytes
	}
	return int64(o.cfg.Limits.Memory)
}

// enforce gives the cgroup tree the budget that holds now: never less memory
// than the slots were promised, so that nothing is killed for a smaller budget.
func (o *orders) enforce() (done bool, err error) {
	o.mu.Lock()
	b := cgroups.Budget{MemoryBytes: o.memoryLocked(), CPUMillis: o.budget.CPUMillis, PIDs: o.cfg.Limits.PIDs}
	o.mu.Unlock()
	promised := int64(0)
	if o.node != nil {
		promised = o.node.Promised()
	}
	if promised > b.MemoryBytes {
		b.MemoryBytes = promised
		_, err = o.tree.SetBudget(b)
		return false, err
	}
	return o.tree.SetBudget(b)
}

// budgetCheck is how often a budget is tried that does not hold yet.
const budgetCheck = 2 * time.Second

// keepBudget enforces each new budget, as soon as what lives allows it.
func (o *orders) keepBudget(ctx context.Context) error {
	for {
		done, err := o.enforce()
		if err != nil {
			o.log.Error("enforce budget", "error", err)
		}
		var again <-chan time.Time
		if !done {
			again = time.After(budgetCheck)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-again:
		}
	}
}

// close refuses everything that would be written from now on: a successor
// writes. open undoes it.
func (o *orders) close() { o.shut(true) }
func (o *orders) open()  { o.shut(false) }

func (o *orders) shut(closed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = closed
}
