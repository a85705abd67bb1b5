package snapshot

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hearth/internal/env"
)

// An owner file says whose a lineage is and holds the secret from which the
// names of its records are derived. It is written before the lineage's first
// record, never changed, and sealed under the store's key for this lineage:
//
//	"HEARTHLO" | version u32 | length of the rest u32 | nonce [12] | AES-256-GCM(JSON of owner)
//
// A lineage without one was begun before there were any: it has no tenant, and
// its names are derived from the store's own secret. A capture that says its
// tenant, and a fork, give it or its child an owner file without a secret.
const (
	ownerName    = "owner"
	ownerMagic   = "HEARTHLO"
	ownerVersion = 1
	ownerHdrLen  = 16
	ownerNonce   = 12
	maxOwner     = 4096

	maxTenant = 253
)

type owner struct {
	Tenant string `json:"tenant"`
	Secret []byte `json:"secret,omitempty"` // empty: the store's
}

// none is true for the owner of a lineage that was begun before there were any.
func (o owner) none() bool { return o.Tenant == "" && len(o.Secret) == 0 }

// newOwner begins a lineage with a secret of its own.
func newOwner(tenant string) owner {
	secret := make([]byte, keyLen)
	_, _ = rand.Read(secret) // never fails: crypto/rand aborts the program instead
	return owner{Tenant: tenant, Secret: secret}
}

func checkTenant(tenant string) error {
	if len(tenant) > maxTenant || strings.ContainsFunc(tenant, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%w: tenant %.64q: at most %d bytes, no control characters", env.ErrInvalid, tenant, maxTenant)
	}
	return nil
}

// sealer is how owner files are closed. The lineage's name goes into it, so
// that a file that was put into another lineage is damage.
func (k *keys) sealer(name Lineage) (aead cipher.AEAD, label []byte, err error) {
	block, err := aes.NewCipher(k.seal)
	if err != nil {
		return nil, nil, err
	}
	aead, err = cipher.NewGCM(block)
	return aead, append([]byte(ownerMagic), name...), err
}

func encodeOwner(k *keys, name Lineage, o owner) ([]byte, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode owner: %w", err)
	}
	aead, label, err := k.sealer(name)
	if err != nil {
		return nil, fmt.Errorf("seal owner: %w", err)
	}
	b := append(make([]byte, 0, 256), ownerMagic...)
	b = binary.LittleEndian.AppendUint32(b, ownerVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(ownerNonce+len(body)+aead.Overhead()))
	var nonce [ownerNonce]byte
	_, _ = rand.Read(nonce[:]) // never fails, as above
	return aead.Seal(append(b, nonce[:]...), nonce[:], body, label), nil
}

func decodeOwner(k *keys, name Lineage, b []byte) (owner, error) {
	if len(b) < ownerHdrLen+ownerNonce || string(b[:8]) != ownerMagic {
		return owner{}, fmt.Errorf("%w: no owner header", env.ErrCorrupt)
	}
	if err := checkVersion("owner", binary.LittleEndian.Uint32(b[8:]), ownerVersion); err != nil {
		return owner{}, err
	}
	rest := b[ownerHdrLen:]
	if uint64(binary.LittleEndian.Uint32(b[12:])) != uint64(len(rest)) {
		return owner{}, fmt.Errorf("%w: owner file of %d bytes", env.ErrCorrupt, len(b))
	}
	aead, label, err := k.sealer(name)
	if err != nil {
		return owner{}, fmt.Errorf("open owner: %w", err)
	}
	body, err := aead.Open(nil, rest[:ownerNonce], rest[ownerNonce:], label)
	if err != nil {
		return owner{}, fmt.Errorf("%w: owner file does not open: damaged, or of another store or lineage", env.ErrCorrupt)
	}
	var o owner
	if err := json.Unmarshal(body, &o); err != nil {
		return owner{}, fmt.Errorf("%w: owner: %w", env.ErrCorrupt, err)
	}
	if n := len(o.Secret); n != 0 && n != keyLen {
		return owner{}, fmt.Errorf("%w: secret of %d bytes", env.ErrCorrupt, n)
	}
	return o, checkTenant(o.Tenant)
}

// readOwner learns whose the lineage is, and by which keys it is read.
func (l *lineageDir) readOwner(store *keys) error {
	b, err := l.dir.ReadFile(ownerName, maxOwner)
	if errors.Is(err, env.ErrNotFound) {
		l.owner, l.keys = owner{}, store
		return nil
	}
	if err != nil {
		return err
	}
	o, err := decodeOwner(store, l.name, b)
	if err != nil {
		return fmt.Errorf("lineage %s: %w", l.name, err)
	}
	return l.setOwner(store, o)
}

func (l *lineageDir) setOwner(store *keys, o owner) (err error) {
	l.owner, l.keys = o, store
	if len(o.Secret) > 0 {
		l.keys, err = deriveKeys(o.Secret)
	}
	return err
}

// writeOwner is the first thing that a lineage gets.
func (l *lineageDir) writeOwner(store *keys, o owner) error {
	if o.none() {
		return l.setOwner(store, o)
	}
	b, err := encodeOwner(store, l.name, o)
	if err != nil {
		return err
	}
	if err := l.dir.WriteNew("owner", ownerName, b, 0o600); err != nil {
		return err
	}
	return l.setOwner(store, o)
}
