package snapshot

import (
	"encoding/binary"
	"io"
)

// Content-defined chunking: FastCDC with normalised chunking (Xia et al.,
// "The Design of Fast Content-Defined Chunking for Data Deduplication Based
// Storage Systems", IEEE TPDS 2020). The gear table is secret: with a public
// one, the lengths of stored chunks tell which known files they come from
// (Truong et al., "Chunking Attacks on File Backup Services", RWC 2025).
const (
	chunkMin = 16 << 10
	chunkAvg = 64 << 10
	chunkMax = 256 << 10

	// wholeFile is the length up to which a file is one chunk.
	wholeFile = 64 << 10
	// pageBlock is the chunk of a file that changes in place: a multiple of
	// every page size that SQLite uses by default.
	pageBlock = 16 << 10
)

// The masks have two bits more than log2(chunkAvg) before the average length
// and two fewer behind it. Their bits are the hash's highest, which depend on
// the last 64 bytes.
const (
	maskStrict = uint64(0x3ffff) << 46
	maskLoose  = uint64(0x03fff) << 50
)

type gearTable [256]uint64

func newGearTable(b []byte) (t gearTable) {
	for i := range t {
		t[i] = binary.LittleEndian.Uint64(b[i*8:])
	}
	return t
}

// cut returns the length of the first chunk of data: all of it if it is
// shorter than chunkMin, and never more than chunkMax.
func (t *gearTable) cut(data []byte) int {
	n := min(len(data), chunkMax)
	if n <= chunkMin {
		return n
	}
	h := uint64(0)
	i, normal := chunkMin, min(n, chunkAvg)
	for ; i < normal; i++ {
		h = h<<1 + t[data[i]]
		if h&maskStrict == 0 {
			return i + 1
		}
	}
	for ; i < n; i++ {
		h = h<<1 + t[data[i]]
		if h&maskLoose == 0 {
			return i + 1
		}
	}
	return n
}

// cutter says where the first chunk of data ends.
type cutter func(data []byte) int

func fixedCut(data []byte) int { return min(len(data), pageBlock) }

func wholeCut(data []byte) int { return min(len(data), chunkMax) }

// sqliteMagic begins every SQLite 3 database (sqlite.org/fileformat.html).
const sqliteMagic = "SQLite format 3\x00"

// cutterFor chooses how a file is cut, by its length and its first bytes.
func (t *gearTable) cutterFor(size int64, head []byte) cutter {
	if size <= wholeFile {
		return wholeCut
	}
	if len(head) >= len(sqliteMagic) && string(head[:len(sqliteMagic)]) == sqliteMagic {
		return fixedCut
	}
	return t.cut
}

// split reads n bytes at off and calls emit for each chunk; the slice is valid
// until emit returns. buf has at least 2*chunkMax bytes. It returns how many
// bytes there were: fewer than n if the file ended.
func split(r io.ReaderAt, off, n int64, cut cutter, buf []byte, emit func([]byte) error) (int64, error) {
	var have, done int64 // bytes in buf; bytes emitted
	start := int64(0)
	for done < n {
		if have-start < chunkMax && done+have-start < n {
			copy(buf, buf[start:have])
			have, start = have-start, 0
			want := min(int64(len(buf)), n-done)
			m, err := r.ReadAt(buf[have:want], off+done+have)
			have += int64(m)
			if err == io.EOF {
				n = done + have // shorter than it was
			} else if err != nil {
				return done, err
			}
			if done == n {
				break
			}
		}
		c := int64(cut(buf[start:have]))
		if err := emit(buf[start : start+c]); err != nil {
			return done, err
		}
		start += c
		done += c
	}
	return done, nil
}
