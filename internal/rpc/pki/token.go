package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"hearth/internal/env"
)

const joinPrefix = "hearth-join"

// JoinToken lets an agent get its first certificate. It tells the agent which
// authority to trust, and the controller that the agent may join.
type JoinToken struct {
	caHash [sha256.Size]byte // of the authority's certificate, DER
	secret [32]byte
}

// NewJoinToken makes a token for agents of ca.
func NewJoinToken(ca *CA) JoinToken {
	t := JoinToken{caHash: sha256.Sum256(ca.cert.Raw)}
	_, _ = rand.Read(t.secret[:]) // never fails: crypto/rand aborts the program instead
	return t
}

// ParseJoinToken reads "hearth-join:<sha256>:<secret>", both in hexadecimal.
// The error, env.ErrInvalid, does not show the text.
func ParseJoinToken(text string) (JoinToken, error) {
	var t JoinToken
	parts := strings.Split(strings.TrimSpace(text), ":")
	if len(parts) != 3 || parts[0] != joinPrefix || !decodeExactly(t.caHash[:], parts[1]) || !decodeExactly(t.secret[:], parts[2]) {
		return JoinToken{}, fmt.Errorf("%w: join token: it has the form %s:<64 hex digits>:<64 hex digits>; make one with \"controller join-token create\"",
			env.ErrInvalid, joinPrefix)
	}
	return t, nil
}

func decodeExactly(dst []byte, s string) bool {
	if hex.DecodedLen(len(s)) != len(dst) {
		return false
	}
	n, err := hex.Decode(dst, []byte(s))
	return err == nil && n == len(dst)
}

// Text is the token as it is handed to an agent. It is a secret.
func (t JoinToken) Text() string {
	return joinPrefix + ":" + hex.EncodeToString(t.caHash[:]) + ":" + hex.EncodeToString(t.secret[:])
}

// String hides the secret, so that a token in a log line is harmless.
func (t JoinToken) String() string { return joinPrefix + ":…" }

// Hash is what the controller stores: SHA-256 of the secret, which has 256
// random bits, so that nothing slower is needed.
func (t JoinToken) Hash() [sha256.Size]byte { return sha256.Sum256(t.secret[:]) }

func (t JoinToken) matchesCA(cert *x509.Certificate) bool {
	h := sha256.Sum256(cert.Raw)
	return subtle.ConstantTimeCompare(h[:], t.caHash[:]) == 1
}
