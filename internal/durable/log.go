package durable

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"

	"hearth/internal/env"
)

// Log is an append-only file of records. Its methods may be called from
// several goroutines. Two Logs on one file destroy it: hold a Lock.
type Log struct {
	dir  *Dir
	name string
	torn int64

	// syncing guards the identity of f against Rewrite while an fsync runs
	// without mu. Taken before mu.
	syncing sync.Mutex

	mu     sync.Mutex // guards all below
	f      *os.File
	salt   uint64
	size   int64
	buf    []byte
	broken error // why nothing may be written any more
}

// OpenLog opens the log, making it if it is missing, and calls visit with each
// record in order; the slice is valid until visit returns. An incomplete or
// damaged tail, as a crash leaves it, is cut off and reported by Torn; damage
// before the last valid record is env.ErrCorrupt and names the offset, and the
// file is left as it is.
func (d *Dir) OpenLog(op, name string, visit func(rec []byte) error) (*Log, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := d.root.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.WriteNew(op, name, encodeLogHeader(newSalt()), 0o600); err != nil {
			return nil, err
		}
		f, err = d.root.OpenFile(name, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open log in %s: %w", d.path, err)
	}
	l := &Log{dir: d, name: name, f: f}
	if err := l.load(op, visit); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("replay %s: %w", l.Path(), err)
	}
	return l, nil
}

func newSalt() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return binary.LittleEndian.Uint64(b[:])
}

// load reads the file, visits its records and cuts a torn tail.
func (l *Log) load(op string, visit func([]byte) error) error {
	data, err := io.ReadAll(io.LimitReader(l.f, MaxLog+1))
	if err != nil {
		return err
	}
	if len(data) > MaxLog {
		return fmt.Errorf("%w: longer than %d bytes", env.ErrCorrupt, MaxLog)
	}
	if l.salt, err = decodeLogHeader(data); err != nil {
		return err
	}
	if l.size, err = replay(data, l.salt, visit); err != nil {
		return err
	}
	l.torn = int64(len(data)) - l.size
	if l.torn == 0 {
		return nil
	}
	if err := l.dir.fault.step(op, "truncate"); err != nil {
		return err
	}
	if err := l.f.Truncate(l.size); err != nil {
		return fmt.Errorf("cut torn tail: %w", err)
	}
	return l.f.Sync()
}

// Path is the log's path, for messages.
func (l *Log) Path() string { return filepath.Join(l.dir.path, l.name) }

// Torn is how many bytes of a torn tail were cut off at opening.
func (l *Log) Torn() int64 { return l.torn }

// Size is the log's length in bytes: what Rewrite would replace.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Append adds a record with exactly one write(2) and no fsync (step write). It
// is all there or not at all: a short or failed write is undone, and if that
// fails too the log refuses everything afterwards. A full disk or a full log
// is env.ErrExhausted.
func (l *Log) Append(op string, rec []byte) error {
	if len(rec) > MaxRecord {
		return fmt.Errorf("%w: record of %d bytes, the bound is %d", env.ErrInvalid, len(rec), MaxRecord)
	}
	if err := l.dir.fault.step(op, "write"); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	if l.size+recHeaderLen+int64(len(rec)) > MaxLog {
		return fmt.Errorf("%w: log %s is full (%d bytes); it must be rewritten", env.ErrExhausted, l.Path(), l.size)
	}
	l.buf = appendRecord(l.buf[:0], l.salt, l.size, rec)
	n, err := writeOnce(l.f, l.buf, l.size)
	if err == nil && n == len(l.buf) {
		l.size += int64(n)
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%w: short write: %d of %d bytes: the file system is full or the file at its limit", env.ErrExhausted, n, len(l.buf))
	}
	return l.undo(op, classify(err))
}

// undo removes what a failed append may have left. The caller holds mu.
func (l *Log) undo(op string, cause error) error {
	cause = fmt.Errorf("append to %s: %w", l.Path(), cause)
	err := l.dir.fault.step(op, "truncate")
	if err == nil {
		err = l.f.Truncate(l.size)
	}
	if err != nil {
		l.refuse(fmt.Errorf("undo append: %w", err))
		return errors.Join(cause, l.broken)
	}
	return cause
}

// refuse makes every later change fail. The caller holds mu.
func (l *Log) refuse(cause error) {
	if l.broken == nil {
		l.broken = fmt.Errorf("%w: log %s refuses changes until it is opened again: %w", env.ErrUnavailable, l.Path(), cause)
	}
}

// Sync makes every record whose Append returned before durable (step sync).
// Appends go on meanwhile. After an error the log refuses everything.
func (l *Log) Sync(op string) error {
	if err := l.dir.fault.step(op, "sync"); err != nil {
		return err
	}
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	f, broken := l.f, l.broken
	l.mu.Unlock()
	if broken != nil {
		return broken
	}
	err := dataSync(f)
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse(fmt.Errorf("sync: %w", classify(err)))
	return l.broken
}

// Rewrite replaces the log's records atomically (steps write, sync, rename,
// syncdir). Appends wait until it is done, so records must not call the log.
// An error before the new file has its name leaves the log as it was.
func (l *Log) Rewrite(op string, records iter.Seq[[]byte]) error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	salt := newSalt()
	file, err := l.dir.Create(op, l.name, 0o600)
	if err != nil {
		return err
	}
	defer file.Abort()
	size, err := writeRecords(file, salt, records)
	if err != nil {
		return err
	}
	return l.replace(file, salt, size)
}

// replace commits the file and goes on in it. The caller holds both mutexes.
func (l *Log) replace(file *File, salt uint64, size int64) error {
	commit := file.Commit()
	if commit != nil && file.temp != "" {
		return commit // the name still belongs to the old file
	}
	f, err := l.dir.root.OpenFile(l.name, os.O_RDWR, 0)
	if err == nil {
		_ = l.f.Close()
		l.f, l.salt, l.size = f, salt, size
	}
	if err = errors.Join(commit, err); err != nil {
		l.refuse(fmt.Errorf("rewrite: %w", err))
		return l.broken
	}
	return nil
}

func writeRecords(w io.Writer, salt uint64, records iter.Seq[[]byte]) (int64, error) {
	const flush = 256 << 10
	size, buf := int64(logHeaderLen), encodeLogHeader(salt)
	for rec := range records {
		if len(rec) > MaxRecord || size+recHeaderLen+int64(len(rec)) > MaxLog {
			return 0, fmt.Errorf("%w: record of %d bytes after %d: over the bound of a record or the log", env.ErrInvalid, len(rec), size)
		}
		buf = appendRecord(buf, salt, size, rec)
		size += recHeaderLen + int64(len(rec))
		if len(buf) >= flush {
			if _, err := w.Write(buf); err != nil {
				return 0, err
			}
			buf = buf[:0]
		}
	}
	_, err := w.Write(buf)
	return size, err
}

// Close closes the file without syncing it. Later calls fail.
func (l *Log) Close() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse(os.ErrClosed)
	return l.f.Close()
}
