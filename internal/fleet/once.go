package fleet

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"hearth/internal/env"
)

// begin takes the idempotency key for one call: a second call with it waits for
// the first to end. Prior is what is known of the key; end gives it back.
func (f *Fleet) begin(ctx context.Context, key AnswerKey, request [sha256.Size]byte) (prior *Answer, end func(), err error) {
	if err := checkKey(key.Key); err != nil {
		return nil, nil, err
	}
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
			return nil, nil, ctx.Err()
		}
	}
	defer f.mu.Unlock()
	if prior = f.answers.get(key); prior != nil && prior.Expires.Before(time.Now()) {
		prior = nil
	}
	if prior != nil && prior.Request != request {
		return nil, nil, fmt.Errorf("%w: idempotency key %q was used for another request; take a new one", env.ErrExists, key.Key)
	}
	done := make(chan struct{})
	f.busy[key] = done
	return prior, func() {
		f.mu.Lock()
		delete(f.busy, key)
		f.mu.Unlock()
		close(done)
	}, nil
}

// digest names a request independently of how it was encoded.
func digest(method string, m proto.Message) ([sha256.Size]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("%w: request: %s", env.ErrInvalid, err)
	}
	return sha256.Sum256(append([]byte(method+"\x00"), b...)), nil
}

// answered decodes an answer that was given before.
func answered[M proto.Message](a *Answer, into M) (M, error) {
	if err := proto.Unmarshal(a.Response, into); err != nil {
		return into, fmt.Errorf("%w: stored answer of idempotency key %q: %s", env.ErrCorrupt, a.Key, err)
	}
	return into, nil
}

// finished is a with its response.
func (a *Answer) finished(m proto.Message) (*Answer, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	c := *a
	c.Response = b
	return &c, nil
}

// newAnswer is an answer that has begun.
func (f *Fleet) newAnswer(key AnswerKey, request [sha256.Size]byte, ids ...env.ID) *Answer {
	return &Answer{AnswerKey: key, Request: request, Environments: ids, Expires: time.Now().Add(f.cfg.KeepAnswers)}
}
