package warm

import (
	"encoding/json"
	"errors"
	"fmt"

	"hearth/internal/env"
)

// Origin is what an environment was claimed with, for the node that takes it
// over. Class, tenant, labels and egress are this node's own record. Variables
// and metadata are in no record, since they are secrets: they come from the
// environment's own files, so it may have changed or spoilt them for itself.
// What cannot be read any more is left out.
func (n *Node) Origin(id env.ID) (Claim, error) {
	s, err := n.find(id)
	if err != nil {
		return Claim{}, err
	}
	c, _ := n.origin(s)
	return c, nil
}

// origin is Origin of a slot. The error says what could not be read though it may
// be there.
func (n *Node) origin(s *slot) (Claim, error) {
	st := n.stateOf(s)
	c := Claim{
		Class: st.Class, Tenant: st.Env.Tenant, Labels: st.Env.Labels, Egress: st.Env.Egress, Hostname: st.Env.Hostname, Limits: st.Env.Limits, Mounts: st.Env.Mounts,
		ClaimKey: st.Env.ClaimKey, ClaimRequest: st.Env.ClaimRequest, Lifetime: st.Env.lifetime(n.moment()),
	}
	// JSON may write a byte as six characters.
	vars, verr := n.recall(s, EnvJSONFile, 6*MaxVariablesBytes+1024)
	if vars != nil {
		c.Variables = variablesOf(vars)
	}
	metadata, merr := n.recall(s, MetadataFile, MaxMetadataBytes)
	if json.Valid(metadata) {
		c.Metadata = metadata
	}
	return c, errors.Join(verr, merr)
}

// recall is nil for a file that is not as it was written, which is no error.
func (n *Node) recall(s *slot, name string, limit int) ([]byte, error) {
	b, err := s.init.Recall(name, limit)
	if err == nil {
		return b, nil
	}
	n.log.Warn("identity not recalled", "slot", s.id, "file", name, "error", err)
	if errors.Is(err, env.ErrNotFound) {
		return nil, nil
	}
	return nil, fmt.Errorf("recall %s: %w", name, err)
}

// variablesOf reads foreign bytes: nil for what no claim could have given.
func variablesOf(b []byte) map[string]string {
	var vars map[string]string
	if json.Unmarshal(b, &vars) != nil {
		return nil
	}
	delete(vars, environmentVariable)
	if validVariables(vars) != nil {
		return nil
	}
	return vars
}
