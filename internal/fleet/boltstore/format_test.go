package boltstore

import (
	"crypto/sha256"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func TestAFileOfFormat1KeepsWhatItKnowsAndForgetsAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleet.db")
	s := open(t, path)
	first, second, free := env.NewID(), env.NewID(), env.NewID()
	for _, id := range []env.ID{first, second, free} {
		if err := s.Save(fleet.Change{Op: "x", Record: &fleet.Record{Changed: time.Now(),
			Environment: &hearthv1.Environment{Id: string(id), Tenant: "a", Generation: 2, Phase: hearthv1.Phase_PHASE_RUNNING}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(answerBucket)
		if err != nil {
			return err
		}
		v, err := json.Marshal(map[string]any{
			"v": 1, "tenant": "a", "key": "k", "request": make([]byte, 32), "environments": []env.ID{first, second, env.NewID()},
			"response": []byte("a token"), "expires": time.Now(),
		})
		if err != nil {
			return err
		}
		if err := b.Put([]byte("k"), v); err != nil {
			return err
		}
		return tx.Bucket(metaBucket).Put(formatKey, []byte("1"))
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	st, err := s.Load()
	if err != nil || len(st.Records) != 3 {
		t.Fatalf("%d records, %v", len(st.Records), err)
	}
	for _, r := range st.Records {
		want := fleet.ClaimKey(sha256.Sum256([]byte("a\x00k")))
		if r.ID() == free {
			want = fleet.ClaimKey{}
		}
		if r.ClaimKey != want || r.Generation() != 2 {
			t.Errorf("record %s: key %x, generation %d", r.ID(), r.ClaimKey, r.Generation())
		}
	}
	if err := s.db.View(func(tx *bolt.Tx) error {
		if tx.Bucket(answerBucket) != nil {
			t.Error("the answers are still there")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	open(t, path).Close() // and once more
}
