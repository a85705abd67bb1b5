package agentlink

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstWait = 400 * time.Millisecond
	// quickWait bounds the waits of the first quickFor without a connection, so
	// that a new leader is found about a second after it began; slowWait the
	// later ones.
	quickWait = time.Second
	slowWait  = 10 * time.Second
	quickFor  = 30 * time.Second
)

// backoff doubles its waits. Each is a random part, from a half on, so that a
// fleet does not come back all at once.
type backoff struct {
	next  time.Duration
	since time.Time // of the last success, or the start
}

func newBackoff() *backoff { return &backoff{firstWait, time.Now()} }

// reset notes a success.
func (b *backoff) reset() { b.next, b.since = firstWait, time.Now() }

func (b *backoff) wait(ctx context.Context) error {
	most := slowWait
	if time.Since(b.since) < quickFor {
		most = quickWait
	}
	d := min(b.next, most)
	b.next = 2 * d
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
