package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/durable"
	"hearth/internal/env"
)

const (
	packExt  = ".pk"
	indexExt = ".ix"

	// leastShrink: data that zstd makes less than a sixteenth smaller is
	// stored as it is.
	leastShrink   = 16
	leastCompress = 128 // bytes
)

func packName(seq uint64, ext string) string { return fmt.Sprintf("%016x%s", seq, ext) }

// parsePackName is the inverse of packName; ok is false for foreign names.
func parsePackName(name, ext string) (seq uint64, ok bool) {
	if len(name) != 16+len(ext) {
		return 0, false
	}
	_, err := fmt.Sscanf(name[:16], "%016x", &seq)
	return seq, err == nil && packName(seq, ext) == name
}

// compressor is zstd with bounded memory. It may be used by several goroutines.
type compressor struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCompressor(workers int) (*compressor, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(workers), zstd.WithEncoderCRC(false), zstd.WithWindowSize(chunkMax*2))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers),
		zstd.WithDecoderMaxMemory(maxRaw*2), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return &compressor{enc: enc, dec: dec}, nil
}

func (c *compressor) close() {
	_ = c.enc.Close()
	c.dec.Close()
}

// shrink returns how data is stored.
func (c *compressor) shrink(data, buf []byte) ([]byte, codec) {
	if len(data) < leastCompress {
		return data, codecRaw
	}
	out := c.enc.EncodeAll(data, buf[:0])
	if len(out) > len(data)-len(data)/leastShrink {
		return data, codecRaw
	}
	return out, codecZstd
}

// packWriter adds records to packs. put may be called from several goroutines.
type packWriter struct {
	lin  *lineageDir
	keys *keys
	have *index

	mu    sync.Mutex // guards all below
	seen  map[chunkID]struct{}
	next  uint64 // number of the pack that is begun next
	file  *durable.File
	seq   uint64
	buf   []byte
	table []location
	off   uint64 // where buf goes
	total int64  // bytes of finished packs and indexes
	err   error
}

func newPackWriter(lin *lineageDir, k *keys, have *index, next uint64) *packWriter {
	return &packWriter{lin: lin, keys: k, have: have, next: next, seen: map[chunkID]struct{}{}}
}

// claim is true if the caller must put this record: nobody has it yet.
func (w *packWriter) claim(id chunkID) bool {
	if w.have.has(id) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.seen[id]; ok {
		return false
	}
	w.seen[id] = struct{}{}
	return true
}

const packBuffer = 1 << 20

// put adds a claimed record.
func (w *packWriter) put(l location, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = w.add(l, payload)
	}
	return w.err
}

func (w *packWriter) add(l location, payload []byte) error {
	if w.file == nil {
		file, err := w.lin.packs.Create("pack", packName(w.next, packExt), 0o600)
		if err != nil {
			return err
		}
		w.file, w.seq, w.next = file, w.next, w.next+1
		w.buf, w.off, w.table = append(w.buf[:0], encodePackHeader(w.keys.id)...), 0, nil
	}
	l.offset = w.off + uint64(len(w.buf))
	l.stored = uint32(len(payload))
	w.buf = appendRecord(w.buf, l, payload)
	w.table = append(w.table, l)
	if len(w.buf) >= packBuffer {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if l.end() >= packTarget {
		return w.finish()
	}
	return nil
}

func (w *packWriter) flush() error {
	n, err := w.file.Write(w.buf)
	w.off += uint64(n)
	w.buf = w.buf[:0]
	return err
}

// finish makes the open pack durable, and then its index.
func (w *packWriter) finish() error {
	end := w.off + uint64(len(w.buf))
	sortTable(w.table)
	w.buf = append(w.buf, encodeTrailer(w.table, end)...)
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.file.Commit(); err != nil {
		return err
	}
	w.file = nil
	ix := encodeIndex(w.table, w.off)
	w.total += int64(w.off) + int64(len(ix))
	return w.lin.idx.WriteFile("index", packName(w.seq, indexExt), ix, 0o600)
}

// close finishes the last pack and returns how many bytes all took and the
// number that the next writer begins with.
func (w *packWriter) close() (total int64, next uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && w.file != nil {
		w.err = w.finish()
	}
	return w.total, w.next, w.err
}

// abort drops an unfinished pack. After close it does nothing.
func (w *packWriter) abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != nil {
		w.file.Abort()
	}
	w.err = errors.Join(w.err, os.ErrClosed)
}

