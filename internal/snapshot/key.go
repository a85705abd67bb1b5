package snapshot

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"

	"hearth/internal/env"
)

// chunkID names a record's content: HMAC-SHA256 of its kind and bytes under a
// key of the lineage, so that whoever sees the packs but not the key cannot
// test whether they hold a known file.
type chunkID [32]byte

func (c chunkID) String() string { return hex.EncodeToString(c[:6]) }

const keyLen = 32

// keys are derived from one secret, a lineage's or the store's, so that no use
// of it says anything about another. Encryption of records, when it comes,
// derives its own; the record header has a field for it.
type keys struct {
	id    [8]byte // names the secret in headers, tells nothing of it
	chunk []byte
	ref   []byte
	seal  []byte // of owner files; the store's is used
	gear  gearTable
}

func deriveKeys(secret []byte) (*keys, error) {
	if len(secret) != keyLen {
		return nil, fmt.Errorf("%w: secret of %d bytes, want %d", env.ErrCorrupt, len(secret), keyLen)
	}
	derive := func(use string, n int) ([]byte, error) {
		return hkdf.Key(sha256.New, secret, nil, "hearth snapshot "+use, n)
	}
	id, err := derive("key id", 8)
	if err != nil {
		return nil, err
	}
	k := &keys{id: [8]byte(id)}
	if k.chunk, err = derive("chunk id", keyLen); err != nil {
		return nil, err
	}
	if k.ref, err = derive("ref", keyLen); err != nil {
		return nil, err
	}
	if k.seal, err = derive("owner", keyLen); err != nil {
		return nil, err
	}
	gear, err := derive("gear", len(k.gear)*8)
	if err != nil {
		return nil, err
	}
	k.gear = newGearTable(gear)
	return k, nil
}

// hasher computes chunk ids. It is used by one goroutine.
type hasher struct{ h hash.Hash }

func (k *keys) newHasher() *hasher { return &hasher{h: hmac.New(sha256.New, k.chunk)} }

func (h *hasher) id(kind recordKind, data []byte) (id chunkID) {
	h.h.Reset()
	_, _ = h.h.Write([]byte{byte(kind)})
	_, _ = h.h.Write(data)
	h.h.Sum(id[:0])
	return id
}
