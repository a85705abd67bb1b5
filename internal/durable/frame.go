package durable

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"hearth/internal/env"
)

// A log file, integers little endian:
//
//	header  "HEARTHLG" | version u32 = 1 | salt u64 | crc32c of the 20 bytes before
//	record  length u32 | crc32c(payload) u32 | crc32c(salt, offset of the record u64, length, crc) u32 | payload
//
// The record header's own checksum covers the salt and the offset, so that a
// record's bytes are a record nowhere but in their place: after a damaged one
// the rest can be searched for a valid record, and a payload that imitates one
// is not taken for it.
const (
	logMagic     = "HEARTHLG"
	logVersion   = 1
	logHeaderLen = 24
	recHeaderLen = 12

	// MaxRecord bounds one record of a log, in bytes.
	MaxRecord = 1 << 20
	// MaxLog bounds a log file, in bytes: what is read into memory at opening.
	MaxLog = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeLogHeader(salt uint64) []byte {
	b := append(make([]byte, 0, logHeaderLen), logMagic...)
	b = binary.LittleEndian.AppendUint32(b, logVersion)
	b = binary.LittleEndian.AppendUint64(b, salt)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeLogHeader(b []byte) (salt uint64, err error) {
	if len(b) < logHeaderLen || string(b[:8]) != logMagic {
		return 0, fmt.Errorf("%w: no log header", env.ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > logVersion {
		return 0, fmt.Errorf("%w: log format %d is newer than this program's %d; use a newer program", env.ErrUnsupported, v, logVersion)
	}
	if crc32.Checksum(b[:20], castagnoli) != binary.LittleEndian.Uint32(b[20:]) {
		return 0, fmt.Errorf("%w: log header checksum", env.ErrCorrupt)
	}
	return binary.LittleEndian.Uint64(b[12:]), nil
}

func headerSum(salt uint64, offset int64, lengthAndCRC []byte) uint32 {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], salt)
	binary.LittleEndian.PutUint64(b[8:], uint64(offset))
	copy(b[16:], lengthAndCRC)
	return crc32.Checksum(b[:], castagnoli)
}

// appendRecord frames rec for its place in the file.
func appendRecord(b []byte, salt uint64, offset int64, rec []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(rec)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(rec, castagnoli))
	b = binary.LittleEndian.AppendUint32(b, headerSum(salt, offset, b[start:start+8]))
	return append(b, rec...)
}

// recordAt returns the payload of the valid record at the offset, or why there
// is none.
func recordAt(data []byte, salt uint64, offset int64) (payload []byte, fault string) {
	b := data[offset:]
	if len(b) < recHeaderLen {
		return nil, "incomplete header"
	}
	if headerSum(salt, offset, b[:8]) != binary.LittleEndian.Uint32(b[8:]) {
		return nil, "header checksum"
	}
	n := binary.LittleEndian.Uint32(b)
	switch {
	case n > MaxRecord:
		return nil, "length over the bound"
	case int(n) > len(b)-recHeaderLen:
		return nil, "incomplete payload"
	}
	payload = b[recHeaderLen : recHeaderLen+int(n)]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, "payload checksum"
	}
	return payload, ""
}

// replay visits the records of a whole log file and returns where the good
// part ends. What follows it is a torn tail, unless a valid record lies
// behind: then the middle is damaged, and that is env.ErrCorrupt.
func replay(data []byte, salt uint64, visit func([]byte) error) (end int64, err error) {
	end = logHeaderLen
	for end < int64(len(data)) {
		payload, fault := recordAt(data, salt, end)
		if fault != "" {
			if next := findRecord(data, salt, end+1); next >= 0 {
				return end, fmt.Errorf("%w: record at offset %d: %s, yet a valid one follows at %d", env.ErrCorrupt, end, fault, next)
			}
			return end, nil
		}
		if err := visit(payload); err != nil {
			return end, fmt.Errorf("record at offset %d: %w", end, err)
		}
		end += recHeaderLen + int64(len(payload))
	}
	return end, nil
}

// findRecord returns the offset of the first valid record at or after from,
// or -1.
func findRecord(data []byte, salt uint64, from int64) int64 {
	for o := from; o+recHeaderLen <= int64(len(data)); o++ {
		if z := leadingZeros(data[o:]); z >= recHeaderLen {
			o += int64(z - recHeaderLen) // no record begins with so many: skip the hole
			continue
		}
		if _, fault := recordAt(data, salt, o); fault == "" {
			return o
		}
	}
	return -1
}

func leadingZeros(b []byte) int {
	for i, c := range b {
		if c != 0 {
			return i
		}
	}
	return len(b)
}
