package warm

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hearth/internal/env"
)

func TestOriginIsWhatWasClaimed(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	want := Claim{
		Class: "demo", Tenant: "team", Variables: map[string]string{"SECRET": "it's \x01 \"odd\""}, Hostname: "name",
		Metadata: []byte(`{"a":1}`), Labels: map[string]string{"k": "v"},
		Egress: &env.EgressPolicy{Mode: env.EgressAllow, Allow: []env.EgressRule{{CIDR: netip.MustParsePrefix("192.0.2.0/24"), Ports: []env.PortRange{{First: 1, Last: 2}}}}},
	}
	e := b.claim(n, want)
	got, err := n.Origin(e.ID)
	if err != nil {
		t.Fatal(err)
	}
	if l := got.Lifetime; l == nil || l.Left != nil {
		t.Errorf("lifetime = %+v, want one without an end", l)
	}
	got.Lifetime = nil
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Claim{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("origin (-want +got):\n%s", diff)
	}
}

func TestAnEnvironmentSpoilsItsOriginForItselfOnly(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo", Tenant: "team", Variables: map[string]string{"A": "b"}, Metadata: []byte(`{"a":1}`), Labels: map[string]string{"k": "v"}})
	for what, files := range map[string]map[string]string{
		"nonsense":    {EnvJSONFile: "{", MetadataFile: "{"},
		"other types": {EnvJSONFile: `{"A": 1}`, MetadataFile: ""},
		"bad names":   {EnvJSONFile: `{"A=B": "c"}`, MetadataFile: "{}}"},
		"too large":   {EnvJSONFile: `{"A": "` + strings.Repeat("x", MaxVariablesBytes) + `"}`, MetadataFile: strings.Repeat(" ", MaxMetadataBytes+1)},
		"gone":        {},
	} {
		b.world.mu.Lock()
		b.world.identities[e.PID] = files
		b.world.mu.Unlock()
		got, err := n.Origin(e.ID)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got.Class != "demo" || got.Tenant != "team" || got.Labels["k"] != "v" {
			t.Errorf("%s: the node's own record is lost: %+v", what, got)
		}
		if len(got.Variables) > 0 || len(got.Metadata) > 0 {
			t.Errorf("%s: carried %v, %q", what, got.Variables, got.Metadata)
		}
	}
}
