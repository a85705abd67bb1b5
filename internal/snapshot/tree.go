package snapshot

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"hearth/internal/env"
)

// A directory is a list of pages, each a record of its own: entries sorted by
// name. Where a page ends depends on the names alone (and on a bound of bytes),
// so an edit changes one page. A page that did not change is the same record
// in every snapshot; a directory's entry names its pages, so the roots' entries
// stand for the whole tree.

type fileKind uint8

const (
	kindFile fileKind = iota + 1
	kindDir
	kindSymlink
	kindChar
	kindBlock
	kindFifo
)

// segment is a run of a file: a chunk, or a hole if the id is zero.
type segment struct {
	length uint64
	id     chunkID
}

func (s segment) hole() bool { return s.id == chunkID{} }

type xattr struct{ name, value string }

// entry is one name of a directory. Ids, capabilities and ACLs are those that
// the environment sees.
type entry struct {
	name  string
	kind  fileKind
	mode  uint16 // permissions, setuid, setgid, sticky: 12 bits
	uid   uint32
	gid   uint32
	sec   int64 // modification time
	nsec  uint32
	link  uint64 // not 0: names of one root with the same number are one file
	major uint32 // of a device
	minor uint32

	target   string    // of a symbolic link
	size     uint64    // of a file
	segments []segment // of a file, whose lengths are the size; empty if lists are used
	lists    []chunkID // of a long file
	pages    []chunkID // of a directory
	xattrs   []xattr   // sorted by name
}

const (
	treeVersion = 1
	pageMagic   = 'P'
	listMagic   = 'L'

	maxName      = 255
	maxTarget    = 4095
	maxXattrs    = 256 << 10 // of one entry, names and values
	inlineMax    = 16        // segments in an entry; more go to lists
	listSegments = 4096
	pageEntries  = 2048
	pageBytes    = 512 << 10
	pageMask     = 0x7f // one boundary in 128 names
)

// endsPage is true if a page ends after this name.
func endsPage(name string) bool { return crc([]byte(name))&pageMask == 0 }

