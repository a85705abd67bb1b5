package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"hearth/internal/env"
)

const (
	// maxToken bounds a token. Those that clusters sign have about 1 KiB.
	maxToken = 8 << 10
	// tokenSkew is how far the clocks of this machine and of the API server's
	// may differ.
	tokenSkew = 30 * time.Second
	maxKeys   = 100
	minRSA    = 2048 // bits
)

// algorithms are those that clusters sign tokens with (signerFromKeyPair in
// kubernetes/pkg/serviceaccount/jwt.go). "none" and shared secrets are not among them.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// curves are those of ECDSA, and what is signed with them.
var curves = map[elliptic.Curve]jose.SignatureAlgorithm{
	elliptic.P256(): jose.ES256, elliptic.P384(): jose.ES384, elliptic.P521(): jose.ES512,
}

// errUnknownKey is of a token that names a key which is not in the set.
var errUnknownKey = fmt.Errorf("%w: the token is signed by a key that this cluster does not publish", env.ErrDenied)

// keySet is what the API server says of the tokens that it signs.
type keySet struct {
	issuer string
	keys   map[string][]jose.JSONWebKey // by key id
}

// parseKeys reads the discovery document and the key set (RFC 7517). Keys of
// other kinds than clusters sign with are left out.
func parseKeys(discovery, jwks []byte) (*keySet, error) {
	if len(discovery) > maxKeysSize || len(jwks) > maxKeysSize {
		return nil, errors.New("the documents are longer than 1 MiB")
	}
	var d struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(discovery, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", discoveryPath, err)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("%s: %w", jwksPath, err)
	}
	k := &keySet{issuer: d.Issuer, keys: map[string][]jose.JSONWebKey{}}
	for _, raw := range set.Keys[:min(len(set.Keys), maxKeys)] {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) == nil && signs(key) {
			k.keys[key.KeyID] = append(k.keys[key.KeyID], key)
		}
	}
	if k.issuer == "" || len(k.keys) == 0 {
		return nil, fmt.Errorf("issuer %.64q with %d usable keys", k.issuer, len(k.keys))
	}
	return k, nil
}

func signs(key jose.JSONWebKey) bool {
	if key.KeyID == "" || !key.Valid() || key.Use != "" && key.Use != "sig" {
		return false
	}
	switch k := key.Key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSA && (key.Algorithm == "" || key.Algorithm == string(jose.RS256))
	case *ecdsa.PublicKey:
		alg, ok := curves[k.Curve]
		return ok && (key.Algorithm == "" || key.Algorithm == string(alg))
	default:
		return false
	}
}

// accountClaims are those of a service account's token (KEP-1205).
type accountClaims struct {
	jwt.Claims
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"serviceaccount"`
	} `json:"kubernetes.io"`
}

// verify says whose token it is at now. Every other outcome is env.ErrDenied;
// no message shows a part of a token that was not proved to be the cluster's.
func (k *keySet) verify(token string, now time.Time) (env.ServiceAccount, error) {
	if len(token) > maxToken {
		return env.ServiceAccount{}, fmt.Errorf("%w: the token has more than %d bytes", env.ErrDenied, maxToken)
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return env.ServiceAccount{}, fmt.Errorf("%w: the token is not a JSON web token signed with RS256, ES256, ES384 or ES512", env.ErrDenied)
	}
	keys := k.keys[parsed.Headers[0].KeyID]
	if len(keys) == 0 {
		return env.ServiceAccount{}, errUnknownKey
	}
	var c accountClaims
	for _, key := range keys {
		c = accountClaims{}
		if err = parsed.Claims(key.Key, &c); err == nil {
			break
		}
	}
	if err != nil {
		return env.ServiceAccount{}, fmt.Errorf("%w: the token's signature or content is not good", env.ErrDenied)
	}
	return k.accept(&c, now)
}

// accept judges the claims of a token that the cluster has signed.
func (k *keySet) accept(c *accountClaims, now time.Time) (env.ServiceAccount, error) {
	deny := func(format string, args ...any) (env.ServiceAccount, error) {
		return env.ServiceAccount{}, fmt.Errorf("%w: the token "+format, append([]any{env.ErrDenied}, args...)...)
	}
	a := env.ServiceAccount{Namespace: c.Kubernetes.Namespace, Name: c.Kubernetes.ServiceAccount.Name, UID: c.Kubernetes.ServiceAccount.UID}
	switch {
	case c.Issuer != k.issuer:
		return deny("was issued by %.64q, not by %q", c.Issuer, k.issuer)
	case !slices.Contains(c.Audience, Audience):
		return deny("is for %.128q; ask for one with audience %q", []string(c.Audience), Audience)
	case c.Expiry == nil:
		return deny("never ends; use a projected one")
	case now.After(c.Expiry.Time().Add(tokenSkew)):
		return deny("ended at %s; read the file again, it is replaced in time", c.Expiry.Time().UTC().Format(time.RFC3339))
	case c.NotBefore != nil && now.Before(c.NotBefore.Time().Add(-tokenSkew)):
		return deny("holds from %s on; compare the clocks", c.NotBefore.Time().UTC().Format(time.RFC3339))
	case c.IssuedAt != nil && now.Before(c.IssuedAt.Time().Add(-tokenSkew)):
		return deny("was issued at %s; compare the clocks", c.IssuedAt.Time().UTC().Format(time.RFC3339))
	case !namespaceName.MatchString(a.Namespace), !accountName.MatchString(a.Name), len(a.Name) > 253, a.UID == "", len(a.UID) > 128,
		c.Subject != a.Username():
		return deny("is of %.128q, which is no service account", c.Subject)
	}
	return a, nil
}

// Names as the API server has them (RFC 1123).
var (
	namespaceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	accountName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)
