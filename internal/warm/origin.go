package warm

import (
	"encoding/json"

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
	st := n.stateOf(s)
	c := Claim{
		Class: st.Class, Tenant: st.Env.Tenant, Labels: st.Env.Labels, Egress: st.Env.Egress, Hostname: st.Env.Hostname, Limits: st.Env.Limits,
		ClaimKey: st.Env.ClaimKey, ClaimRequest: st.Env.ClaimRequest, Lifetime: st.Env.lifetime(n.moment()),
	}
	// JSON may write a byte as six characters.
	if b := n.recall(s, EnvJSONFile, 6*MaxVariablesBytes+1024); b != nil {
		c.Variables = variablesOf(b)
	}
	if b := n.recall(s, MetadataFile, MaxMetadataBytes); json.Valid(b) {
		c.Metadata = b
	}
	return c, nil
}

// recall is nil for a file that is not as it was written.
func (n *Node) recall(s *slot, name string, limit int) []byte {
	b, err := s.init.Recall(name, limit)
	if err != nil {
		n.log.Warn("identity not recalled", "slot", s.id, "file", name, "error", err)
		return nil
	}
	return b
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
