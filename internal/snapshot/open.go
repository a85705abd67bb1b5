package snapshot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hearth/internal/durable"
	"hearth/internal/env"
)

const (
	storeVersion = 1
	formatPrefix = "hearth snapshot store "

	formatName = "format"
	keyName    = "key"
	lockName   = "lock"
	linName    = "lin"
)

// Store holds the snapshots of one node. Its methods may be called from
// several goroutines; those that change one lineage wait for each other, those
// of different lineages do not.
type Store struct {
	limits   Limits
	readOnly bool
	log      *slog.Logger
	dir, lin *durable.Dir
	lock     *durable.FileLock // nil if read-only
	keys     *keys
	comp     *compressor
	locks    locks
}

// Open opens the store in cfg.Dir, making it if the directory is missing or
// empty. Unless it is read-only, a second process that opens it gets
// env.ErrState. A store of a newer format is env.ErrUnsupported.
func Open(cfg Config, fault durable.Fault, log *slog.Logger) (*Store, error) {
	s := &Store{
		limits: cfg.Limits.withDefaults(), readOnly: cfg.ReadOnly, log: log,
		locks: newLocks(),
	}
	if err := s.open(cfg.Dir, fault); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("open snapshot store %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func (s *Store) open(path string, fault durable.Fault) (err error) {
	if s.readOnly { // OpenDir would make it
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: %w", env.ErrNotFound, err)
		}
	}
	if s.dir, err = durable.OpenDir(path, fault); err != nil {
		return err
	}
	if !s.readOnly {
		if s.lock, err = durable.Lock(filepath.Join(path, lockName)); err != nil {
			return err
		}
		if _, err := s.dir.Sweep(); err != nil {
			return err
		}
		if err := s.initialise(); err != nil {
			return err
		}
	}
	if err := s.checkFormat(); err != nil {
		return err
	}
	secret, err := s.dir.ReadFile(keyName, 4096)
	if err != nil {
		return fmt.Errorf("read key, without which no snapshot can be read (restore it from a backup): %w", err)
	}
	if s.keys, err = deriveKeys(secret); err != nil {
		return err
	}
	if s.lin, err = s.dir.OpenSub(linName); err != nil {
		return err
	}
	if !s.readOnly {
		if _, err := s.lin.Sweep(); err != nil {
			return err
		}
	}
	s.comp, err = newCompressor(s.limits.Workers)
	return err
}

// initialise makes a new store, or finishes making one. The format file is
// written last.
func (s *Store) initialise() error {
	names, err := s.dir.List()
	if err != nil {
		return err
	}
	hasKey := false
	for _, name := range names {
		switch name {
		case formatName:
			return nil
		case keyName:
			hasKey = true
		case lockName, linName:
		default:
			return fmt.Errorf("%w: the directory has no file %q but has %q: it is not a snapshot store; use an empty one",
				env.ErrInvalid, formatName, name)
		}
	}
	if !hasKey {
		var secret [keyLen]byte
		_, _ = rand.Read(secret[:]) // never fails: crypto/rand aborts the program instead
		if err := s.dir.WriteNew("key", keyName, secret[:], 0o600); err != nil {
			return err
		}
	}
	lin, err := s.dir.Sub("lineages", linName)
	if err != nil {
		return err
	}
	_ = lin.Close()
	return s.dir.WriteNew("format", formatName, []byte(formatPrefix+strconv.Itoa(storeVersion)+"\n"), 0o600)
}

func (s *Store) checkFormat() error {
	b, err := s.dir.ReadFile(formatName, 256)
	if err != nil {
		return err
	}
	return parseFormat(string(b))
}

func parseFormat(text string) error {
	v, ok := strings.CutPrefix(strings.TrimSuffix(text, "\n"), formatPrefix)
	n, err := strconv.ParseUint(v, 10, 32)
	if !ok || err != nil {
		return fmt.Errorf("%w: format file says %.64q", env.ErrCorrupt, text)
	}
	return checkVersion("store", uint32(n), storeVersion)
}

// Close releases the store's files and its lock. No other method may run.
func (s *Store) Close() error {
	var err error
	for _, d := range []*durable.Dir{s.lin, s.dir} {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Unlock())
	}
	return err
}

func (s *Store) writable() error {
	if s.readOnly {
		return fmt.Errorf("%w: the snapshot store is open read-only", env.ErrState)
	}
	return nil
}
