package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"hearth/internal/env"
)

// Import reads a stream that Export wrote, of this snapshot and this tenant,
// and returns when the snapshot is on stable storage. Its lineage may have
// other snapshots here, and goes on here: the next capture stores only what is
// new, but reads every file once, since what another node knew of its files'
// times says nothing here.
//
// Every byte is foreign. Each record is proved by its name, the tree is walked
// under the limits of the store before the reference is published, and what the
// snapshot does not name is refused. An error, or a crash, leaves the lineage
// as it was. A snapshot that is here already is a success; another one of the
// same number is env.ErrExists.
func (s *Store) Import(ctx context.Context, want ID, tenant string, r io.Reader) (Info, error) {
	name, seq, err := ParseID(string(want))
	if err := errors.Join(err, s.writable(), ctx.Err()); err != nil {
		return Info{}, err
	}
	im := &importer{ctx: ctx, s: s, id: want, seq: seq, stream: &streamReader{r: bufio.NewReaderSize(r, 1<<20)}}
	info, err := im.run(name, tenant)
	if err != nil {
		return Info{}, fmt.Errorf("import %s: %w", want, err)
	}
	return info, nil
}

// importer is one run of Import.
type importer struct {
	ctx    context.Context
	s      *Store
	id     ID
	seq    uint64
	stream *streamReader

	raw, records int64 // received
}

func (im *importer) run(name Lineage, tenant string) (Info, error) {
	head, err := im.stream.begin()
	if err != nil {
		return Info{}, err
	}
	if head.ID != im.id || head.Tenant != tenant {
		return Info{}, fmt.Errorf("%w: the stream is of %.128q, or of another tenant", env.ErrDenied, head.ID)
	}
	own := owner{Tenant: tenant, Secret: bytes.Clone(head.Secret)}
	keys, err := deriveKeys(own.Secret)
	if err != nil {
		return Info{}, err
	}
	ref, err := im.readRef(keys)
	if err != nil {
		return Info{}, err
	}
	unlock, err := im.s.locks.lock(im.ctx, name)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	if here, err := im.here(name, own, ref); err != nil || here != nil {
		return here.info(), err
	}
	a, err := im.s.openAddition(name, own)
	if err != nil {
		return Info{}, err
	}
	defer a.close()
	info, err := im.add(a, ref)
	if err != nil {
		a.discard()
	}
	return info, err
}

func (r *refRecord) info() Info {
	if r == nil {
		return Info{}
	}
	return r.Info
}

// readRef reads the reference and checks what it says of the snapshot.
func (im *importer) readRef(k *keys) (*refRecord, error) {
	b, err := im.stream.expect(frameRef)
	if err != nil {
		return nil, err
	}
	if bytes.Count(b, []byte(",")) > maxRefParts {
		return nil, fmt.Errorf("%w: reference of more than %d parts", env.ErrCorrupt, maxRefParts)
	}
	ref, err := decodeRef(k, b)
	if err != nil {
		return nil, err
	}
	i := &ref.Info
	if i.ID != im.id || MakeID(i.Lineage, i.Seq) != im.id {
		return nil, fmt.Errorf("%w: stream has the reference of %.128q", env.ErrCorrupt, i.ID)
	}
	least := min(int64(i.FreezeTime), int64(i.Took), i.Read, i.Redone, i.Racy, i.Sockets, i.Mounts, i.Foreign, i.XAttrs)
	if least < 0 || len(i.Base) > maxBase || i.Parent != "" && !validID(i.Parent) || len(i.Roots) == 0 || len(i.Roots) > maxRoots {
		return nil, fmt.Errorf("%w: reference says what no capture says", env.ErrCorrupt)
	}
	for n, root := range i.Roots {
		if Lineage(root).check() != nil || slices.Contains(i.Roots[:n], root) {
			return nil, fmt.Errorf("%w: root name %.64q", env.ErrCorrupt, root)
		}
	}
	return ref, checkLabels(i.Labels)
}

