package snapshot

import (
	"errors"
	"fmt"
	"io"

	"hearth/internal/env"
)

// index finds the records of a lineage and of those that it borrows from. It
// does not change once it is loaded.
type index struct {
	keys   *keys
	places map[chunkID]place
	open   openPacks
	// lost are index files that had to be made from their packs.
	lost []lostIndex
	// borrowed are the lineages whose packs are read too.
	borrowed []*lineageDir
}

func newIndex(k *keys) *index { return &index{keys: k, places: map[chunkID]place{}} }

type place struct {
	pack *packFile
	location
}

type lostIndex struct {
	lin   *lineageDir
	seq   uint64
	table []location
	size  uint64
}

func (x *index) has(id chunkID) bool {
	_, ok := x.places[id]
	return ok
}

func (x *index) close() {
	x.open.closeAll()
	for _, l := range x.borrowed {
		l.close()
	}
}

const maxIndex = maxPack/recordHdrLen*tableEntryLen + indexHdrLen

// load adds the packs of a lineage that come before number limit.
func (x *index) load(lin *lineageDir, limit uint64) error {
	names, err := lin.packs.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		seq, ok := parsePackName(name, packExt)
		if !ok || seq >= limit {
			continue // foreign, or of a capture that was never acknowledged
		}
		p := &packFile{dir: lin.packs, name: name, open: &x.open}
		table, err := x.table(lin, p, seq)
		if err != nil {
			return err
		}
		for _, l := range table {
			x.places[l.id] = place{p, l}
		}
	}
	return nil
}

// table reads a pack's index, or makes it again from the pack.
func (x *index) table(lin *lineageDir, p *packFile, seq uint64) ([]location, error) {
	size, err := p.size()
	if err != nil {
		return nil, err
	}
	b, err := lin.idx.ReadFile(packName(seq, indexExt), maxIndex)
	if err == nil {
		table, packSize, err := decodeIndex(b)
		if err == nil && packSize == uint64(size) {
			return table, nil
		}
		if errors.Is(err, env.ErrUnsupported) {
			return nil, err
		}
	} else if !errors.Is(err, env.ErrNotFound) && !errors.Is(err, env.ErrCorrupt) {
		return nil, err
	}
	table, rescued, err := p.readTable(size, x.keys.id)
	if err != nil {
		return nil, err
	}
	if !rescued { // a rescued table may lack records: the damage must stay visible
		x.lost = append(x.lost, lostIndex{lin, seq, table, uint64(size)})
	}
	return table, nil
}

// repair writes the lost index files of one lineage.
func (x *index) repair(lin *lineageDir) error {
	for _, l := range x.lost {
		if l.lin != lin {
			continue
		}
		if err := lin.idx.WriteFile("index", packName(l.seq, indexExt), encodeIndex(l.table, l.size), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// reader reads records and proves each by its id. It is used by one goroutine.
type reader struct {
	ix     *index
	comp   *compressor
	hash   *hasher
	record []byte // buffer of stored
	raw    []byte // buffer of expand
}

func (x *index) newReader(comp *compressor) *reader {
	return &reader{ix: x, comp: comp, hash: x.keys.newHasher()}
}

// stored returns a record as it lies in its pack and its payload, valid until
// the next read. Its checksum was verified, its content was not.
func (r *reader) stored(id chunkID, kind recordKind) (record, payload []byte, pl place, err error) {
	pl, ok := r.ix.places[id]
	if !ok {
		return nil, nil, pl, fmt.Errorf("%w: record %s is in no pack of the lineage", env.ErrCorrupt, id)
	}
	need := recordHdrLen + int(pl.stored)
	if cap(r.record) < need {
		r.record = make([]byte, need)
	}
	record = r.record[:need]
	switch _, err := pl.pack.ReadAt(record, int64(pl.offset)); {
	case errors.Is(err, io.EOF):
		return nil, nil, pl, pl.pack.damage(pl.offset, errors.New("the pack ends before it"))
	case err != nil:
		return nil, nil, pl, fmt.Errorf("read pack: %w", err)
	}
	l, payload, err := decodeRecord(record, pl.offset)
	if err == nil && (l != pl.location || l.kind != kind) {
		err = errors.New("it is not the record that the index names")
	}
	if err != nil {
		return nil, nil, pl, pl.pack.damage(pl.offset, err)
	}
	return record, payload, pl, nil
}

// read returns a record's content, valid until the next read. Damage is
// env.ErrCorrupt and names pack and offset.
func (r *reader) read(id chunkID, kind recordKind) ([]byte, error) {
	_, payload, pl, err := r.stored(id, kind)
	if err != nil {
		return nil, err
	}
	data, err := r.prove(pl.location, payload)
	if err != nil {
		return nil, pl.pack.damage(pl.offset, err)
	}
	return data, nil
}

// prove expands a record's payload and compares it with its id.
func (r *reader) prove(l location, payload []byte) ([]byte, error) {
	data, err := r.expand(l, payload)
	if err == nil && r.hash.id(l.kind, data) != l.id {
		err = errors.New("content does not match its id")
	}
	return data, err
}

func (r *reader) expand(l location, payload []byte) ([]byte, error) {
	if l.codec == codecRaw {
		return payload, nil
	}
	if cap(r.raw) < int(l.raw) {
		r.raw = make([]byte, 0, max(int(l.raw), chunkMax))
	}
	data, err := r.comp.dec.DecodeAll(payload, r.raw[:0:l.raw])
	if err != nil {
		return nil, fmt.Errorf("expand: %w", err)
	}
	if len(data) != int(l.raw) {
		return nil, fmt.Errorf("expands to %d bytes, not %d", len(data), l.raw)
	}
	return data, nil
}

// entries reads all entries of a directory.
func (r *reader) entries(pages []chunkID) ([]*entry, error) {
	var all []*entry
	last := ""
	for _, id := range pages {
		page, err := r.page(id, last)
		if err != nil {
			return nil, err
		}
		last = page[len(page)-1].name
		all = append(all, page...)
	}
	return all, nil
}

// page reads one page, which is never empty and whose names come after the
// given one.
func (r *reader) page(id chunkID, after string) ([]*entry, error) {
	b, err := r.read(id, kindPage)
	if err != nil {
		return nil, err
	}
	page, err := decodePage(b, after)
	if err != nil {
		return nil, fmt.Errorf("page %s: %w", id, err)
	}
	return page, nil
}

// segments calls visit for each run of a file, in order.
func (r *reader) segments(e *entry, visit func(off uint64, s segment) error) error {
	off := uint64(0)
	each := func(segs []segment) error {
		for _, s := range segs {
			if off+s.length > e.size {
				return fmt.Errorf("%w: pieces are longer than the file's %d bytes", env.ErrCorrupt, e.size)
			}
			if err := visit(off, s); err != nil {
				return err
			}
			off += s.length
		}
		return nil
	}
	if err := each(e.segments); err != nil {
		return err
	}
	for _, id := range e.lists {
		b, err := r.read(id, kindList)
		if err != nil {
			return err
		}
		segs, err := decodeList(b)
		if err != nil {
			return fmt.Errorf("list %s: %w", id, err)
		}
		if err := each(segs); err != nil {
			return err
		}
	}
	if off != e.size {
		return fmt.Errorf("%w: pieces make %d of the file's %d bytes", env.ErrCorrupt, off, e.size)
	}
	return nil
}
