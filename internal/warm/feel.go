package warm

import "time"

// Slots that nobody waits for are made with power that nobody else needs: while
// the node is short of it, a pool that has a ready slot gets one more only so
// often, and nothing is checked. A pool without one is refilled all the same,
// since its next claim would make a slot anyway.
const (
	pressedEvery = time.Second     // how often the node is asked, at most
	pressedPause = 5 * time.Second // between two preparations, at least
)

// feel asks now and then whether the node has power to spare. It is Run's own.
func (n *Node) feel(now time.Time) {
	if n.parts.Pressure == nil || now.Sub(n.pressAt) < pressedEvery {
		return
	}
	n.pressAt = now
	why, err := n.parts.Pressure.Pressed()
	if err != nil {
		n.log.Warn("read the node's pressure", "error", err)
		why = "" // as without it
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pressed = why
}