const (
	maxBase  = 1024 // bytes of an image's name
	maxRoots = 64
	// maxRefParts bounds the commas of a reference. An honest one has fewer, even
	// if its labels are nothing else. JSON makes 50 bytes and more of each.
	maxRefParts = 16384
)

func validID(id ID) bool {
	_, _, err := ParseID(string(id))
	return err == nil
}

// here returns the snapshot if the lineage has it, whole. A lineage of the same
// name but with another secret is not the same.
func (im *importer) here(name Lineage, own owner, ref *refRecord) (*refRecord, error) {
	if st, err := im.s.standing(name); err != nil || st != live {
		return nil, err
	}
	lin, err := im.s.openLineage(name)
	if err != nil {
		return nil, err
	}
	defer lin.close()
	if lin.owner.Tenant != own.Tenant {
		return nil, fmt.Errorf("%w: lineage %s belongs to another tenant here", env.ErrDenied, name)
	}
	if !bytes.Equal(lin.owner.Secret, own.Secret) {
		return nil, fmt.Errorf("%w: lineage %s was begun here and on another node independently; it cannot be joined", env.ErrState, name)
	}
	mine, err := lin.ref(im.seq)
	if errors.Is(err, env.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !mine.Info.Time.Equal(ref.Info.Time) || !slices.EqualFunc(mine.RootEntries, ref.RootEntries, bytes.Equal) {
		return nil, fmt.Errorf("%w: another snapshot %s, of %s, is here", env.ErrExists, im.id, mine.Info.Time.UTC().Format("2006-01-02T15:04:05Z"))
	}
	x, err := im.s.loadIndex(lin, mine.NextPack)
	if err != nil {
		return nil, err
	}
	defer x.close()
	_, _, err = im.prove(x, mine)
	return mine, err
}

// add receives the records and makes them a snapshot.
func (im *importer) add(a *addition, ref *refRecord) (Info, error) {
	if err := im.receive(a); err != nil {
		return Info{}, err
	}
	total, next, err := a.packs.close()
	if err != nil {
		return Info{}, err
	}
	x, err := im.s.loadIndex(a.lin, next)
	if err != nil {
		return Info{}, err
	}
	defer x.close()
	named, counts, err := im.prove(x, ref)
	if err != nil {
		return Info{}, err
	}
	for id := range a.packs.seen {
		if _, ok := named[id]; !ok {
			return Info{}, fmt.Errorf("%w: stream has record %s, which the snapshot does not name", env.ErrCorrupt, id)
		}
	}
	if a.head == nil || a.head.Info.Seq < im.seq {
		// It knows the files behind a snapshot that is not the newest any more.
		if err := a.lin.dir.Remove("cache", cacheName); err != nil {
			return Info{}, err
		}
	}
	ref.NextPack = next
	ref.Info.Tenant, ref.Info.NewBytes = a.lin.owner.Tenant, total
	ref.Info.Files, ref.Info.Bytes = counts.entries, counts.lengths
	return im.s.publish(a.lin, ref)
}

// receive takes the records that the lineage does not have, each proved.
func (im *importer) receive(a *addition) error {
	r := a.index.newReader(im.s.comp)
	for {
		if err := im.ctx.Err(); err != nil {
			return err
		}
		kind, payload, err := im.stream.frame()
		switch {
		case err != nil:
			return err
		case kind == frameEnd:
			if len(payload) != 8 || binary.LittleEndian.Uint64(payload) != uint64(im.records) {
				return fmt.Errorf("%w: the stream's end does not count its %d records", env.ErrCorrupt, im.records)
			}
			return im.stream.finish()
		case kind != frameRecord:
			return fmt.Errorf("%w: stream has frame %d among its records", env.ErrCorrupt, kind)
		}
		if err := im.record(a, r, payload); err != nil {
			return fmt.Errorf("record %d of the stream: %w", im.records, err)
		}
	}
}

func (im *importer) record(a *addition, r *reader, b []byte) error {
	l, payload, err := decodeRecord(b, packHeaderLen)
	if err != nil {
		return err
	}
	if l.end() != packHeaderLen+uint64(len(b)) {
		return fmt.Errorf("%w: bytes after a record", env.ErrCorrupt)
	}
	im.records++
	im.raw += int64(l.raw)
	if err := im.s.limits.checkReceived(im.records, im.raw); err != nil {
		return err
	}
	if _, err := r.prove(l, payload); err != nil {
		return fmt.Errorf("%w: %w", env.ErrCorrupt, err)
	}
	if !a.packs.claim(l.id) {
		return nil
	}
	return a.packs.put(l, payload)
}

// prove walks the tree that the reference names: every record must be there and
// be what it is named as, and the tree must be one that a capture under these
// limits makes. It returns all that the snapshot names, and what it counted.
func (im *importer) prove(x *index, ref *refRecord) (named map[chunkID]struct{}, counts *importLimits, err error) {
	t := newTracer(im.ctx, x.newReader(im.s.comp), func(kind recordKind, id chunkID, length uint64) error {
		pl, ok := x.places[id]
		switch {
		case !ok:
			return fmt.Errorf("%w: record %s is missing", env.ErrCorrupt, id)
		case pl.kind != kind:
			return fmt.Errorf("%w: record %s is of kind %d, not %d", env.ErrCorrupt, id, pl.kind, kind)
		case kind == kindData && uint64(pl.raw) != length:
			return pieceLength(id, uint64(pl.raw), length)
		}
		return nil
	})
	counts = &importLimits{Limits: &im.s.limits}
	t.accept, t.acceptPiece = counts.accept, counts.acceptPiece
	err = t.snapshot(ref)
	return t.seen, counts, err
}

// importLimits counts what a foreign tree makes a restore do.
type importLimits struct {
	*Limits
	entries, pieces int64
	bytes           int64 // of data and attributes
	lengths         int64 // of the files, holes included
}

func (c *importLimits) accept(depth int, e *entry) error {
	c.entries++
	switch {
	case c.entries > c.Entries:
		return fmt.Errorf("%w: more than %d names", env.ErrExhausted, c.Entries)
	case depth > c.Depth+1:
		return fmt.Errorf("%w: more than %d directories below each other", env.ErrExhausted, c.Depth)
	case e.size > uint64(c.FileBytes):
		return fmt.Errorf("%w: %d bytes long, the limit is %d", env.ErrExhausted, e.size, c.FileBytes)
	}
	c.lengths += int64(e.size)
	own := 0
	for _, x := range e.xattrs {
		own += len(x.name) + len(x.value)
		if keep, err := keepXattr(x.name); err != nil || !keep {
			return errors.Join(err, fmt.Errorf("%w: attribute %.64q, which no capture keeps", env.ErrCorrupt, x.name))
		}
	}
	return c.add(int64(own))
}

// add counts bytes that a restore writes.
func (c *importLimits) add(n int64) error {
	if c.bytes += n; c.bytes > c.Bytes+c.Entries*leastExtent {
		return fmt.Errorf("%w: more than %d bytes of data", env.ErrExhausted, c.Bytes)
	}
	return nil
}

// leastExtent is the shortest run of data or hole that a file system has.
const leastExtent = 4096

func (c *importLimits) acceptPiece(s segment) error {
	c.pieces++
	if most := 2 * (c.Bytes/leastExtent + c.Entries); c.pieces > most {
		return fmt.Errorf("%w: more than %d pieces of files", env.ErrExhausted, most)
	}
	if s.hole() {
		return nil
	}
	return c.add(int64(s.length))
}

// checkReceived bounds what a stream may bring: the data of a tree, its pages
// and lists, and as many records as that can be cut into.
func (l *Limits) checkReceived(records, raw int64) error {
	if most := l.Bytes/chunkMin + 4*l.Entries + 1024; records > most {
		return fmt.Errorf("%w: more than %d records", env.ErrExhausted, most)
	}
	if most := l.Bytes + l.Entries*1024 + (64 << 20); raw > most {
		return fmt.Errorf("%w: more than %d bytes of records", env.ErrExhausted, most)
	}
	return nil
}
