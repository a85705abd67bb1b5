package fleet

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// format is the version of the stored values. A higher one than this program
// knows is refused, not guessed at.
const format = 1

type storedRecord struct {
	Format      int         `json:"v"`
	Environment []byte      `json:"env"`
	Changed     time.Time   `json:"changed"`
	Stale       []Placement `json:"stale,omitempty"`
	Next        Placement   `json:"next,omitzero"`
	Ended       bool        `json:"ended,omitempty"`
	Key         []byte      `json:"key,omitempty"`
	Request     []byte      `json:"request,omitempty"`
	Count       int         `json:"count,omitempty"`
	Object      string      `json:"object,omitempty"`
	UID         string      `json:"uid,omitempty"`
}

// EncodeRecord gives the bytes that a Store keeps.
func EncodeRecord(r *Record) ([]byte, error) {
	e, err := proto.Marshal(r.Environment)
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", r.ID(), err)
	}
	return json.Marshal(storedRecord{
		format, e, r.Changed.UTC().Round(0), r.Stale, r.Next, r.Ended, hashBytes(r.ClaimKey), hashBytes(r.ClaimRequest), r.Count, r.Object, r.UID,
	})
}

// DecodeRecord reads them back. Damaged ones are env.ErrCorrupt.
func DecodeRecord(b []byte) (*Record, error) {
	var s storedRecord
	if err := decode(b, &s, &s.Format); err != nil {
		return nil, err
	}
	e := &hearthv1.Environment{}
	if err := proto.Unmarshal(s.Environment, e); err != nil {
		return nil, fmt.Errorf("%w: stored environment: %s", env.ErrCorrupt, err)
	}
	r := &Record{Environment: e, Changed: s.Changed, Stale: s.Stale, Next: s.Next, Ended: s.Ended, Count: s.Count, Object: s.Object, UID: s.UID}
	if err := errors.Join(copyOptionalHash((*[sha256.Size]byte)(&r.ClaimKey), s.Key), copyOptionalHash(&r.ClaimRequest, s.Request)); err != nil {
		return nil, err
	}
	return r, nil
}

type storedAPIKey struct {
	Format  int       `json:"v"`
	ID      string    `json:"id"`
	Tenant  string    `json:"tenant,omitempty"`
	Admin   bool      `json:"admin,omitempty"`
	Hash    []byte    `json:"hash"`
	Created time.Time `json:"created"`
}

// EncodeAPIKey gives the bytes that a Store keeps.
func EncodeAPIKey(k APIKey) ([]byte, error) {
	return json.Marshal(storedAPIKey{format, k.ID, k.Tenant, k.Admin, k.Hash[:], k.Created.UTC().Round(0)})
}

// DecodeAPIKey reads them back. Damaged ones are env.ErrCorrupt.
func DecodeAPIKey(b []byte) (APIKey, error) {
	var s storedAPIKey
	if err := decode(b, &s, &s.Format); err != nil {
		return APIKey{}, err
	}
	k := APIKey{ID: s.ID, Tenant: s.Tenant, Admin: s.Admin, Created: s.Created}
	return k, copyHash(&k.Hash, s.Hash)
}

type storedJoinToken struct {
	Format  int       `json:"v"`
	Hash    []byte    `json:"hash"`
	Expires time.Time `json:"expires"`
}

// EncodeJoinToken gives the bytes that a Store keeps.
func EncodeJoinToken(t JoinToken) ([]byte, error) {
	return json.Marshal(storedJoinToken{format, t.Hash[:], t.Expires.UTC().Round(0)})
}

// DecodeJoinToken reads them back. Damaged ones are env.ErrCorrupt.
func DecodeJoinToken(b []byte) (JoinToken, error) {
	var s storedJoinToken
	if err := decode(b, &s, &s.Format); err != nil {
		return JoinToken{}, err
	}
	t := JoinToken{Expires: s.Expires}
	return t, copyHash(&t.Hash, s.Hash)
}

func decode(b []byte, into any, version *int) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: stored value: %s", env.ErrCorrupt, err)
	}
	if *version != format {
		return fmt.Errorf("%w: stored value has format %d, this program knows %d; use a newer one", env.ErrUnsupported, *version, format)
	}
	return nil
}

func copyHash(dst *[sha256.Size]byte, src []byte) error {
	if copy(dst[:], src) != len(dst) || len(src) != len(dst) {
		return fmt.Errorf("%w: stored digest has %d bytes", env.ErrCorrupt, len(src))
	}
	return nil
}

// hashBytes is nil for a digest of zeros, which stands for none.
func hashBytes(h [sha256.Size]byte) []byte {
	if h == [sha256.Size]byte{} {
		return nil
	}
	return h[:]
}

func copyOptionalHash(dst *[sha256.Size]byte, src []byte) error {
	if len(src) == 0 {
		return nil
	}
	return copyHash(dst, src)
}
