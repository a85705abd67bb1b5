// Package storetest has the suite that every fleet.Store passes, and the store
// in memory that unit tests use.
package storetest

import (
	"maps"
	"sync"

	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Memory is a fleet.Store that forgets with the process. What is posted is written
// by Close and by Load, and forgotten by Crash.
type Memory struct {
	// Fault, if set, is called before a Save with its operation's name, and may
	// take its time; an error makes the Save fail without effect.
	Fault func(op string) error
	// NoJoinTokens makes it a store that keeps none.
	NoJoinTokens bool

	mu      sync.Mutex // guards all below
	epoch   uint64
	records map[env.ID][]byte
	posted  map[env.ID][]byte // nil for a deletion
	keys    map[string][]byte
	tokens  map[[32]byte][]byte
	saves   map[string]int // by operation
	posts   map[string]int
}

var _ fleet.Store = (*Memory)(nil)

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{
		records: map[env.ID][]byte{}, posted: map[env.ID][]byte{}, keys: map[string][]byte{}, tokens: map[[32]byte][]byte{},
		saves: map[string]int{}, posts: map[string]int{},
	}
}

// NextEpoch raises the epoch.
func (m *Memory) NextEpoch() (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch++
	return m.epoch, nil
}

// Load decodes what was saved and posted.
func (m *Memory) Load() (fleet.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flush()
	var st fleet.State
	var err error
	collect(m.records, fleet.DecodeRecord, &st.Records, &err)
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

// flush writes what was posted. The caller holds mu.
func (m *Memory) flush() {
	for id, b := range m.posted {
		if b == nil {
			delete(m.records, id)
		} else {
			m.records[id] = b
		}
	}
	clear(m.posted)
}

// Save applies c.
func (m *Memory) Save(c fleet.Change) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if m.NoJoinTokens && c.JoinToken != nil {
		return &env.UnsupportedError{Feature: "join tokens", Needs: "a store that keeps them"}
	}
	if m.Fault != nil {
		if err := m.Fault(c.Op); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saves[c.Op]++
	if id := c.ID(); id != "" {
		delete(m.posted, id)
	}
	switch {
	case c.Record != nil:
		return put(m.records, c.Record.ID(), c.Record, fleet.EncodeRecord)
	case c.APIKey != nil:
		return put(m.keys, c.APIKey.ID, *c.APIKey, fleet.EncodeAPIKey)
	case c.JoinToken != nil:
		return put(m.tokens, c.JoinToken.Hash, *c.JoinToken, fleet.EncodeJoinToken)
	case c.DeleteJoinToken != nil:
		delete(m.tokens, *c.DeleteJoinToken)
	}
	delete(m.records, c.DeleteRecord)
	delete(m.keys, c.DeleteAPIKey)
	return nil
}

func put[K comparable, T any](into map[K][]byte, key K, v T, encode func(T) ([]byte, error)) error {
	b, err := encode(v)
	if err == nil {
		into[key] = b
	}
	return err
}

// Post keeps c for Close.
func (m *Memory) Post(c fleet.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.posts[c.Op]++
	if c.Record == nil {
		m.posted[c.DeleteRecord] = nil
		return
	}
	_ = put(m.posted, c.Record.ID(), c.Record, fleet.EncodeRecord)
}

// Close writes what was posted and keeps everything: the same Memory may be used
// again.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flush()
	return nil
}

// Crash forgets what was posted.
func (m *Memory) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.posted)
}

// Saves counts the Saves that succeeded, by operation.
func (m *Memory) Saves() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.saves)
}

// Posts counts the posts, by operation.
func (m *Memory) Posts() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.posts)
}
