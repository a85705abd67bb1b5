package warm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"hearth/internal/env"
)

// The identity files, in the slot's tmpfs on /run/hearth. EnvFile is for
// people and shells, EnvJSONFile is what init gives to every process that it
// starts: {"KEY": "value"}.
const (
	EnvFile      = "env"
	EnvJSONFile  = "env.json"
	MetadataFile = "metadata.json"
)

// environmentVariable has the environment's id, in every environment.
const environmentVariable = "HEARTH_ENVIRONMENT"

// IdentityFile is one file of a slot's tmpfs to write, in order.
type IdentityFile struct {
	Name string
	Mode uint64
	Data []byte
}

// identityFiles renders what a claim writes into its slot.
func identityFiles(id env.ID, c *Claim) ([]IdentityFile, error) {
	vars := make(map[string]string, len(c.Variables)+1)
	for k, v := range c.Variables {
		vars[k] = v
	}
	vars[environmentVariable] = string(id)
	exact, err := json.Marshal(vars)
	if err != nil {
		return nil, fmt.Errorf("encode variables: %w", err)
	}
	metadata := c.Metadata
	if len(metadata) == 0 {
		metadata = []byte("{}")
	}
	return []IdentityFile{
		{EnvFile, 0o600, shellAssignments(vars)},
		{EnvJSONFile, 0o600, exact},
		{MetadataFile, 0o644, metadata},
	}, nil
}

// shellAssignments renders variables for `. /run/hearth/env`, sorted by name.
// Names that are no shell names are left out; EnvJSONFile has them.
func shellAssignments(vars map[string]string) []byte {
	names := make([]string, 0, len(vars))
	size := 0
	for name, value := range vars {
		if shellName(name) {
			names = append(names, name)
			size += len(name) + len("=''\n") + len(value)
		}
	}
	slices.Sort(names)
	b := make([]byte, 0, size+size/16)
	for _, name := range names {
		b = append(append(b, name...), "='"...)
		for value := vars[name]; ; {
			plain, rest, quote := strings.Cut(value, "'")
			b = append(b, plain...)
			if !quote {
				break
			}
			b = append(b, `'\''`...)
			value = rest
		}
		b = append(b, "'\n"...)
	}
	return b
}

func shellName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
