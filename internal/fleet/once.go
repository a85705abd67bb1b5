package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hearth/internal/env"
)

// call is one use of an idempotency key.
type call struct {
	f       *Fleet
	key     ClaimKey
	request [sha256.Size]byte
	prior   *answer   // what it was answered before, if that is still known
	made    []*Record // what it made before, by id
}

// begin takes the idempotency key for one call: a second call with it waits for
// the first to end. End gives it back.
func (f *Fleet) begin(ctx context.Context, tenant, key, method string, request proto.Message) (c *call, end func(), err error) {
	if err := checkKey(key); err != nil {
		return nil, nil, err
	}
	c = &call{f: f, key: claimKey(tenant, key)}
	if c.request, err = digest(key, method, request); err != nil {
		return nil, nil, err
	}
	if end, err = f.takeKey(ctx, c.key); err != nil {
		return nil, nil, err
	}
	if err := c.look(); err != nil {
		end()
		return nil, nil, fmt.Errorf("%w: idempotency key %q was used for another request; take a new one", err, key)
	}
	return c, end, nil
}

// takeKey waits until no other call has the key.
func (f *Fleet) takeKey(ctx context.Context, key ClaimKey) (end func(), err error) {
	for {
		f.mu.Lock()
		busy := f.busy[key]
		if busy == nil {
			break
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer f.mu.Unlock()
	done := make(chan struct{})
	f.busy[key] = done
	return func() {
		f.mu.Lock()
		delete(f.busy, key)
		f.mu.Unlock()
		close(done)
	}, nil
}

// look finds what the key was answered and what it made. What nobody was told of
// does not count. A key that came with another request is env.ErrExists.
func (c *call) look() error {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	c.prior, c.made = nil, nil
	if a := f.answers.get(c.key); a != nil && a.expires.After(time.Now()) {
		if a.request != c.request {
			return env.ErrExists
		}
		c.prior = a
	}
	for _, id := range f.byClaim[c.key] {
		r := f.records[id]
		if r.Ended && r.Phase() == env.PhaseFailed {
			continue
		}
		if r.ClaimRequest != c.request && r.ClaimRequest != [sha256.Size]byte{} {
			return env.ErrExists
		}
		c.made = append(c.made, r)
	}
	slices.SortFunc(c.made, byID)
	return nil
}

// digest names a request independently of how it was encoded. It is keyed with
// the caller's key, which is stored nowhere: requests hold secrets, and whoever
// reads the digest shall not find them by guessing.
func digest(key, method string, m proto.Message) ([sha256.Size]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("%w: request: %s", env.ErrInvalid, err)
	}
	h := hmac.New(sha256.New, []byte(key))
	h.Write([]byte(method + "\x00"))
	h.Write(b)
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// answered decodes the answer that was given before.
func answered[M proto.Message](a *answer, into M) (M, error) {
	if err := proto.Unmarshal(a.response, into); err != nil {
		return into, fmt.Errorf("%w: remembered answer: %s", env.ErrCorrupt, err)
	}
	return into, nil
}

// remember keeps the answer for repetitions. One that cannot be encoded is not
// remembered: the repetition then asks the node.
func (c *call) remember(m proto.Message) {
	b, err := proto.Marshal(m)
	if err != nil {
		c.f.log.Warn("answer not remembered", "error", err)
		return
	}
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.answers.put(&answer{c.key, c.request, b, time.Now().Add(c.f.cfg.KeepAnswers)})
}

// underWay is an environment that this process is claiming.
type underWay struct {
	users    int
	unwanted bool // it is to be ended, and was not placed yet
}

// work notes that this process claims these: they are neither given up nor
// judged by what a node says of them, until done.
func (f *Fleet) work(ids ...env.ID) (done func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		if f.underWay[id] == nil {
			f.underWay[id] = &underWay{}
		}
		f.underWay[id].users++
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, id := range ids {
			if f.underWay[id].users--; f.underWay[id].users == 0 {
				delete(f.underWay, id)
			}
		}
	}
}

func (f *Fleet) isUnderWay(id env.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.underWay[id] != nil
}

// inDoubt reports that somebody may have been told of the environment: it lives,
// or an earlier process that claimed it may have answered.
func (f *Fleet) inDoubt(r *Record) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, doubtful := f.doubtful[r.ID()]
	return doubtful || r.Phase().Live()
}
