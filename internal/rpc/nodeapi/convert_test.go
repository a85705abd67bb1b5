package nodeapi

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func TestEgressOfReadsAPolicy(t *testing.T) {
	got, err := egressOf(&hearthv1.EgressPolicy{
		Mode:  hearthv1.EgressPolicy_MODE_ALLOW,
		Allow: []*hearthv1.EgressRule{{Cidr: "93.184.216.34/24", Ports: []*hearthv1.PortRange{{First: 443}, {First: 8000, Last: 8100}}}},
		Deny:  []*hearthv1.EgressRule{{Cidr: "93.184.216.34/32"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &env.EgressPolicy{
		Mode: env.EgressAllow,
		Allow: []env.EgressRule{{
			CIDR: netip.MustParsePrefix("93.184.216.0/24"), Ports: []env.PortRange{{First: 443, Last: 443}, {First: 8000, Last: 8100}},
		}},
		Deny: []env.EgressRule{{CIDR: netip.MustParsePrefix("93.184.216.34/32")}},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	if got, err := egressOf(nil); got != nil || err != nil {
		t.Errorf("no policy = %v, %v", got, err)
	}
}

func TestEgressOfRefusesWhatNoPolicyCanMean(t *testing.T) {
	allow := hearthv1.EgressPolicy_MODE_ALLOW
	rule := func(cidr string, first, last uint32) []*hearthv1.EgressRule {
		return []*hearthv1.EgressRule{{Cidr: cidr, Ports: []*hearthv1.PortRange{{First: first, Last: last}}}}
	}
	for name, p := range map[string]*hearthv1.EgressPolicy{
		"no mode":             {},
		"unknown mode":        {Mode: 99},
		"allow in internet":   {Mode: hearthv1.EgressPolicy_MODE_INTERNET, Allow: rule("1.1.1.1/32", 1, 1)},
		"no cidr":             {Mode: allow, Allow: rule("", 1, 1)},
		"address":             {Mode: allow, Allow: rule("1.1.1.1", 1, 1)},
		"IPv6":                {Mode: allow, Allow: rule("::/0", 1, 1)},
		"port 0":              {Mode: allow, Allow: rule("1.1.1.1/32", 0, 1)},
		"backwards":           {Mode: allow, Allow: rule("1.1.1.1/32", 2, 1)},
		"port beyond":         {Mode: allow, Allow: rule("1.1.1.1/32", 1, 65536)},
		"too many rules":      {Mode: allow, Allow: make([]*hearthv1.EgressRule, maxEgressRules+1)},
		"bad rule under deny": {Mode: allow, Deny: rule("x", 1, 1)},
	} {
		if got, err := egressOf(p); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%s: %v, %v, want ErrInvalid", name, got, err)
		}
	}
}
