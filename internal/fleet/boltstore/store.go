// Package boltstore keeps the fleet's desired state in one bbolt file.
//
// The file has mode 0600. It holds digests of keys and requests, and no token.
// bbolt itself refuses a second process; the controller's lock on its state
// directory says so earlier and better.
//
// Saves that come together share one transaction and its fsync: while one is
// being written, the next ones gather, and none waits for company that may not
// come. Posts ride with the next transaction, or are written a second later.
package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// postDelay is how long a post waits for a transaction to ride with.
const postDelay = time.Second

// Store implements fleet.Store.
type Store struct {
	db    *bolt.DB
	path  string
	fault durable.Fault

	mu      sync.Mutex // guards all below
	waiting []*save    // to be written
	posted  map[env.ID]edit
	writing bool        // somebody writes, and goes on with those who wait
	timer   *time.Timer // runs if posts wait
	work    sync.WaitGroup
	closed  bool
}

// save is a Save that waits for its transaction.
type save struct {
	edit edit
	id   env.ID        // its record's; empty if it is about none
	done chan struct{} // closed when err is set, or when it shall write itself
	err  error
	lead bool
}

// edit is what a change does to the file. It is encoded beforehand, so that a
// change that cannot be is nobody else's fault.
type edit struct {
	bucket, key []byte
	value       []byte // nil deletes
}

var _ fleet.Store = (*Store)(nil)

// Open opens or makes the file. A file that another process has open is
// env.ErrState, one of a format that is not known env.ErrUnsupported. Fault, nil
// in production, is called as "<op>:before" and "<op>:after" around each Save,
// and around posts that are written by themselves as "posts:…".
func Open(path string, fault durable.Fault) (*Store, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%w: %s is open in another process; stop it, or use another state directory", env.ErrState, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := db.Update(prepare); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return &Store{db: db, path: path, fault: fault, posted: map[env.ID]edit{}}, nil
}

// NextEpoch raises the epoch.
func (s *Store) NextEpoch() (uint64, error) {
	var epoch uint64
	if err := s.step("epoch:before"); err != nil {
		return 0, err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if b := meta.Get(epochKey); len(b) == 8 {
			epoch = binary.BigEndian.Uint64(b)
		}
		epoch++
		return meta.Put(epochKey, binary.BigEndian.AppendUint64(nil, epoch))
	}); err != nil {
		return 0, fmt.Errorf("raise epoch in %s: %w", s.path, err)
	}
	return epoch, s.step("epoch:after")
}

// Load reads everything.
func (s *Store) Load() (fleet.State, error) {
	var st fleet.State
	err := s.db.View(func(tx *bolt.Tx) error {
		return errors.Join(
			each(tx, recordBucket, fleet.DecodeRecord, &st.Records),
			each(tx, apiKeyBucket, fleet.DecodeAPIKey, &st.APIKeys),
			each(tx, joinBucket, fleet.DecodeJoinToken, &st.JoinTokens),
		)
	})
	if err != nil {
		return fleet.State{}, fmt.Errorf("load %s: %w", s.path, err)
	}
	return st, nil
}

func each[T any](tx *bolt.Tx, bucket []byte, decode func([]byte) (T, error), into *[]T) error {
	return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		t, err := decode(v)
		if err != nil {
			return fmt.Errorf("%s %.64q: %w", bucket, k, err)
		}
		*into = append(*into, t)
		return nil
	})
}

// Save writes a change, and what was posted before, in one transaction.
func (s *Store) Save(c fleet.Change) error {
	e, err := encode(c)
	if err == nil {
		err = s.step(c.Op + ":before")
	}
	if err == nil {
		err = s.write(&save{edit: e, id: c.ID(), done: make(chan struct{})})
	}
	if err != nil {
		return fmt.Errorf("save %s in %s: %w", c.Op, s.path, err)
	}
	return s.step(c.Op + ":after")
}

// Post writes a record or its deletion behind.
func (s *Store) Post(c fleet.Change) {
	e, err := encode(c)
	if err != nil || c.ID() == "" {
		return // Validate's: no caller makes such a change
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.posted[c.ID()] = e
	if s.timer == nil {
		s.work.Add(1)
		s.timer = time.AfterFunc(postDelay, s.flush)
	}
}

// flush writes the posts that no Save took along. If that fails they wait again.
func (s *Store) flush() {
	defer s.work.Done()
	s.mu.Lock()
	s.timer = nil
	closed, some := s.closed, len(s.posted) > 0
	s.mu.Unlock()
	if closed || !some || s.step("posts:before") != nil {
		return
	}
	if s.write(&save{done: make(chan struct{})}) == nil {
		_ = s.step("posts:after")
	}
}

// step lets a test end the process around a transaction. A failure after it
// would claim that nothing was written, so tests only crash there.
func (s *Store) step(name string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(name)
}

// Close writes what was posted and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.timer != nil && s.timer.Stop() {
		s.work.Done()
	}
	s.mu.Unlock()
	s.work.Wait()
	return errors.Join(s.write(&save{done: make(chan struct{})}), s.db.Close())
}
