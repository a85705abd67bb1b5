package boltstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/storetest"
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStoreKeepsTheContract(t *testing.T) {
	dirs := map[*testing.T]string{}
	storetest.Run(t, storetest.Options{
		Open: func(t *testing.T) fleet.Store {
			t.Helper()
			if dirs[t] == "" {
				dirs[t] = t.TempDir()
			}
			return open(t, filepath.Join(dirs[t], "fleet.db"))
		},
		Crash: func(t *testing.T, s fleet.Store) {
			t.Helper()
			if err := s.(*Store).crash(); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// crash leaves the file as the death of the process would.
func (s *Store) crash() error {
	s.mu.Lock()
	s.closed = true
	clear(s.posted)
	if s.timer != nil && s.timer.Stop() {
		s.work.Done()
	}
	s.mu.Unlock()
	s.work.Wait()
	return s.db.Close()
}

func TestTheFileIsPrivateAndHasOneUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleet.db")
	s, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	if _, err := Open(path, nil); !errors.Is(err, env.ErrState) {
		t.Errorf("second open: %v", err)
	}
}

func TestANewerFormatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fleet.db")
	s, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("3")) }); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if _, err := Open(path, nil); !errors.Is(err, env.ErrUnsupported) {
		t.Errorf("error = %v", err)
	}
}

func TestADamagedValueIsNamed(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "fleet.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(recordBucket).Put([]byte("e-x"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); !errors.Is(err, env.ErrCorrupt) {
		t.Errorf("error = %v", err)
	}
}

func TestAFaultLeavesNothing(t *testing.T) {
	broken := errors.New("no space")
	s, err := Open(filepath.Join(t.TempDir(), "fleet.db"), func(op string) error {
		if op == "x:before" {
			return broken
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Save(fleet.Change{Op: "x", APIKey: &fleet.APIKey{ID: "k"}}); !errors.Is(err, broken) {
		t.Errorf("error = %v", err)
	}
	if st, err := s.Load(); err != nil || len(st.APIKeys) != 0 {
		t.Errorf("state = %v, %v", st, err)
	}
}

func BenchmarkSave(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "fleet.db"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		if err := s.Save(fleet.Change{Op: "x", APIKey: &fleet.APIKey{ID: "k"}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSave20 saves from 20 callers at once: they share transactions.
func BenchmarkSave20(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "fleet.db"))
	defer s.Close()
	b.SetParallelism(10) // times GOMAXPROCS
	b.RunParallel(func(p *testing.PB) {
		id := string(env.NewID())
		for p.Next() {
			if err := s.Save(fleet.Change{Op: "x", APIKey: &fleet.APIKey{ID: id}}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
