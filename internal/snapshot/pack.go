package snapshot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"hearth/internal/env"
)

// A pack file, integers little endian:
//
//	header   "HEARTHPK" | version u32 | key id [8] | reserved u32 | crc32c u32
//	records  "REC1" | kind u8 | codec u8 | seal u8 | 0 | raw length u32 | stored length u32 |
//	         id [32] | crc32c of the header before it and the payload u32 | payload
//	table    sorted by id: id [32] | offset u64 | stored length u32 | raw length u32 | kind u8 | codec u8 | 0 u16
//	footer   "HEARTHPT" | version u32 | count u32 | table's offset u64 | table's crc32c u32 | crc32c u32
//
// seal is 0: the payload is not encrypted. Other values are reserved for
// authenticated encryption per tenant and are refused.
//
// An index file is a header "HEARTHIX" | version u32 | count u32 | pack's length
// u64 | table's crc32c u32 | crc32c u32, and the same table. It can be made again
// from the pack's footer, and that from its records.
const (
	packVersion   = 1
	packMagic     = "HEARTHPK"
	footerMagic   = "HEARTHPT"
	indexMagic    = "HEARTHIX"
	recordMagic   = "REC1"
	packHeaderLen = 28
	recordHdrLen  = 52
	tableEntryLen = 52
	footerLen     = 32
	indexHdrLen   = 32

	// packTarget is the length at which a pack is closed and another begun.
	packTarget = 32 << 20
	// maxRaw bounds what one record holds, before compression.
	maxRaw = 4 << 20
	// maxPack bounds a pack: its target and one record more, and its table.
	maxPack = 256 << 20
)

type recordKind uint8

const (
	kindData recordKind = 1 // a piece of a file
	kindPage recordKind = 2 // a page of a directory
	kindList recordKind = 3 // a list of a long file's pieces
)

type codec uint8

const (
	codecRaw  codec = 0
	codecZstd codec = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// location is where a record lies in its pack.
type location struct {
	id     chunkID
	offset uint64
	stored uint32
	raw    uint32
	kind   recordKind
	codec  codec
}

func (l location) end() uint64 { return l.offset + recordHdrLen + uint64(l.stored) }

// check refuses a location that no writer makes, in a pack whose records end
// at limit.
func (l location) check(limit uint64) error {
	switch {
	case l.kind < kindData || l.kind > kindList, l.codec > codecZstd,
		l.raw > maxRaw, l.stored > maxRaw, l.codec == codecRaw && l.stored != l.raw,
		l.codec == codecZstd && l.stored >= l.raw, // raw is what limits count
		l.offset < packHeaderLen, l.offset > maxPack, l.end() > limit:
		return fmt.Errorf("%w: entry of record %s is out of bounds", env.ErrCorrupt, l.id)
	}
	return nil
}

func encodePackHeader(keyID [8]byte) []byte {
	b := append(make([]byte, 0, packHeaderLen), packMagic...)
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = append(b, keyID[:]...)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc(b))
}

func decodePackHeader(b []byte) (keyID [8]byte, err error) {
	if len(b) < packHeaderLen || string(b[:8]) != packMagic {
		return keyID, fmt.Errorf("%w: no pack header", env.ErrCorrupt)
	}
	if err := checkVersion("pack", binary.LittleEndian.Uint32(b[8:]), packVersion); err != nil {
		return keyID, err
	}
	if crc(b[:24]) != binary.LittleEndian.Uint32(b[24:]) {
		return keyID, fmt.Errorf("%w: pack header checksum", env.ErrCorrupt)
	}
	return [8]byte(b[12:20]), nil
}

func checkVersion(what string, got, known uint32) error {
	if got > known {
		return fmt.Errorf("%w: %s format %d is newer than this program's %d; use a newer program", env.ErrUnsupported, what, got, known)
	}
	if got == 0 {
		return fmt.Errorf("%w: %s format 0", env.ErrCorrupt, what)
	}
	return nil
}

// appendRecord encodes a record. payload is stored as it is.
func appendRecord(b []byte, l location, payload []byte) []byte {
	start := len(b)
	b = append(b, recordMagic...)
	b = append(b, byte(l.kind), byte(l.codec), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, l.raw)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, l.id[:]...)
	sum := crc32.Update(crc(b[start:]), castagnoli, payload)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, payload...)
}

// decodeRecord reads the record that b begins with; offset goes into the
// location. The payload is a slice of b.
func decodeRecord(b []byte, offset uint64) (l location, payload []byte, err error) {
	if len(b) < recordHdrLen || string(b[:4]) != recordMagic {
		return l, nil, fmt.Errorf("%w: no record header", env.ErrCorrupt)
	}
	if b[6] != 0 {
		return l, nil, fmt.Errorf("%w: record is encrypted (seal %d), which this program does not know; use a newer program", env.ErrUnsupported, b[6])
	}
	l = location{
		id: chunkID(b[16:48]), offset: offset,
		kind: recordKind(b[4]), codec: codec(b[5]),
		raw: binary.LittleEndian.Uint32(b[8:]), stored: binary.LittleEndian.Uint32(b[12:]),
	}
	if err := l.check(offset + uint64(len(b))); err != nil {
		return l, nil, err
	}
	payload = b[recordHdrLen : recordHdrLen+int(l.stored)]
	if crc32.Update(crc(b[:48]), castagnoli, payload) != binary.LittleEndian.Uint32(b[48:]) {
		return l, nil, fmt.Errorf("%w: record checksum", env.ErrCorrupt)
	}
	return l, payload, nil
}

