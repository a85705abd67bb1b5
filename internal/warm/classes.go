package warm

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/env"
)

// SetClasses replaces the node's classes while it runs. A pool whose class
// changed its revision rolls: its ready slots serve until new ones replace
// them, one at a time. The ready slots of a class that is gone are removed.
// Environments keep the class that they were made from. On an error nothing has
// changed.
func (n *Node) SetClasses(ctx context.Context, classes []*env.Class) error {
	_, end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	next := make(map[string]*env.Class, len(classes))
	for _, c := range classes {
		if next[c.Name] != nil {
			return fmt.Errorf("%w: class %s is given twice", env.ErrInvalid, c.Name)
		}
		next[c.Name] = c
	}
	n.archiving.Lock()
	defer n.archiving.Unlock()
	if err := n.archiveClasses(classes); err != nil {
		return err
	}
	n.mu.Lock()
	for name, c := range next {
		p := n.pools[name]
		if p == nil {
			n.pools[name] = &pool{}
			n.metrics.know(name)
		} else if old := n.classes[name]; old == nil || old.Revision != c.Revision {
			p.failures, p.message, p.retryAt = 0, "", time.Time{} // what failed may work now
		}
	}
	n.classes = next
	n.changedLocked()
	n.mu.Unlock()
	n.log.Info("classes set", "classes", len(next))
	n.poke()
	return nil
}

// gone stands for a class that the node no longer has, until its pool is empty:
// no slot is of its revision, and none is wanted.
func gone(name string) *env.Class { return &env.Class{Name: name} }

// poolClassLocked is the class that a pool is kept for. The caller holds mu.
func (n *Node) poolClassLocked(name string) *env.Class {
	if c := n.classes[name]; c != nil {
		return c
	}
	return gone(name)
}

// dropPoolsLocked forgets the empty pools of classes that are gone. The caller
// holds mu.
func (n *Node) dropPoolsLocked() {
	for name, p := range n.pools {
		if n.classes[name] == nil && len(p.ready)+len(p.created) == 0 && p.making+p.laying == 0 && !n.checksLocked(name) {
			delete(n.pools, name)
		}
	}
}
