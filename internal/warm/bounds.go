package warm

import (
	"fmt"

	"hearth/internal/env"
)

// SetMemory bounds what the limits of all slots may add up to, in bytes. It
// ends nothing: with a bound below what is promised, ready slots are removed
// one after the other, and claims are refused until enough was released.
func (n *Node) SetMemory(bytes int64) {
	n.mu.Lock()
	n.memory = bytes
	n.mu.Unlock()
	n.poke()
	n.tell()
}

// Promised is what the limits of all slots add up to, in bytes.
func (n *Node) Promised() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.memoryLocked()
}

// overLocked refuses a claim of a node that has promised more than it may. The
// caller holds mu.
func (n *Node) overLocked() error {
	if used := n.memoryLocked(); used > n.memory {
		return fmt.Errorf("%w: %d bytes of memory are promised, the node's budget is %d; release environments or raise it", env.ErrExhausted, used, n.memory)
	}
	return nil
}
