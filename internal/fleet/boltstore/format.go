package boltstore

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"hearth/internal/env"
	"hearth/internal/fleet"
)

var (
	metaBucket    = []byte("meta")
	recordBucket  = []byte("environments")
	apiKeyBucket  = []byte("apikeys")
	joinBucket    = []byte("jointokens")
	epochKey      = []byte("epoch")
	formatKey     = []byte("format")
	currentFormat = []byte("2")
	// In format 1 answers were stored, by idempotency key, and records did not
	// know their keys.
	answerBucket = []byte("answers")
)

func prepare(tx *bolt.Tx) error {
	for _, name := range [][]byte{metaBucket, recordBucket, apiKeyBucket, joinBucket} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(metaBucket)
	switch have := meta.Get(formatKey); {
	case have == nil, string(have) == string(currentFormat):
	case string(have) == "1":
		if err := from1(tx); err != nil {
			return fmt.Errorf("bring format 1 up to date: %w", err)
		}
	default:
		return fmt.Errorf("%w: it has format %.16q, this program knows %s; use a newer one", env.ErrUnsupported, have, currentFormat)
	}
	return meta.Put(formatKey, currentFormat)
}

// answer1 is what is needed of an answer of format 1.
type answer1 struct {
	Tenant       string   `json:"tenant"`
	Key          string   `json:"key"`
	Environments []env.ID `json:"environments"`
}

// from1 tells the records by which key they were made, and forgets the answers,
// which held access tokens. Which request it was is not carried over: its digest
// was made otherwise.
func from1(tx *bolt.Tx) error {
	answers := tx.Bucket(answerBucket)
	if answers == nil {
		return nil
	}
	if err := answers.ForEach(func(k, v []byte) error {
		var a answer1
		if err := json.Unmarshal(v, &a); err != nil {
			return fmt.Errorf("%w: answer %.64q: %s", env.ErrCorrupt, k, err)
		}
		for _, id := range a.Environments {
			if err := madeBy(tx, id, &a); err != nil {
				return fmt.Errorf("environment %s: %w", id, err)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := tx.DeleteBucket(answerBucket); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
		return err
	}
	return nil
}

func madeBy(tx *bolt.Tx, id env.ID, a *answer1) error {
	b := tx.Bucket(recordBucket).Get([]byte(id))
	if b == nil {
		return nil
	}
	r, err := fleet.DecodeRecord(b)
	if err != nil {
		return err
	}
	r.ClaimKey = sha256.Sum256([]byte(a.Tenant + "\x00" + a.Key))
	r.Count = len(a.Environments)
	if b, err = fleet.EncodeRecord(r); err != nil {
		return err
	}
	return tx.Bucket(recordBucket).Put([]byte(id), b)
}
