package warm

import (
	"strings"

	"hearth/internal/env"
)

// goesOn reports whether the claim brings its own environment back: one that
// moved, was woken or is upgraded is the same machine, whose keys and id its peers
// know. One that was forked is another.
func (c *Claim) goesOn() bool {
	return c.made != nil || strings.HasPrefix(string(c.Snapshot), string(c.ID)+"/")
}

// asItWas is the class for a slot into which an environment comes back: what
// identifies it is kept, but for the names that the node itself gives.
func asItWas(class *env.Class) *env.Class {
	same := *class
	same.Hygiene.Keep = []env.Trait{env.TraitMachineID, env.TraitSSHHostKeys, env.TraitRandomSeed}
	for _, t := range []env.Trait{env.TraitHostname, env.TraitHosts} {
		if class.Hygiene.Keeps(t) {
			same.Hygiene.Keep = append(same.Hygiene.Keep, t)
		}
	}
	return &same
}
