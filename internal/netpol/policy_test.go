package netpol

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"hearth/internal/env"
)

// model says what a policy allows, from its words alone: no prefixes sorted,
// no intervals, no longest match.
func model(c *compiler, p env.EgressPolicy, addr netip.Addr, port uint16, ping bool) bool {
	if addr == c.gateway {
		return p.Mode != env.EgressNone && port == 53 && !ping
	}
	guarded := false
	for _, g := range c.guards {
		if g.prefix.Contains(addr) {
			if g.wall {
				return false
			}
			guarded = true
		}
	}
	names := func(rules []env.EgressRule) bool {
		for _, r := range rules {
			if !r.CIDR.Masked().Contains(addr) {
				continue
			}
			if len(r.Ports) == 0 {
				return true
			}
			for _, q := range r.Ports {
				if !ping && port >= q.First && port <= q.Last {
					return true
				}
			}
		}
		return false
	}
	switch p.Mode {
	case env.EgressInternet:
		return !guarded && !names(p.Deny)
	case env.EgressAllow:
		return names(p.Allow) && !names(p.Deny)
	default:
		return false
	}
}

func randomRules(r *rand.Rand, n int) []env.EgressRule {
	var out []env.EgressRule
	for range r.IntN(n + 1) {
		// Few different octets, so that rules overlap each other and the guards.
		a := netip.AddrFrom4([4]byte{[]byte{8, 10, 100, 169, 172, 192, 203}[r.IntN(7)], byte(r.IntN(4) * 64), byte(r.IntN(3)), byte(r.IntN(3))})
		rule := env.EgressRule{CIDR: netip.PrefixFrom(a, r.IntN(33))}
		for range r.IntN(3) {
			first := uint16(r.IntN(200))
			rule.Ports = append(rule.Ports, env.PortRange{First: first, Last: first + uint16(r.IntN(100))})
		}
		out = append(out, rule)
	}
	return out
}

func TestCompiledPolicyAgreesWithTheModel(t *testing.T) {
	cfg := Default()
	cfg.ExtraRefused = []netip.Prefix{netip.MustParsePrefix("8.0.1.0/24"), netip.MustParsePrefix("100.100.0.0/16")}
	c := newCompiler(cfg)
	r := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		p := env.EgressPolicy{Mode: []env.EgressMode{env.EgressInternet, env.EgressAllow, env.EgressNone}[r.IntN(3)], Deny: randomRules(r, 4)}
		if p.Mode == env.EgressAllow {
			p.Allow = randomRules(r, 6)
		}
		got, err := c.compile(p)
		if err != nil {
			t.Fatalf("compile %+v: %v", p, err)
		}
		if last := got.entries[len(got.entries)-1]; last.prefix.Bits() != 0 {
			t.Fatalf("the last entry is %s, want 0.0.0.0/0", last.prefix)
		}
		for range 300 {
			addr := interesting(r, c)
			port, ping := uint16(r.IntN(320)), r.IntN(8) == 0
			e := got.match(addr)
			allowed := e.icmp
			if !ping {
				allowed = false
				for _, q := range e.ports {
					allowed = allowed || (port >= q.First && port <= q.Last)
				}
			}
			if want := model(c, p, addr, port, ping); allowed != want {
				t.Fatalf("%+v\n%s port %d ping %v: allowed %v, the model says %v (entry %+v)", p, addr, port, ping, allowed, want, e)
			}
		}
	}
}

// interesting addresses lie near the edges of guards and rules.
func interesting(r *rand.Rand, c *compiler) netip.Addr {
	if r.IntN(3) == 0 {
		g := c.guards[r.IntN(len(c.guards))].prefix.Addr()
		near := []netip.Addr{g, g.Prev(), g.Next(), c.gateway, c.gateway.Next()}[r.IntN(5)]
		if near.IsValid() { // not beyond the first or last address
			return near
		}
		return g
	}
	return netip.AddrFrom4([4]byte{[]byte{8, 10, 100, 169, 172, 192, 203}[r.IntN(7)], byte(r.IntN(256)), byte(r.IntN(3)), byte(r.IntN(3))})
}

