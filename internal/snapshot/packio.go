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

// compressor is zstd with bounded memory. It may be used by several goroutines
// and holds nothing but memory, so nobody closes it.
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

func newPackWriter(lin *lineageDir, have *index, next uint64) *packWriter {
	return &packWriter{lin: lin, have: have, next: next, seen: map[chunkID]struct{}{}}
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
	if l.raw > maxRaw { // a page: its directory's names can be chosen so that each has a page
		return fmt.Errorf("%w: record of %d bytes, the bound is %d: too many names in one directory", env.ErrExhausted, l.raw, maxRaw)
	}
	if w.file == nil {
		file, err := w.lin.packs.Create("pack", packName(w.next, packExt), 0o600)
		if err != nil {
			return err
		}
		w.file, w.seq, w.next = file, w.next, w.next+1
		w.buf, w.off, w.table = append(w.buf[:0], encodePackHeader(w.lin.keys.id)...), 0, nil
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

// packFile is a finished pack. Its file is opened at a read, and closed again
// when too many others were opened after it.
type packFile struct {
	dir  *durable.Dir
	name string
	open *openPacks

	mu sync.Mutex // guards f
	f  *os.File
}

func (p *packFile) path() string { return filepath.Join(p.dir.Path(), p.name) }

// ReadAt implements io.ReaderAt.
func (p *packFile) ReadAt(b []byte, off int64) (n int, err error) {
	p.mu.Lock()
	opened := p.f == nil
	if opened {
		p.f, err = p.dir.Open(p.name)
	}
	if err == nil {
		n, err = p.f.ReadAt(b, off)
	}
	p.mu.Unlock()
	if opened {
		p.open.add(p)
	}
	return n, err
}

func (p *packFile) size() (int64, error) {
	f, err := p.dir.Open(p.name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("read pack: %w", err)
	}
	return info.Size(), nil
}

func (p *packFile) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f != nil {
		_ = p.f.Close()
		p.f = nil
	}
}

// maxOpenPacks bounds the descriptors of one reading of a lineage.
const maxOpenPacks = 64

// openPacks are the packs of one index whose files are open, the oldest first.
type openPacks struct {
	mu   sync.Mutex // guards list; never held while a pack is
	list []*packFile
}

func (o *openPacks) add(p *packFile) {
	o.mu.Lock()
	o.list = append(o.list, p)
	var oldest *packFile
	if len(o.list) > maxOpenPacks {
		oldest, o.list = o.list[0], o.list[1:]
	}
	o.mu.Unlock()
	if oldest != nil {
		oldest.close()
	}
}

func (o *openPacks) closeAll() {
	o.mu.Lock()
	all := o.list
	o.list = nil
	o.mu.Unlock()
	for _, p := range all {
		p.close()
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
func (p *packFile) readTable(size int64, keyID [8]byte) (table []location, rescued bool, err error) {
	table, rescued, err = readPack(p, size, keyID)
	if err != nil {
		err = fmt.Errorf("pack %s: %w", p.path(), err)
	}
	return table, rescued, err
}

func readPack(r io.ReaderAt, size int64, keyID [8]byte) (table []location, rescued bool, err error) {
	if size > maxPack {
		return nil, false, fmt.Errorf("%w: pack of %d bytes", env.ErrCorrupt, size)
	}
	head, err := readRange(r, 0, min(size, packHeaderLen))
	if err != nil {
		return nil, false, err
	}
	id, err := decodePackHeader(head)
	if err != nil {
		return nil, false, err
	}
	if id != keyID {
		return nil, false, fmt.Errorf("%w: written with key %x, the lineage's is %x", env.ErrDenied, id, keyID)
	}
	table, err = readTrailer(r, size)
	if err == nil || !errors.Is(err, env.ErrCorrupt) {
		return table, false, err
	}
	all, err := readRange(r, 0, size)
	if err != nil {
		return nil, false, err
	}
	return scanRecords(all), true, nil
}

func readTrailer(r io.ReaderAt, size int64) ([]location, error) {
	if size < packHeaderLen+footerLen {
		return nil, fmt.Errorf("%w: pack of %d bytes", env.ErrCorrupt, size)
	}
	b, err := readRange(r, size-footerLen, footerLen)
	if err != nil {
		return nil, err
	}
	f, err := decodeFooter(b, size)
	if err != nil {
		return nil, err
	}
	body, err := readRange(r, int64(f.offset), size-footerLen-int64(f.offset))
	if err != nil {
		return nil, err
	}
	if crc(body) != f.sum {
		return nil, fmt.Errorf("%w: pack table checksum", env.ErrCorrupt)
	}
	return decodeTable(body, f.offset)
}

func readRange(r io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := r.ReadAt(b, off); err != nil && !(err == io.EOF && n == 0) {
		return nil, fmt.Errorf("read pack: %w", err)
	}
	return b, nil
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
