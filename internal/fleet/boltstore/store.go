// Package boltstore keeps the fleet's desired state in one bbolt file.
//
// The file has mode 0600: it holds the answers of the last 24 hours, and with
// them access tokens. bbolt itself refuses a second process; the controller's
// lock on its state directory says so earlier and better. Every Save is one
// bbolt transaction with its fsync (0.3 ms on a local disk); Batch would wait
// 10 ms for company.
package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

var (
	metaBucket    = []byte("meta")
	recordBucket  = []byte("environments")
	answerBucket  = []byte("answers")
	apiKeyBucket  = []byte("apikeys")
	joinBucket    = []byte("jointokens")
	epochKey      = []byte("epoch")
	formatKey     = []byte("format")
	currentFormat = []byte("1")
)

// Store implements fleet.Store.
type Store struct {
	db    *bolt.DB
	path  string
	fault durable.Fault
}

var _ fleet.Store = (*Store)(nil)

// Open opens or makes the file. A file that another process has open is
// env.ErrState, one of another format env.ErrUnsupported. Fault, nil in
// production, is called as "<op>:before" and "<op>:after" around each Save.
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
	return &Store{db: db, path: path, fault: fault}, nil
}

func prepare(tx *bolt.Tx) error {
	for _, name := range [][]byte{metaBucket, recordBucket, answerBucket, apiKeyBucket, joinBucket} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(metaBucket)
	switch have := meta.Get(formatKey); {
	case have == nil:
		return meta.Put(formatKey, currentFormat)
	case string(have) != string(currentFormat):
		return fmt.Errorf("%w: it has format %.16q, this program knows %s; use a newer one", env.ErrUnsupported, have, currentFormat)
	}
	return nil
}

// NextEpoch raises the epoch.
func (s *Store) NextEpoch() (uint64, error) {
	var epoch uint64
	err := s.update("epoch", func(tx *bolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if b := meta.Get(epochKey); len(b) == 8 {
			epoch = binary.BigEndian.Uint64(b)
		}
		epoch++
		return meta.Put(epochKey, binary.BigEndian.AppendUint64(nil, epoch))
	})
	return epoch, err
}

// Load reads everything.
func (s *Store) Load() (fleet.State, error) {
	var st fleet.State
	err := s.db.View(func(tx *bolt.Tx) error {
		return errors.Join(
			each(tx, recordBucket, fleet.DecodeRecord, &st.Records),
			each(tx, answerBucket, fleet.DecodeAnswer, &st.Answers),
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

// Save writes a change in one transaction.
func (s *Store) Save(c fleet.Change) error {
	return s.update(c.Op, func(tx *bolt.Tx) error {
		return errors.Join(remove(tx, c), put(tx, c.Put))
	})
}

func (s *Store) update(op string, fn func(*bolt.Tx) error) error {
	if err := s.step(op + ":before"); err != nil {
		return err
	}
	if err := s.db.Update(fn); err != nil {
		return fmt.Errorf("save %s in %s: %w", op, s.path, err)
	}
	return s.step(op + ":after")
}

// step lets a test end the process around a transaction. A failure after it
// would claim that nothing was written, so tests only crash there.
func (s *Store) step(name string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(name)
}

func put(tx *bolt.Tx, st fleet.State) error {
	var errs []error
	write := func(bucket, key, value []byte, err error) {
		if err == nil {
			err = tx.Bucket(bucket).Put(key, value)
		}
		errs = append(errs, err)
	}
	for _, r := range st.Records {
		b, err := fleet.EncodeRecord(r)
		write(recordBucket, []byte(r.ID()), b, err)
	}
	for _, a := range st.Answers {
		b, err := fleet.EncodeAnswer(a)
		write(answerBucket, answerKey(a.AnswerKey), b, err)
	}
	for _, k := range st.APIKeys {
		b, err := fleet.EncodeAPIKey(k)
		write(apiKeyBucket, []byte(k.ID), b, err)
	}
	for _, t := range st.JoinTokens {
		b, err := fleet.EncodeJoinToken(t)
		write(joinBucket, t.Hash[:], b, err)
	}
	return errors.Join(errs...)
}

func remove(tx *bolt.Tx, c fleet.Change) error {
	var errs []error
	for _, id := range c.DeleteRecords {
		errs = append(errs, tx.Bucket(recordBucket).Delete([]byte(id)))
	}
	for _, k := range c.DeleteAnswers {
		errs = append(errs, tx.Bucket(answerBucket).Delete(answerKey(k)))
	}
	for _, id := range c.DeleteAPIKeys {
		errs = append(errs, tx.Bucket(apiKeyBucket).Delete([]byte(id)))
	}
	for _, t := range c.DeleteJoinTokens {
		errs = append(errs, tx.Bucket(joinBucket).Delete(t.Hash[:]))
	}
	return errors.Join(errs...)
}

// answerKey cannot be forged by a tenant whose name holds the separator: the
// tenant's length comes first.
func answerKey(k fleet.AnswerKey) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(k.Tenant)))
	return append(append(b, k.Tenant...), k.Key...)
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }
