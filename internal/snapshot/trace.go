package snapshot

import (
	"context"
	"fmt"

	"hearth/internal/env"
)

// tracer finds every record that a snapshot names, and visits each once,
// however often it is named. Pages and lists are read to find what they name.
type tracer struct {
	ctx  context.Context
	r    *reader
	seen map[chunkID]struct{}
	// visit is called before what the record names. length is that of a piece
	// of data, 0 for pages and lists.
	visit func(kind recordKind, id chunkID, length uint64) error
	// accept and acceptPiece, if they are set, may refuse what is named.
	accept      func(depth int, e *entry) error
	acceptPiece func(segment) error
	files       int64
}

func newTracer(ctx context.Context, r *reader, visit func(recordKind, chunkID, uint64) error) *tracer {
	return &tracer{ctx: ctx, r: r, seen: map[chunkID]struct{}{}, visit: visit}
}

// snapshot traces all roots. An error names the path that leads to it.
func (t *tracer) snapshot(ref *refRecord) error {
	for i, b := range ref.RootEntries {
		e, err := decodeRootEntry(b)
		if err == nil {
			err = t.entry("/"+ref.Info.Roots[i], 0, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tracer) once(kind recordKind, id chunkID, length uint64) error {
	if _, ok := t.seen[id]; ok {
		return nil
	}
	t.seen[id] = struct{}{}
	return t.visit(kind, id, length)
}

func (t *tracer) entry(path string, depth int, e *entry) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	t.files++
	var err error
	if t.accept != nil {
		err = t.accept(depth, e)
	}
	switch {
	case err != nil:
	case e.kind == kindDir:
		return t.dir(path, depth, e)
	case e.kind == kindFile:
		err = t.file(e)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

// dir goes page by page: a hostile directory must not fill the memory.
func (t *tracer) dir(path string, depth int, e *entry) error {
	last := ""
	for _, id := range e.pages {
		if err := t.once(kindPage, id, 0); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		page, err := t.r.page(id, last)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		for _, e := range page {
			if err := t.entry(path+"/"+e.name, depth+1, e); err != nil {
				return err
			}
			last = e.name
		}
	}
	return nil
}

func (t *tracer) file(e *entry) error {
	for _, id := range e.lists {
		if err := t.once(kindList, id, 0); err != nil {
			return err
		}
	}
	return t.r.segments(e, func(_ uint64, s segment) error {
		if t.acceptPiece != nil {
			if err := t.acceptPiece(s); err != nil {
				return err
			}
		}
		if s.hole() {
			return nil
		}
		return t.once(kindData, s.id, s.length)
	})
}

// pieceLength is the error of a piece that is not as long as its file says.
func pieceLength(id chunkID, got, want uint64) error {
	return fmt.Errorf("%w: piece %s has %d bytes, not %d", env.ErrCorrupt, id, got, want)
}
