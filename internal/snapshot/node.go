package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"hearth/internal/env"
)

// fileStat is what statx says of a name. Two equal ones, the first of them
// trusted, mean that nothing about the file changed in between.
type fileStat struct {
	kind     fileKind // 0: a socket
	mode     uint16
	uid, gid uint32
	nlink    uint32
	ino      uint64
	size     uint64
	ctime    timestamp
	mtime    timestamp
	major    uint32
	minor    uint32
}

type timestamp struct {
	sec  int64
	nsec uint32
}

// node is one name of a walk.
type node struct {
	name    string
	st      fileStat
	trusted bool      // st stands for the content, also in a later walk
	kids    []*node   // of a directory, sorted by name
	pages   []chunkID // of a directory, once stored
	// e is the entry, if this capture read it. Without one the name is as it
	// was in base.
	e *entry
	// base is the same path in the snapshot before, nil if it was not there.
	base *node
}

// child finds a name among sorted nodes that begin at from, and where to go on.
func child(kids []*node, from int, name string) (*node, int) {
	i, ok := slices.BinarySearchFunc(kids[from:], name, func(n *node, s string) int { return strings.Compare(n.name, s) })
	if !ok {
		return nil, from + i
	}
	return kids[from+i], from + i + 1
}

// The cache remembers the walk behind a lineage's newest snapshot: what did not
// change since need not be read. It is ours and can be lost at any time; then
// everything is read again.
//
//	"HEARTHSC" | version u32 | key [32] | roots… | crc32c of all before
//
// The key binds it to the snapshot's roots and to how they were captured.
const (
	cacheMagic   = "HEARTHSC"
	cacheVersion = 1
	cacheHdrLen  = 44
	maxCache     = 1 << 30
)

// cacheKey is equal only for captures that would record a tree alike, after
// the same snapshot.
func cacheKey(src *Source, devs []uint64, rootEntries [][]byte) [32]byte {
	h := sha256.New()
	str := func(s string) { _, _ = h.Write(appendString(nil, s)) }
	_, _ = h.Write(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(src.IDs.Base)), uint64(src.IDs.Size)))
	for i, r := range src.Roots {
		str(r.Name)
		str(strings.Join(r.Exclude, "\x00"))
		_, _ = h.Write(binary.AppendUvarint(nil, devs[i]))
	}
	for _, e := range rootEntries {
		str(string(e))
	}
	return [32]byte(h.Sum(nil))
}

func encodeCache(key [32]byte, roots []*node) []byte {
	b := append(make([]byte, 0, 1<<16), cacheMagic...)
	b = binary.LittleEndian.AppendUint32(b, cacheVersion)
	b = append(b, key[:]...)
	for _, r := range roots {
		b = appendNode(b, r)
	}
	return binary.LittleEndian.AppendUint32(b, crc(b))
}

func appendNode(b []byte, n *node) []byte {
	b = appendString(b, n.name)
	flags := byte(n.st.kind) << 1
	if n.trusted {
		flags |= 1
	}
	b = append(b, flags)
	for _, v := range [...]uint64{
		uint64(n.st.mode), uint64(n.st.uid), uint64(n.st.gid), uint64(n.st.nlink), n.st.ino, n.st.size,
		uint64(n.st.ctime.sec), uint64(n.st.ctime.nsec), uint64(n.st.mtime.sec), uint64(n.st.mtime.nsec),
		uint64(n.st.major), uint64(n.st.minor),
	} {
		b = binary.AppendUvarint(b, v)
	}
	if n.st.kind != kindDir {
		return b
	}
	b = appendIDs(b, n.pages)
	b = binary.AppendUvarint(b, uint64(len(n.kids)))
	for _, k := range n.kids {
		b = appendNode(b, k)
	}
	return b
}

// decodeCache returns the roots of a cache with this key.
func decodeCache(b []byte, key [32]byte, roots, maxDepth int) ([]*node, error) {
	end := len(b) - 4
	if end < cacheHdrLen || string(b[:8]) != cacheMagic || crc(b[:end]) != binary.LittleEndian.Uint32(b[end:]) {
		return nil, fmt.Errorf("%w: no cache", env.ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != cacheVersion {
		return nil, fmt.Errorf("%w: cache format %d", env.ErrUnsupported, v)
	}
	if !bytes.Equal(b[12:cacheHdrLen], key[:]) {
		return nil, fmt.Errorf("%w: the cache is of another snapshot", env.ErrNotFound)
	}
	d := &decoder{b: b[cacheHdrLen:end]}
	var all []*node
	for range roots {
		all = append(all, d.node(maxDepth))
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes after the cache")
	}
	return all, d.err
}

func (d *decoder) node(depth int) *node {
	n := &node{name: d.str("cache name", maxName)}
	flags := d.uint("cache flags", 255)
	n.trusted = flags&1 != 0
	var v [12]uint64
	for i := range v {
		v[i] = d.uint("cache stat", 1<<64-1)
	}
	n.st = fileStat{
		kind: fileKind(flags >> 1), mode: uint16(v[0]), uid: uint32(v[1]), gid: uint32(v[2]), nlink: uint32(v[3]),
		ino: v[4], size: v[5], ctime: timestamp{int64(v[6]), uint32(v[7])}, mtime: timestamp{int64(v[8]), uint32(v[9])},
		major: uint32(v[10]), minor: uint32(v[11]),
	}
	if n.st.kind != kindDir || d.err != nil {
		return n
	}
	if depth < 0 {
		d.fail("cache is too deep")
		return n
	}
	n.pages = d.ids("cache pages")
	for range d.uint("cache names", uint64(len(d.b))) {
		k := d.node(depth - 1)
		if len(n.kids) > 0 && n.kids[len(n.kids)-1].name >= k.name {
			d.fail("cache is not sorted")
		}
		if d.err != nil {
			return n
		}
		n.kids = append(n.kids, k)
	}
	return n
}
