package kube

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// annotationSeal proves that the controller made the object.
const annotationSeal = "hearth.run/seal"

// sealer tells the objects that a controller made from those that people made.
// Whoever may create Environments may write spec.claim too, and would else take the
// id of another tenant's environment, or its idempotency key. What is not sealed is
// somebody's own object, whatever it says.
//
// It is the key of an HMAC-SHA256 that only controllers know.
type sealer []byte

// seal signs where the object is and what spec.claim says.
func (k sealer) seal(o *v1alpha1.Environment) {
	if o.Annotations == nil {
		o.Annotations = map[string]string{}
	}
	o.Annotations[annotationSeal] = hex.EncodeToString(k.sum(o))
}

// nameOf is a name that an object of the id may have: the id for a zero n, and one
// that nobody can take beforehand for the others.
func (k sealer) nameOf(id env.ID, n int) string {
	if n == 0 {
		return string(id)
	}
	m := hmac.New(sha256.New, k)
	fmt.Fprintf(m, "name,%s,%d", id, n)
	return string(id) + "-" + hex.EncodeToString(m.Sum(nil)[:5])
}

func (k sealer) sealed(o *v1alpha1.Environment) bool {
	if o.Spec.Claim == nil {
		return false
	}
	got, err := hex.DecodeString(o.Annotations[annotationSeal])
	return err == nil && hmac.Equal(got, k.sum(o))
}

// sum is of texts whose lengths are written, so that none can pass into another.
func (k sealer) sum(o *v1alpha1.Environment) []byte {
	c, m := o.Spec.Claim, hmac.New(sha256.New, k)
	for _, s := range []string{"v1", o.Namespace, o.Name, c.ID, c.KeyHash, c.RequestHash} {
		fmt.Fprintf(m, "%d:%s,", len(s), s)
	}
	fmt.Fprintf(m, "%d", c.Count)
	return m.Sum(nil)
}
