// Package storetest has the suite that every fleet.Store passes, and the store
// in memory that unit tests use.
package storetest

import (
	"errors"
	"sync"

	"hearth/internal/fleet"
)

// Memory is a fleet.Store that forgets with the process.
type Memory struct {
	// Fault, if set, is called before a Save with its operation's name; an error
	// makes the Save fail without effect.
	Fault func(op string) error

	mu      sync.Mutex // guards all below
	epoch   uint64
	records map[string][]byte
	answers map[fleet.AnswerKey][]byte
	keys    map[string][]byte
	tokens  map[[32]byte][]byte
}

var _ fleet.Store = (*Memory)(nil)

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{
		records: map[string][]byte{}, answers: map[fleet.AnswerKey][]byte{},
		keys: map[string][]byte{}, tokens: map[[32]byte][]byte{},
	}
}

// NextEpoch raises the epoch.
func (m *Memory) NextEpoch() (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch++
	return m.epoch, nil
}

// Load decodes what was saved.
func (m *Memory) Load() (fleet.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var st fleet.State
	var err error
	collect(m.records, fleet.DecodeRecord, &st.Records, &err)
	collect(m.answers, fleet.DecodeAnswer, &st.Answers, &err)
	collect(m.keys, fleet.DecodeAPIKey, &st.APIKeys, &err)
	collect(m.tokens, fleet.DecodeJoinToken, &st.JoinTokens, &err)
	return st, err
}

func collect[K comparable, T any](from map[K][]byte, decode func([]byte) (T, error), into *[]T, err *error) {
	for _, b := range from {
		t, e := decode(b)
		if e != nil {
			*err = e
		}
		*into = append(*into, t)
	}
}

// Save applies c.
func (m *Memory) Save(c fleet.Change) error {
	if m.Fault != nil {
		if err := m.Fault(c.Op); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range c.DeleteRecords {
		delete(m.records, string(id))
	}
	for _, k := range c.DeleteAnswers {
		delete(m.answers, k)
	}
	for _, id := range c.DeleteAPIKeys {
		delete(m.keys, id)
	}
	for _, t := range c.DeleteJoinTokens {
		delete(m.tokens, t.Hash)
	}
	return errors.Join(
		put(m.records, c.Put.Records, fleet.EncodeRecord, func(r *fleet.Record) string { return string(r.ID()) }),
		put(m.answers, c.Put.Answers, fleet.EncodeAnswer, func(a *fleet.Answer) fleet.AnswerKey { return a.AnswerKey }),
		put(m.keys, c.Put.APIKeys, fleet.EncodeAPIKey, func(k fleet.APIKey) string { return k.ID }),
		put(m.tokens, c.Put.JoinTokens, fleet.EncodeJoinToken, func(t fleet.JoinToken) [32]byte { return t.Hash }),
	)
}

func put[K comparable, T any](into map[K][]byte, all []T, encode func(T) ([]byte, error), key func(T) K) error {
	for _, v := range all {
		b, err := encode(v)
		if err != nil {
			return err
		}
		into[key(v)] = b
	}
	return nil
}

// Close keeps everything: the same Memory may be used again.
func (m *Memory) Close() error { return nil }
