package main

import (
	"testing"
	"time"

	"hearth/internal/env"
	"hearth/internal/fleet"
)

// A controller hears of a slot that is ready again long before the next heartbeat.
func TestAClaimRightAfterARefillNeedsNoHeartbeat(t *testing.T) {
	const heartbeat = 4 * time.Second
	c := startControl(t, t.TempDir(), "127.0.0.1:0", fleet.Config{Heartbeat: heartbeat, LostAfter: heartbeat + time.Second}, nil)
	begun := time.Now()
	n := startNode(t, c, &fakeNode{name: "n1", ready: 1, most: 1, changed: make(chan struct{}, 1)})
	api := c.client("a")
	slot := func(ready uint32) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.ready = ready
	}
	_, err := api.Claim(t.Context(), claimOf("first"))
	ok(t, err)
	slot(0)
	// Until then the controller waits for other nodes instead of refusing.
	time.Sleep(time.Until(begun.Add(heartbeat + 1500*time.Millisecond)))
	begun = time.Now()
	for _, key := range []string{"1", "2", "3"} {
		_, err := api.Claim(t.Context(), claimOf(key+" too early"))
		wantErr(t, err, env.ErrExhausted)
		slot(1)
		n.changed <- struct{}{}
		eventually(t, "the node's slot is known", func() bool {
			_, err := api.Claim(t.Context(), claimOf(key))
			return err == nil
		})
		slot(0)
	}
	// By heartbeats it would take two of them at least.
	if took := time.Since(begun); took > heartbeat {
		t.Errorf("three refills were known after %s", took)
	}
}
