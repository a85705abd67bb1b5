package warm

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"hearth/internal/env"
)

// tokens derives the bearer tokens of environments from one key of the node.
// Nothing is stored per environment but a counter, so a repeated claim is
// answered with the same token and no file or journal holds one.
type tokens struct{ key []byte }

// tokenKeySize is the length of the node's key in bytes.
const tokenKeySize = 32

// of returns the token of an environment's epoch; a raised epoch ends the
// older tokens.
func (t tokens) of(id env.ID, gen env.Generation, epoch uint64) string {
	mac := hmac.New(sha256.New, t.key)
	mac.Write([]byte("hearth environment token v1\x00" + string(id) + "\x00"))
	var n [16]byte
	binary.BigEndian.PutUint64(n[:8], uint64(gen))
	binary.BigEndian.PutUint64(n[8:], epoch)
	mac.Write(n[:])
	return "ht1." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// valid compares in constant time.
func (t tokens) valid(token string, id env.ID, gen env.Generation, epoch uint64) bool {
	return hmac.Equal([]byte(token), []byte(t.of(id, gen, epoch)))
}