// packFile is a finished pack, opened at its first read.
type packFile struct {
	dir  *durable.Dir
	name string

	mu sync.Mutex // guards f
	f  *os.File
}

func (p *packFile) path() string { return filepath.Join(p.dir.Path(), p.name) }

func (p *packFile) open() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f == nil {
		f, err := p.dir.Open(p.name)
		if err != nil {
			return nil, err
		}
		p.f = f
	}
	return p.f, nil
}

func (p *packFile) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f != nil {
		_ = p.f.Close()
		p.f = nil
	}
}

// damage is the error of a record that is not what it should be.
func (p *packFile) damage(offset uint64, cause error) error {
	if !errors.Is(cause, env.ErrCorrupt) && !errors.Is(cause, env.ErrUnsupported) {
		cause = fmt.Errorf("%w: %w", env.ErrCorrupt, cause)
	}
	return fmt.Errorf("pack %s, record at offset %d: %w", p.path(), offset, cause)
}

// readTable reads the pack's table by its footer, or, if that is damaged, by
// all its records. rescued is true in the second case.
func (p *packFile) readTable(keyID [8]byte) (table []location, rescued bool, err error) {
	f, err := p.open()
	if err != nil {
		return nil, false, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, false, fmt.Errorf("read pack: %w", err)
	}
	if info.Size() > maxPack {
		return nil, false, fmt.Errorf("%w: pack %s has %d bytes", env.ErrCorrupt, p.path(), info.Size())
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return nil, false, fmt.Errorf("read pack: %w", err)
	}
	table, rescued, err = decodePack(data, keyID)
	if err != nil {
		err = fmt.Errorf("pack %s: %w", p.path(), err)
	}
	return table, rescued, err
}

// decodePack is readTable on the bytes of a whole pack.
func decodePack(data []byte, keyID [8]byte) (table []location, rescued bool, err error) {
	id, err := decodePackHeader(data)
	if err != nil {
		return nil, false, err
	}
	if id != keyID {
		return nil, false, fmt.Errorf("%w: written with key %x, the store's is %x", env.ErrDenied, id, keyID)
	}
	if table, err = decodeTrailer(data); err == nil {
		return table, false, nil
	}
	if errors.Is(err, env.ErrUnsupported) {
		return nil, false, err
	}
	return scanRecords(data), true, nil
}

func decodeTrailer(data []byte) ([]location, error) {
	if len(data) < packHeaderLen+footerLen {
		return nil, fmt.Errorf("%w: pack of %d bytes", env.ErrCorrupt, len(data))
	}
	f, err := decodeFooter(data[len(data)-footerLen:], int64(len(data)))
	if err != nil {
		return nil, err
	}
	body := data[f.offset : len(data)-footerLen]
	if crc(body) != f.sum {
		return nil, fmt.Errorf("%w: pack table checksum", env.ErrCorrupt)
	}
	return decodeTable(body, f.offset)
}

// scanRecords finds every whole record of a pack without its table, and goes
// on behind a damaged one at the next that is whole.
func scanRecords(data []byte) (table []location) {
	seen := map[chunkID]bool{}
	for off := uint64(packHeaderLen); off+recordHdrLen <= uint64(len(data)); {
		l, _, err := decodeRecord(data[off:], off)
		if err != nil {
			off++
			continue
		}
		if !seen[l.id] {
			seen[l.id] = true
			table = append(table, l)
		}
		off = l.end()
	}
	sortTable(table)
	return table
}
