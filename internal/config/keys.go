package config

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
)

// APIKey is one caller of the Environments API. The key itself is stored
// nowhere: SHA256 is of its bytes.
type APIKey struct {
	Name   string `json:"name"`
	Tenant string `json:"tenant"` // default is "default"
	SHA256 Digest `json:"sha256"`
}

// Digest is a SHA-256, in files as hex.
type Digest [sha256.Size]byte

// DigestOf hashes a key.
func DigestOf(key string) Digest { return sha256.Sum256([]byte(key)) }

// MarshalText writes hex.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads hex.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("want the %d hex digits of a SHA-256", hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("want the %d hex digits of a SHA-256", hex.EncodedLen(len(d)))
	}
	return nil
}

// apiKeys is the file.
type apiKeys struct {
	Keys []APIKey `json:"keys"`
}

// LoadAPIKeys reads the controller's keysFile. Errors as LoadAgent's.
func LoadAPIKeys(path string) ([]APIKey, error) {
	var f apiKeys
	if err := loadFile(path, &f); err != nil {
		return nil, err
	}
	var l faultList
	names, digests := map[string]bool{}, map[Digest]bool{}
	for i := range f.Keys {
		k := &f.Keys[i]
		def(&k.Tenant, "default")
		at := index("keys", i)
		l.label(at+".name", k.Name, names)
		l.label(at+".tenant", k.Tenant, map[string]bool{})
		if k.SHA256 == (Digest{}) || digests[k.SHA256] {
			l.addf(at+".sha256", "is missing or another key's")
		}
		digests[k.SHA256] = true
	}
	return f.Keys, wrapFaults(path, l.faults)
}

// MatchAPIKey returns the entry of a key that a caller showed. It compares
// every entry, so that its time says nothing about them.
func MatchAPIKey(keys []APIKey, shown string) (APIKey, bool) {
	d := DigestOf(shown)
	var found APIKey
	ok := false
	for _, k := range keys {
		if subtle.ConstantTimeCompare(d[:], k.SHA256[:]) == 1 {
			found, ok = k, true
		}
	}
	return found, ok
}
