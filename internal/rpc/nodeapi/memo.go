package nodeapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"hearth/internal/env"
)

// memo remembers the answers of mutating calls by idempotency key, so that a
// repeated call does nothing again. It lives in memory: after a restart of the
// agent a repeated snapshot takes another snapshot, and a repeated release
// finds nothing. Claims are remembered by the node's journal instead.
type memo struct {
	mu    sync.Mutex // guards calls
	calls map[string]*call
}

type call struct {
	digest []byte
	done   chan struct{}
	answer proto.Message // after done; nil if the call failed
	at     time.Time     // after done
}

const (
	memoAge  = 24 * time.Hour
	memoSize = 10_000 // more keys than that forget the oldest
)

func newMemo() *memo { return &memo{calls: map[string]*call{}} }

// once runs fn unless a call with this key has been answered: then it returns
// that answer. A call that failed is forgotten and may be tried again. An
// empty key is never remembered.
func once[T proto.Message](ctx context.Context, m *memo, key string, req proto.Message, fn func() (T, error)) (T, error) {
	var zero T
	if key == "" {
		return fn()
	}
	digest, err := digestOf(req)
	if err != nil {
		return zero, err
	}
	for {
		c, mine := m.begin(key, digest)
		if !mine && !bytes.Equal(c.digest, digest) {
			return zero, fmt.Errorf("%w: idempotency key %.40q came with another request before; use a new key", env.ErrInvalid, key)
		}
		if mine {
			return runOnce(m, key, c, fn)
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			return zero, ctx.Err()
		}
		if c.answer != nil {
			return c.answer.(T), nil
		}
	}
}

// runOnce settles the call also if fn panics, so that its key is free again.
func runOnce[T proto.Message](m *memo, key string, c *call, fn func() (T, error)) (answer T, err error) {
	err = errNotEnded
	defer func() { m.end(key, c, answer, err) }()
	return fn()
}

var errNotEnded = errors.New("the call did not end")

// digestOf covers the request and its kind.
func digestOf(req proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	sum := sha256.Sum256(append([]byte(req.ProtoReflect().Descriptor().FullName()), b...))
	return sum[:], nil
}

func (m *memo) begin(key string, digest []byte) (c *call, mine bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.calls[key]; c != nil {
		return c, false
	}
	m.prune(time.Now())
	c = &call{digest: digest, done: make(chan struct{})}
	m.calls[key] = c
	return c, true
}

func (m *memo) end(key string, c *call, answer proto.Message, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		c.answer, c.at = answer, time.Now()
	} else {
		delete(m.calls, key)
	}
	close(c.done)
}

// prune forgets answers that are too old and, beyond memoSize, the oldest one.
// The caller holds mu.
func (m *memo) prune(now time.Time) {
	if len(m.calls) < memoSize {
		return
	}
	var oldest string
	for key, c := range m.calls {
		switch {
		case c.at.IsZero(): // under way
		case now.Sub(c.at) > memoAge:
			delete(m.calls, key)
		case oldest == "" || c.at.Before(m.calls[oldest].at):
			oldest = key
		}
	}
	if len(m.calls) >= memoSize && oldest != "" {
		delete(m.calls, oldest)
	}
}
