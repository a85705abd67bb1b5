package snapshot

import (
	"context"
	"fmt"
	"io"

	"hearth/internal/env"
)

// Export writes one snapshot as a stream that Import reads: all that it names,
// also where that lies in lineages it borrows from, and nothing else. It holds
// up nobody; if the lineage is deleted meanwhile, it fails.
//
// A lineage that was begun before lineages had secrets is env.ErrUnsupported:
// its names are derived from the secret of the whole store, which never leaves.
func (s *Store) Export(ctx context.Context, id ID, w io.Writer) error {
	err := s.withSnapshot(id, func(lin *lineageDir, ref *refRecord, x *index) error {
		if len(lin.owner.Secret) == 0 {
			return fmt.Errorf("%w: its lineage was begun by a program whose snapshots cannot leave their node", env.ErrUnsupported)
		}
		return s.export(ctx, &streamWriter{w}, lin, ref, x)
	})
	if err != nil {
		return fmt.Errorf("export %s: %w", id, err)
	}
	return nil
}

func (s *Store) export(ctx context.Context, w *streamWriter, lin *lineageDir, ref *refRecord, x *index) error {
	if err := w.begin(streamHead{ID: ref.Info.ID, Tenant: lin.owner.Tenant, Secret: lin.owner.Secret}); err != nil {
		return err
	}
	file, err := encodeRef(lin.keys, ref)
	if err != nil {
		return err
	}
	if err := w.frame(frameRef, file); err != nil {
		return err
	}
	r := x.newReader(s.comp)
	t := newTracer(ctx, r, func(kind recordKind, id chunkID, _ uint64) error {
		record, _, _, err := r.stored(id, kind)
		if err != nil {
			return err
		}
		return w.frame(frameRecord, record)
	})
	if err := t.snapshot(ref); err != nil {
		return err
	}
	return w.end(uint64(len(t.seen)))
}
