package env

import "slices"

// Trait is something that identifies a machine and that two environments of one
// image or of one snapshot must not share.
type Trait string

// The traits, all of which are renewed or removed before an environment's first
// service starts, unless its class keeps them.
const (
	TraitHostname    Trait = "hostname"    // /etc/hostname says the host's name
	TraitHosts       Trait = "hosts"       // the host's name in /etc/hosts
	TraitMachineID   Trait = "machineId"   // /etc/machine-id, and that of D-Bus
	TraitSSHHostKeys Trait = "sshHostKeys" // of OpenSSH and Dropbear
	TraitRandomSeed  Trait = "randomSeed"  // of systemd, urandom and SeedRNG
)

// Traits lists every trait.
var Traits = [...]Trait{TraitHostname, TraitHosts, TraitMachineID, TraitSSHHostKeys, TraitRandomSeed}

// HygienePolicy says which traits are left as the image or the snapshot has
// them.
type HygienePolicy struct {
	Keep []Trait
}

// Keeps reports whether a trait is left as it is.
func (p HygienePolicy) Keeps(t Trait) bool { return slices.Contains(p.Keep, t) }
