package fleet

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"hearth/internal/env"
)

// Principal is a caller whose key was accepted.
type Principal struct {
	Tenant string
	Admin  bool // sees every tenant
}

// DefaultTenant owns what an administrator claims without naming a tenant.
const DefaultTenant = "default"

var tenants = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// tenantFor is whose environment a claim that names asked makes.
func (p Principal) tenantFor(asked string) (string, error) {
	switch {
	case p.Admin && asked == "":
		return DefaultTenant, nil
	case p.Admin && !tenants.MatchString(asked):
		return "", badTenant(asked)
	case p.Admin, asked == p.Tenant:
		return asked, nil
	case asked == "":
		return p.Tenant, nil
	default:
		return "", fmt.Errorf("%w: this key is of tenant %q, it cannot claim for %.64q; leave the tenant empty", env.ErrDenied, p.Tenant, asked)
	}
}

func badTenant(s string) error {
	return fmt.Errorf("%w: tenant %.64q: use up to 63 of a-z, 0-9 and -", env.ErrInvalid, s)
}

func (p Principal) sees(r *Record) bool { return p.Admin || r.Environment.GetTenant() == p.Tenant }

// TenantOf is whose environment it is; empty if there is none of that id.
func (f *Fleet) TenantOf(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.records[env.ID(id)]; r != nil {
		return r.Environment.GetTenant()
	}
	return ""
}

// An API key is "hearth_<id>_<secret>": 8 and 64 hexadecimal digits.
const keyPrefix = "hearth"

// CreateAPIKey makes a key for a tenant, or with admin for all. The secret is
// returned this once; the store has its hash.
func (f *Fleet) CreateAPIKey(tenant string, admin bool) (APIKey, string, error) {
	if admin && tenant != "" {
		return APIKey{}, "", fmt.Errorf("%w: an administrator's key has no tenant", env.ErrInvalid)
	}
	if !admin && !tenants.MatchString(tenant) {
		return APIKey{}, "", badTenant(tenant)
	}
	var id [4]byte
	var secret [32]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand aborts the program instead
	_, _ = rand.Read(secret[:])
	k := APIKey{ID: hex.EncodeToString(id[:]), Tenant: tenant, Admin: admin, Hash: sha256.Sum256(secret[:]), Created: time.Now()}
	if err := f.saveAPIKey(k); err != nil {
		return APIKey{}, "", err
	}
	return k, keyPrefix + "_" + k.ID + "_" + hex.EncodeToString(secret[:]), nil
}

// APIKeys lists the keys, the oldest first.
func (f *Fleet) APIKeys() []APIKey {
	f.mu.Lock()
	defer f.mu.Unlock()
	keys := make([]APIKey, 0, len(f.apiKeys))
	for _, k := range f.apiKeys {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b APIKey) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return keys
}

// DeleteAPIKey ends a key: the next call with it is refused.
func (f *Fleet) DeleteAPIKey(id string) error {
	f.keys.Lock()
	defer f.keys.Unlock()
	f.mu.Lock()
	_, ok := f.apiKeys[id]
	f.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: API key %.64q; list them with \"controller apikey list\"", env.ErrNotFound, id)
	}
	if err := f.save(Change{Op: "apikey-delete", DeleteAPIKey: id}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.apiKeys, id)
	return nil
}

func (f *Fleet) saveAPIKey(k APIKey) error {
	f.keys.Lock()
	defer f.keys.Unlock()
	if err := f.save(Change{Op: "apikey-create", APIKey: &k}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.apiKeys[k.ID] = k
	return nil
}

// Authenticate says whose the key is. A wrong one is env.ErrDenied; nothing
// tells whether its id exists.
func (f *Fleet) Authenticate(text string) (Principal, error) {
	denied := fmt.Errorf("%w: the API key is not valid; make one with \"controller apikey create\"", env.ErrDenied)
	parts := strings.Split(text, "_")
	if len(parts) != 3 || parts[0] != keyPrefix {
		return Principal{}, denied
	}
	secret, err := hex.DecodeString(parts[2])
	if err != nil {
		return Principal{}, denied
	}
	f.mu.Lock()
	k, ok := f.apiKeys[parts[1]]
	f.mu.Unlock()
	got := sha256.Sum256(secret)
	if subtle.ConstantTimeCompare(got[:], k.Hash[:]) != 1 || !ok {
		return Principal{}, denied
	}
	return Principal{Tenant: k.Tenant, Admin: k.Admin}, nil
}

// AddJoinToken lets agents join with the token of this hash until expires. It is
// env.ErrUnsupported where agents join by other means.
func (f *Fleet) AddJoinToken(t JoinToken) error {
	f.keys.Lock()
	defer f.keys.Unlock()
	if err := f.save(Change{Op: "jointoken-create", JoinToken: &t}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.joins[t.Hash] = t
	return nil
}

// forgetJoinTokens deletes those that have ended.
func (f *Fleet) forgetJoinTokens(now time.Time) error {
	f.keys.Lock()
	defer f.keys.Unlock()
	f.mu.Lock()
	var ended []JoinToken
	for _, t := range f.joins {
		if t.Expires.Before(now) {
			ended = append(ended, t)
		}
	}
	f.mu.Unlock()
	for _, t := range ended {
		if err := f.save(Change{Op: "jointoken-forget", DeleteJoinToken: &t.Hash}); err != nil {
			return err
		}
		f.mu.Lock()
		delete(f.joins, t.Hash)
		f.mu.Unlock()
	}
	return nil
}

// CheckJoinToken refuses unknown and ended tokens with env.ErrDenied. The hash
// is of 256 random bits, so that looking it up in a map tells a guesser nothing.
func (f *Fleet) CheckJoinToken(hash [sha256.Size]byte) error {
	if !time.Now().Before(f.JoinTokenEnds(hash)) {
		return fmt.Errorf("%w: the join token is not valid or has ended; make one with \"controller join-token create\"", env.ErrDenied)
	}
	return nil
}

// JoinTokenEnds is when the token ends; the zero time if it is not known.
func (f *Fleet) JoinTokenEnds(hash [sha256.Size]byte) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joins[hash].Expires
}
