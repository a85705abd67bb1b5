package snapshot

import (
	"fmt"
	"slices"

	"hearth/internal/env"
)

// builder stores the directories of a finished walk, from the leaves up. A
// directory below which nothing changed keeps its pages, unread.
type builder struct {
	put    func(recordKind, []byte) (chunkID, error)
	reader *reader // of the snapshot before

	files, bytes, racy, visited int64
}

// dir stores a directory and returns its pages.
func (b *builder) dir(n *node) ([]chunkID, error) {
	changed := n.base == nil || n.base.st.kind != kindDir || len(n.base.kids) != len(n.kids)
	b.tally(n)
	for _, k := range n.kids {
		if k.st.kind != kindDir {
			b.tally(k)
			changed = changed || k.e != nil
			continue
		}
		pages, err := b.dir(k)
		if err != nil {
			return nil, err
		}
		k.pages = pages
		changed = changed || k.e != nil || !slices.Equal(pages, k.base.pages)
	}
	if !changed {
		return n.base.pages, nil
	}
	entries, err := b.entries(n)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", n.name, err)
	}
	var pages []chunkID
	err = encodePages(entries, func(page []byte) error {
		id, err := b.put(kindPage, page)
		pages = append(pages, id)
		return err
	})
	return pages, err
}

// entries makes a directory's entries: those that were read, and for the rest
// those of the snapshot before.
func (b *builder) entries(n *node) ([]*entry, error) {
	entries := make([]*entry, 0, len(n.kids))
	var old []*entry
	for _, k := range n.kids {
		e := k.e
		if e == nil {
			if old == nil {
				var err error
				if old, err = b.reader.entries(n.base.pages); err != nil {
					return nil, err
				}
			}
			i := slices.IndexFunc(old, func(o *entry) bool { return o.name == k.name })
			if i < 0 {
				return nil, fmt.Errorf("%w: the snapshot before has no %q, though the cache says so", env.ErrCorrupt, k.name)
			}
			e, old = old[i], old[i+1:] // both are sorted
		}
		if k.st.kind == kindDir {
			c := *e
			c.pages = k.pages
			e = &c
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (b *builder) tally(n *node) {
	b.files++
	if n.st.kind == kindFile {
		b.bytes += int64(n.st.size)
	}
	if !n.trusted {
		b.racy++
	}
	if n.e != nil {
		b.visited++
	}
}
