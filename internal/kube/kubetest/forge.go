package kubetest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
)

// Forge changes the claims of a real token, and signs it by the cluster's own
// key: what a cluster would have signed, but never does for tests, such as a
// token that has ended.
func (s *Server) Forge(token string, change func(claims map[string]any)) string {
	s.t.Helper()
	return s.sign(token, change, s.key)
}

// ForgeByAnotherKey is Forge by a key that is not the cluster's, under the name
// of the cluster's.
func (s *Server) ForgeByAnotherKey(token string, change func(claims map[string]any)) string {
	s.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	s.check(err)
	return s.sign(token, change, key)
}

// Unsigned is Forge with the algorithm "none".
func (s *Server) Unsigned(token string, change func(claims map[string]any)) string {
	s.t.Helper()
	_, claims := s.parts(token, change)
	return encode([]byte(`{"alg":"none"}`)) + "." + claims + "."
}

func (s *Server) sign(token string, change func(map[string]any), key *rsa.PrivateKey) string {
	s.t.Helper()
	header, claims := s.parts(token, change)
	sum := sha256.Sum256([]byte(header + "." + claims))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	s.check(err)
	return header + "." + claims + "." + encode(signature)
}

func (s *Server) parts(token string, change func(map[string]any)) (header, claims string) {
	s.t.Helper()
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	s.check(err)
	c := map[string]any{}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	s.check(d.Decode(&c))
	if change != nil {
		change(c)
	}
	raw, err = json.Marshal(c)
	s.check(err)
	return parts[0], encode(raw)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