// encodePages cuts sorted entries into encoded pages.
func encodePages(entries []*entry, emit func([]byte) error) error {
	for len(entries) > 0 {
		b := []byte{pageMagic, treeVersion}
		n := 0
		for n < len(entries) {
			b = appendEntry(b, entries[n])
			n++
			if endsPage(entries[n-1].name) || n == pageEntries || len(b) >= pageBytes {
				break
			}
		}
		if err := emit(b); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendIDs(b []byte, ids []chunkID) []byte {
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

func appendSegments(b []byte, segs []segment) []byte {
	b = binary.AppendUvarint(b, uint64(len(segs)))
	for _, s := range segs {
		if s.hole() {
			b = binary.AppendUvarint(b, s.length<<1|1)
			continue
		}
		b = binary.AppendUvarint(b, s.length<<1)
		b = append(b, s.id[:]...)
	}
	return b
}

func appendEntry(b []byte, e *entry) []byte {
	b = appendString(b, e.name)
	b = append(b, byte(e.kind))
	b = binary.AppendUvarint(b, uint64(e.mode))
	b = binary.AppendUvarint(b, uint64(e.uid))
	b = binary.AppendUvarint(b, uint64(e.gid))
	b = binary.AppendVarint(b, e.sec)
	b = binary.AppendUvarint(b, uint64(e.nsec))
	b = binary.AppendUvarint(b, e.link)
	switch e.kind {
	case kindFile:
		b = binary.AppendUvarint(b, e.size)
		b = appendSegments(b, e.segments)
		b = appendIDs(b, e.lists)
	case kindDir:
		b = appendIDs(b, e.pages)
	case kindSymlink:
		b = appendString(b, e.target)
	case kindChar, kindBlock:
		b = binary.AppendUvarint(b, uint64(e.major))
		b = binary.AppendUvarint(b, uint64(e.minor))
	}
	b = binary.AppendUvarint(b, uint64(len(e.xattrs)))
	for _, x := range e.xattrs {
		b = appendString(appendString(b, x.name), x.value)
	}
	return b
}

// decoder reads the encodings above. The first fault sticks.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: tree record: %s", env.ErrCorrupt, what)
	}
	d.b = nil
}

func (d *decoder) uint(what string, limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.fail(what)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int(what string) int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail(what)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes(what string, n uint64) []byte {
	if uint64(len(d.b)) < n {
		d.fail(what)
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) str(what string, limit uint64) string {
	return string(d.bytes(what, d.uint(what, limit)))
}

func (d *decoder) ids(what string) []chunkID {
	n := d.uint(what, uint64(len(d.b))/32)
	if n == 0 {
		return nil
	}
	ids := make([]chunkID, 0, n)
	for range n {
		b := d.bytes(what, 32)
		if b == nil {
			return nil
		}
		ids = append(ids, chunkID(b))
	}
	return ids
}

func (d *decoder) segments(limit uint64) (segs []segment, total uint64) {
	n := d.uint("segment count", min(limit, uint64(len(d.b))))
	for range n {
		v := d.uint("segment length", 1<<63-1)
		s := segment{length: v >> 1}
		if v&1 == 0 {
			if id := d.bytes("segment id", 32); id != nil {
				s.id = chunkID(id)
			}
			if s.hole() || s.length > maxRaw {
				d.fail("segment of data")
			}
		}
		if s.length == 0 || total+s.length > 1<<62 {
			d.fail("segment length")
			return nil, 0
		}
		total += s.length
		segs = append(segs, s)
	}
	return segs, total
}

func (d *decoder) entry() *entry {
	e := &entry{
		name: d.str("name", maxName),
		kind: fileKind(d.uint("kind", uint64(kindFifo))),
		mode: uint16(d.uint("mode", 0o7777)),
		uid:  uint32(d.uint("uid", 1<<32-2)),
		gid:  uint32(d.uint("gid", 1<<32-2)),
		sec:  d.int("time"),
		nsec: uint32(d.uint("time", 999_999_999)),
		link: d.uint("link", 1<<64-1),
	}
	d.content(e)
	n := d.uint("xattr count", uint64(len(d.b)))
	total := 0
	for range n {
		x := xattr{name: d.str("xattr name", maxName), value: d.str("xattr value", maxXattrs)}
		if total += len(x.name) + len(x.value); total > maxXattrs {
			d.fail("xattrs too large")
		}
		if k := len(e.xattrs); d.err == nil && k > 0 && e.xattrs[k-1].name >= x.name {
			d.fail("xattrs are not sorted")
		}
		if d.err != nil {
			return e
		}
		e.xattrs = append(e.xattrs, x)
	}
	return e
}

// content reads what depends on the kind.
func (d *decoder) content(e *entry) {
	switch e.kind {
	case kindFile:
		e.size = d.uint("size", 1<<62)
		var total uint64
		e.segments, total = d.segments(inlineMax)
		e.lists = d.ids("lists")
		if len(e.lists) > 0 && len(e.segments) > 0 || len(e.lists) == 0 && total != e.size {
			d.fail("segments do not make the size")
		}
	case kindDir:
		e.pages = d.ids("pages")
	case kindSymlink:
		e.target = d.str("target", maxTarget)
		if e.target == "" || strings.Contains(e.target, "\x00") {
			d.fail("target")
		}
	case kindChar, kindBlock:
		e.major = uint32(d.uint("device", 1<<32-1))
		e.minor = uint32(d.uint("device", 1<<32-1))
	case kindFifo:
	default:
		d.fail("kind")
	}
}

func decodeHeader(b []byte, magic byte) (*decoder, error) {
	if len(b) < 2 || b[0] != magic {
		return nil, fmt.Errorf("%w: not a tree record of kind %c", env.ErrCorrupt, magic)
	}
	if err := checkVersion("tree", uint32(b[1]), treeVersion); err != nil {
		return nil, err
	}
	return &decoder{b: b[2:]}, nil
}

// decodePage reads one page of a directory and checks that its names are
// proper, sorted, and after the given name, the last of the page before. A page
// has one entry at least and pageEntries at most.
func decodePage(b []byte, after string) ([]*entry, error) {
	d, err := decodeHeader(b, pageMagic)
	if err != nil {
		return nil, err
	}
	var entries []*entry
	for len(d.b) > 0 {
		e := d.entry()
		if d.err != nil {
			return nil, d.err
		}
		if !properName(e.name) || e.name <= after {
			return nil, fmt.Errorf("%w: tree record: name %.64q", env.ErrCorrupt, e.name)
		}
		after = e.name
		if entries = append(entries, e); len(entries) > pageEntries {
			d.fail("too many entries in a page")
		}
	}
	if len(entries) == 0 {
		d.fail("empty page")
	}
	return entries, d.err
}

// properName is true for what can be a name below a directory.
func properName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

// A list has one segment at least and listSegments at most.
func encodeList(segs []segment) []byte { return appendSegments([]byte{listMagic, treeVersion}, segs) }

func decodeList(b []byte) ([]segment, error) {
	d, err := decodeHeader(b, listMagic)
	if err != nil {
		return nil, err
	}
	segs, _ := d.segments(listSegments)
	switch {
	case len(d.b) > 0:
		d.fail("bytes after a list")
	case len(segs) == 0:
		d.fail("empty list")
	}
	return segs, d.err
}

// encodeRootEntry and decodeRootEntry are for the entry of a root directory,
// which a reference holds. It has no name.
func encodeRootEntry(e *entry) []byte { return appendEntry([]byte{treeVersion}, e) }

func decodeRootEntry(b []byte) (*entry, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: empty root entry", env.ErrCorrupt)
	}
	if err := checkVersion("tree", uint32(b[0]), treeVersion); err != nil {
		return nil, err
	}
	d := &decoder{b: b[1:]}
	e := d.entry()
	if d.err == nil && (len(d.b) > 0 || e.kind != kindDir || e.name != "") {
		d.fail("root entry")
	}
	return e, d.err
}

func sortXattrs(x []xattr) {
	slices.SortFunc(x, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
}