func TestNoRuleOpensAWall(t *testing.T) {
	c := newCompiler(Default())
	all := env.EgressPolicy{Mode: env.EgressAllow, Allow: []env.EgressRule{{CIDR: netip.MustParsePrefix("0.0.0.0/0")}}}
	for _, a := range []string{"169.254.169.254", "168.63.129.16", "100.100.100.200", "127.0.0.1", "0.0.0.1", "224.0.0.1", "255.255.255.255", "100.96.0.2"} {
		all.Allow = append(all.Allow, env.EgressRule{CIDR: netip.MustParsePrefix(a + "/32")})
	}
	got, err := c.compile(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all.Allow[1:] {
		if got.reaches(r.CIDR.Addr()) {
			t.Errorf("an allow rule opened %s", r.CIDR)
		}
	}
	if !got.reaches(netip.MustParseAddr("203.0.113.5")) {
		t.Error("an allow rule did not open a special range, which is the class's choice")
	}
}

func TestImpossiblePoliciesAreNamed(t *testing.T) {
	any4 := netip.MustParsePrefix("0.0.0.0/0")
	var ports []env.PortRange
	for i := range uint16(maxRanges + 1) {
		ports = append(ports, env.PortRange{First: i * 10, Last: i*10 + 1})
	}
	for name, p := range map[string]env.EgressPolicy{
		"no mode":                  {},
		"unknown mode":             {Mode: "open"},
		"allow without the mode":   {Mode: env.EgressInternet, Allow: []env.EgressRule{{CIDR: any4}}},
		"IPv6":                     {Mode: env.EgressAllow, Allow: []env.EgressRule{{CIDR: netip.MustParsePrefix("2001:db8::/32")}}},
		"no prefix":                {Mode: env.EgressInternet, Deny: []env.EgressRule{{}}},
		"ports in the wrong order": {Mode: env.EgressInternet, Deny: []env.EgressRule{{CIDR: any4, Ports: []env.PortRange{{First: 2, Last: 1}}}}},
		"too many ranges":          {Mode: env.EgressAllow, Allow: []env.EgressRule{{CIDR: any4, Ports: ports}}},
		"too many rules":           {Mode: env.EgressAllow, Allow: make([]env.EgressRule, maxRules+1)},
	} {
		if _, err := newCompiler(Default()).compile(p); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestFingerprintsDifferWherePoliciesDo(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	seen := map[string]env.EgressPolicy{}
	for range 2000 {
		p := env.EgressPolicy{Mode: env.EgressAllow, Allow: randomRules(r, 2), Deny: randomRules(r, 1)}
		f := fingerprint(p)
		if q, ok := seen[f]; ok && !samePolicy(p, q) {
			t.Fatalf("%+v and %+v have one fingerprint", p, q)
		}
		seen[f] = p
	}
}

func samePolicy(a, b env.EgressPolicy) bool {
	same := func(x, y []env.EgressRule) bool {
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			if x[i].CIDR != y[i].CIDR || len(x[i].Ports) != len(y[i].Ports) {
				return false
			}
			for j := range x[i].Ports {
				if x[i].Ports[j] != y[i].Ports[j] {
					return false
				}
			}
		}
		return true
	}
	return a.Mode == b.Mode && same(a.Allow, b.Allow) && same(a.Deny, b.Deny)
}

func TestConfigFaultsAreJoinedAndNamed(t *testing.T) {
	bad := Default()
	bad.Instance, bad.LinkPrefix, bad.Pool, bad.MTU = "Up", "toolong", netip.MustParsePrefix("10.0.0.1/8"), 9
	err := bad.Validate()
	if !errors.Is(err, env.ErrInvalid) {
		t.Fatalf("Validate = %v, want ErrInvalid", err)
	}
	if n := len(err.(interface{ Unwrap() []error }).Unwrap()); n != 4 {
		t.Errorf("%d faults, want 4: %v", n, err)
	}
	if err := Default().Validate(); err != nil {
		t.Errorf("the default configuration is refused: %v", err)
	}
}