func sortTable(table []location) {
	slices.SortFunc(table, func(a, b location) int { return bytes.Compare(a.id[:], b.id[:]) })
}

func appendTable(b []byte, table []location) []byte {
	for _, l := range table {
		b = append(b, l.id[:]...)
		b = binary.LittleEndian.AppendUint64(b, l.offset)
		b = binary.LittleEndian.AppendUint32(b, l.stored)
		b = binary.LittleEndian.AppendUint32(b, l.raw)
		b = append(b, byte(l.kind), byte(l.codec), 0, 0)
	}
	return b
}

// decodeTable reads a table of records that lie before limit.
func decodeTable(b []byte, limit uint64) ([]location, error) {
	if len(b)%tableEntryLen != 0 {
		return nil, fmt.Errorf("%w: table of %d bytes", env.ErrCorrupt, len(b))
	}
	table := make([]location, 0, len(b)/tableEntryLen)
	for ; len(b) > 0; b = b[tableEntryLen:] {
		l := location{
			id:     chunkID(b[:32]),
			offset: binary.LittleEndian.Uint64(b[32:]),
			stored: binary.LittleEndian.Uint32(b[40:]),
			raw:    binary.LittleEndian.Uint32(b[44:]),
			kind:   recordKind(b[48]),
			codec:  codec(b[49]),
		}
		if err := l.check(limit); err != nil {
			return nil, err
		}
		if n := len(table); n > 0 && bytes.Compare(table[n-1].id[:], l.id[:]) >= 0 {
			return nil, fmt.Errorf("%w: table is not sorted", env.ErrCorrupt)
		}
		table = append(table, l)
	}
	return table, nil
}

// encodeTrailer is the table and the footer of a pack whose records end at
// offset.
func encodeTrailer(table []location, offset uint64) []byte {
	b := appendTable(make([]byte, 0, len(table)*tableEntryLen+footerLen), table)
	sum := crc(b)
	start := len(b)
	b = append(b, footerMagic...)
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(table)))
	b = binary.LittleEndian.AppendUint64(b, offset)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return binary.LittleEndian.AppendUint32(b, crc(b[start:]))
}

// footer is what the end of a pack says of its table.
type footer struct {
	count  uint32
	offset uint64
	sum    uint32
}

// decodeFooter reads the last footerLen bytes of a pack of the given length.
func decodeFooter(b []byte, size int64) (f footer, err error) {
	if len(b) != footerLen || string(b[:8]) != footerMagic || crc(b[:28]) != binary.LittleEndian.Uint32(b[28:]) {
		return f, fmt.Errorf("%w: no pack footer", env.ErrCorrupt)
	}
	if err := checkVersion("pack", binary.LittleEndian.Uint32(b[8:]), packVersion); err != nil {
		return f, err
	}
	f = footer{
		count:  binary.LittleEndian.Uint32(b[12:]),
		offset: binary.LittleEndian.Uint64(b[16:]),
		sum:    binary.LittleEndian.Uint32(b[24:]),
	}
	if f.offset < packHeaderLen || size > maxPack || f.offset+uint64(f.count)*tableEntryLen+footerLen != uint64(size) {
		return f, fmt.Errorf("%w: pack footer does not fit a pack of %d bytes", env.ErrCorrupt, size)
	}
	return f, nil
}

func encodeIndex(table []location, packSize uint64) []byte {
	body := appendTable(nil, table)
	b := append(make([]byte, 0, indexHdrLen+len(body)), indexMagic...)
	b = binary.LittleEndian.AppendUint32(b, packVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(table)))
	b = binary.LittleEndian.AppendUint64(b, packSize)
	b = binary.LittleEndian.AppendUint32(b, crc(body))
	b = binary.LittleEndian.AppendUint32(b, crc(b))
	return append(b, body...)
}

func decodeIndex(b []byte) (table []location, packSize uint64, err error) {
	if len(b) < indexHdrLen || string(b[:8]) != indexMagic || crc(b[:28]) != binary.LittleEndian.Uint32(b[28:]) {
		return nil, 0, fmt.Errorf("%w: no index header", env.ErrCorrupt)
	}
	if err := checkVersion("index", binary.LittleEndian.Uint32(b[8:]), packVersion); err != nil {
		return nil, 0, err
	}
	count, packSize := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint64(b[16:])
	body := b[indexHdrLen:]
	if uint64(len(body)) != uint64(count)*tableEntryLen || crc(body) != binary.LittleEndian.Uint32(b[24:]) {
		return nil, 0, fmt.Errorf("%w: index table", env.ErrCorrupt)
	}
	table, err = decodeTable(body, packSize)
	return table, packSize, err
}
