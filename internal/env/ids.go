package env

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// ID names one environment: "e-" and a ULID in lower case. It is minted by
// whoever accepts the claim first and never reused.
type ID string

// SlotID names one slot: "s-" and a ULID in lower case. The container, its
// cgroup, its journal records and its files carry it. A claimed slot keeps it.
type SlotID string

// Generation is an environment's fencing number. It rises at every placement;
// a holder of a lower one may not act for the environment.
type Generation uint64

// NetID is the number by which kernel programs know an island. It is never
// reused within a boot. Zero is no island.
type NetID uint32

// NewID mints an environment id.
func NewID() ID { return ID("e-" + newULID(time.Now())) }

// NewSlotID mints a slot id.
func NewSlotID() SlotID { return SlotID("s-" + newULID(time.Now())) }

// ParseID checks that s has the form of an environment id.
func ParseID(s string) (ID, error) {
	if err := checkID("e-", s); err != nil {
		return "", err
	}
	return ID(s), nil
}

// ParseSlotID checks that s has the form of a slot id.
func ParseSlotID(s string) (SlotID, error) {
	if err := checkID("s-", s); err != nil {
		return "", err
	}
	return SlotID(s), nil
}

// crockford is the alphabet of ULID (github.com/ulid/spec), in lower case.
const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

const ulidLen = 26

// IDFrom is the id of something that was named elsewhere, by a seed that is
// never used twice (a Kubernetes object's UID). It is the same every time.
func IDFrom(created time.Time, seed string) ID {
	sum := sha256.Sum256([]byte(seed))
	return ID("e-" + encodeULID(created, [10]byte(sum[:10])))
}

// newULID encodes 48 bits of milliseconds and 80 bits of randomness, most
// significant bits first, so that ids sort by the time of their making.
func newULID(now time.Time) string {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand aborts the program instead
	return encodeULID(now, random)
}

func encodeULID(now time.Time, random [10]byte) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	copy(b[6:], random[:])
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	var out [ulidLen]byte
	for i := ulidLen - 1; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}

func checkID(prefix, s string) error {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok || len(rest) != ulidLen || strings.Trim(rest, crockford) != "" {
		return fmt.Errorf("%w: %.64q is not an id of the form %s<%d characters>", ErrInvalid, s, prefix, ulidLen)
	}
	return nil
}
