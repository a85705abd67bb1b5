package fleet

import (
	"errors"
	"fmt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// Bounds of what a caller may give. They are checked before anything is stored
// or sent; the nodes have the same ones.
const (
	maxKey       = 128 // bytes of an idempotency key
	maxClass     = 253 // RFC 1123 subdomain, as Kubernetes names have it
	maxSnapshot  = 64  // "<environment>/<number>" needs 49
	maxHostname  = 63  // RFC 1123 label
	maxLabels    = 64
	maxLabelSize = 4 << 10  // of all labels, keys and values
	maxVariables = 64 << 10 // of all variables: names and values, and two bytes for each
	maxMetadata  = 64 << 10
)

// checkSpec refuses a claim that is too large, or for a tenant that is none,
// with env.ErrInvalid and the bound's name.
func checkSpec(s *hearthv1.ClaimSpec) error {
	switch {
	case s.GetClass() == "":
		return fmt.Errorf("%w: class is missing", env.ErrInvalid)
	case !tenants.MatchString(s.GetTenant()):
		return badTenant(s.GetTenant())
	case s.GetTimeToLive() != nil && (s.GetTimeToLive().CheckValid() != nil || s.GetTimeToLive().AsDuration() < 0):
		return fmt.Errorf("%w: time to live %v is no length of time", env.ErrInvalid, s.GetTimeToLive())
	case len(s.GetLabels()) > maxLabels:
		return fmt.Errorf("%w: %d labels, at most %d", env.ErrInvalid, len(s.GetLabels()), maxLabels)
	}
	size := 0
	for k, v := range s.GetLabels() {
		size += len(k) + len(v)
	}
	for _, b := range []struct {
		what      string
		have, max int
	}{
		{"class", len(s.GetClass()), maxClass},
		{"snapshot", len(s.GetSnapshot()), maxSnapshot},
		{"hostname", len(s.GetHostname()), maxHostname},
		{"labels", size, maxLabelSize},
		{"metadata", len(s.GetMetadata()), maxMetadata},
	} {
		if b.have > b.max {
			return tooLong(b.what, b.have, b.max)
		}
	}
	return errors.Join(checkResources(s.GetResources()), checkMounts(s.GetMounts()), checkVariables(s.GetVariables()))
}

// checkMounts refuses what every node would.
func checkMounts(mounts []*hearthv1.Mount) error {
	out := make([]env.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = env.Mount{Name: m.GetName(), Directory: m.GetDirectory(), Path: m.GetPath(), ReadOnly: m.GetReadOnly()}
	}
	return env.CheckMounts(out)
}

// checkVariables counts as the file does that a node writes of them: a line
// for each.
func checkVariables(vars map[string]string) error {
	size := 0
	for k, v := range vars {
		size += len(k) + len(v) + len("=\n")
	}
	if size > maxVariables {
		return tooLong("variables", size, maxVariables)
	}
	return nil
}

// checkKey refuses an idempotency key that is missing or too long.
func checkKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: idempotency key is missing: give one of up to %d bytes, new for every request and the same when repeating it", env.ErrInvalid, maxKey)
	}
	if len(key) > maxKey {
		return tooLong("idempotency key", len(key), maxKey)
	}
	return nil
}

func tooLong(what string, have, most int) error {
	return fmt.Errorf("%w: %s of %d bytes, at most %d", env.ErrInvalid, what, have, most)
}
