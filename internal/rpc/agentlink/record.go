package agentlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"hearth/internal/durable"
	"hearth/internal/env"
)

const (
	leaseFile = "lease"
	// defaultFence stands in for a record that cannot be read.
	defaultFence = 5 * time.Minute
)

// record keeps the lease in a file over restarts of the agent. It is written in
// place at every answered report and never synced: a machine that crashes ends
// its environments, and the record with the boot that it names.
type record struct {
	log    *slog.Logger
	path   string
	boot   string
	failed atomic.Bool // the last write
}

// openRecord opens the record, and returns the lease that it holds. If it is of
// an earlier boot, or cannot be read, the lease begins now.
func openRecord(log *slog.Logger, dir *durable.Dir, boot string, now time.Duration) (*record, Lease, error) {
	r := &record{log: log, path: filepath.Join(dir.Path(), leaseFile), boot: boot}
	l := Lease{Last: now}
	raw, err := dir.ReadFile(leaseFile, int64(recordSize))
	if errors.Is(err, env.ErrNotFound) {
		return r, l, nil
	}
	if err != nil && !errors.Is(err, env.ErrCorrupt) {
		return nil, Lease{}, err
	}
	var of string
	var kept Lease
	if err == nil {
		of, kept, err = decodeRecord(raw)
	}
	switch {
	case err != nil:
		log.Warn("lease begins anew", "file", r.path, "error", err)
		l.FenceAfter = defaultFence
		if err := dir.Remove("lease-remove", leaseFile); err != nil {
			return nil, Lease{}, err
		}
	case of != boot || kept.Last > now:
		l.FenceAfter = kept.FenceAfter
	default:
		l = kept
	}
	return r, l, nil
}

// write replaces the record. A fault is logged when it begins.
func (r *record) write(l Lease) {
	err := r.overwrite(encodeRecord(r.boot, l))
	if failed := err != nil; failed != r.failed.Swap(failed) && failed {
		r.log.Warn("lease not kept", "error", err)
	}
}

func (r *record) overwrite(b []byte) error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// The record: a mark, the boot id, two times in nanoseconds, a checksum.
const (
	recordMark = "HLEASE1\n"
	bootSize   = 40
	recordSize = len(recordMark) + bootSize + 8 + 8 + 4
)

func encodeRecord(boot string, l Lease) []byte {
	b := make([]byte, recordSize)
	copy(b, recordMark)
	copy(b[len(recordMark):len(recordMark)+bootSize], boot)
	rest := b[len(recordMark)+bootSize:]
	binary.LittleEndian.PutUint64(rest, uint64(l.Last))
	binary.LittleEndian.PutUint64(rest[8:], uint64(l.FenceAfter))
	binary.LittleEndian.PutUint32(rest[16:], crc32.ChecksumIEEE(b[:recordSize-4]))
	return b
}

func decodeRecord(b []byte) (boot string, l Lease, err error) {
	if len(b) != recordSize || string(b[:len(recordMark)]) != recordMark ||
		binary.LittleEndian.Uint32(b[recordSize-4:]) != crc32.ChecksumIEEE(b[:recordSize-4]) {
		return "", Lease{}, fmt.Errorf("%w: the lease's record is damaged", env.ErrCorrupt)
	}
	name := b[len(recordMark) : len(recordMark)+bootSize]
	for len(name) > 0 && name[len(name)-1] == 0 {
		name = name[:len(name)-1]
	}
	rest := b[len(recordMark)+bootSize:]
	l.Last = time.Duration(binary.LittleEndian.Uint64(rest))
	l.FenceAfter = time.Duration(binary.LittleEndian.Uint64(rest[8:]))
	if l.Last < 0 || l.FenceAfter < 0 {
		return "", Lease{}, fmt.Errorf("%w: the lease's record has times before the boot", env.ErrCorrupt)
	}
	return string(name), l, nil
}
