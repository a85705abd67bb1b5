package snapshot

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"hearth/internal/env"
)

// A reference is what makes a snapshot: a file that is created once, when all
// that it names is durable, and never changed.
//
//	"HEARTHRF" | version u32 | length u32 | JSON of refRecord | HMAC-SHA256 of all before
const (
	refMagic   = "HEARTHRF"
	refVersion = 1
	refHdrLen  = 16
	maxRef     = 32 << 20
)

type refRecord struct {
	Info        Info     `json:"info"`
	RootEntries [][]byte `json:"root_entries"` // one per Info.Roots, see encodeRootEntry
	NextPack    uint64   `json:"next_pack"`    // packs with this number and above are not the snapshot's
}

func refName(seq uint64) string { return fmt.Sprintf("%016d", seq) }

func parseRefName(name string) (uint64, bool) {
	seq, err := strconv.ParseUint(name, 10, 63)
	return seq, err == nil && seq > 0 && seq <= maxSeq && refName(seq) == name
}

func refSum(k *keys, b []byte) []byte {
	h := hmac.New(sha256.New, k.ref)
	_, _ = h.Write(b)
	return h.Sum(nil)
}

func encodeRef(k *keys, r *refRecord) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode reference: %w", err)
	}
	b := append(make([]byte, 0, refHdrLen+len(body)+sha256.Size), refMagic...)
	b = binary.LittleEndian.AppendUint32(b, refVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	return append(b, refSum(k, b)...), nil
}

func decodeRef(k *keys, b []byte) (*refRecord, error) {
	if len(b) < refHdrLen+sha256.Size || string(b[:8]) != refMagic {
		return nil, fmt.Errorf("%w: no reference header", env.ErrCorrupt)
	}
	if err := checkVersion("reference", binary.LittleEndian.Uint32(b[8:]), refVersion); err != nil {
		return nil, err
	}
	end := len(b) - sha256.Size
	if uint64(binary.LittleEndian.Uint32(b[12:])) != uint64(end-refHdrLen) {
		return nil, fmt.Errorf("%w: reference of %d bytes", env.ErrCorrupt, len(b))
	}
	if !hmac.Equal(refSum(k, b[:end]), b[end:]) {
		return nil, fmt.Errorf("%w: reference does not match its code: damaged, or written with another key", env.ErrCorrupt)
	}
	r := &refRecord{}
	if err := json.Unmarshal(b[refHdrLen:end], r); err != nil {
		return nil, fmt.Errorf("%w: reference: %w", env.ErrCorrupt, err)
	}
	if len(r.RootEntries) != len(r.Info.Roots) {
		return nil, fmt.Errorf("%w: reference has %d roots and %d entries", env.ErrCorrupt, len(r.Info.Roots), len(r.RootEntries))
	}
	return r, nil
}

// seqs lists the lineage's references, rising.
func (l *lineageDir) seqs() ([]uint64, error) {
	names, err := l.refs.List()
	if err != nil {
		return nil, err
	}
	var seqs []uint64
	for _, name := range names {
		if seq, ok := parseRefName(name); ok {
			seqs = append(seqs, seq)
		}
	}
	return seqs, nil
}

func (l *lineageDir) ref(seq uint64) (*refRecord, error) {
	b, err := l.refs.ReadFile(refName(seq), maxRef)
	if errors.Is(err, env.ErrNotFound) {
		return nil, fmt.Errorf("%w: snapshot %s", env.ErrNotFound, MakeID(l.name, seq))
	}
	if err != nil {
		return nil, err
	}
	r, err := decodeRef(l.keys, b)
	if err == nil && (r.Info.Lineage != l.name || r.Info.Seq != seq) {
		err = fmt.Errorf("%w: it is the reference of %s", env.ErrCorrupt, r.Info.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", MakeID(l.name, seq), err)
	}
	r.Info.Tenant = l.owner.Tenant
	return r, nil
}

// head is the newest reference, nil if there is none. One that cannot be read
// is an error that names it: going on from an older one would lose data.
func (l *lineageDir) head() (*refRecord, error) {
	seqs, err := l.seqs()
	if err != nil || len(seqs) == 0 {
		return nil, err
	}
	return l.ref(seqs[len(seqs)-1])
}

// nextPack is the number from which packs belong to no snapshot. That is the
// head's word, unless an older snapshot was imported after it.
func (l *lineageDir) nextPack(head *refRecord) (uint64, error) {
	if head == nil {
		return 1, nil
	}
	next := head.NextPack
	beyond, err := l.unclaimed(next)
	if err != nil || len(beyond) == 0 {
		return next, err
	}
	seqs, err := l.seqs()
	if err != nil {
		return 0, err
	}
	for _, seq := range seqs {
		r, err := l.ref(seq)
		if err != nil {
			return 0, fmt.Errorf("an unfinished operation cannot be told from a snapshot: %w", err)
		}
		next = max(next, r.NextPack)
	}
	return next, nil
}
