package netpol

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"hearth/internal/env"
)

func record(t testing.TB, s string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

// upstream answers every question with the given records.
func upstream(records ...dns.RR) exchange {
	return func(_ context.Context, q *dns.Msg, _ netip.AddrPort) (*dns.Msg, error) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = records
		return m, nil
	}
}

func newResolver(ask exchange) *resolver {
	return &resolver{upstreams: []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53"), netip.MustParseAddrPort("1.1.1.1:53")},
		timeout: time.Second, ask: ask, count: &dnsCounters{}}
}

func question(name string, kind uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, kind)
}

// visibleTo compiles policies and gives what their island may be told.
func visibleTo(t testing.TB, class env.EgressPolicy) func(netip.Addr) bool {
	t.Helper()
	c := newCompiler(Default())
	p, err := c.compile(class)
	if err != nil {
		t.Fatal(err)
	}
	return c.visible(&policy{compiled: p}, nil)
}

func TestResolverStripsAddressesThatTheIslandCannotReach(t *testing.T) {
	mixed := upstream(record(t, "x.test. 60 IN CNAME y.test."), record(t, "y.test. 60 IN A 93.184.215.14"), record(t, "y.test. 60 IN A 10.0.0.1"),
		record(t, "y.test. 60 IN A 169.254.169.254"), record(t, "y.test. 60 IN A 127.0.0.1"), record(t, "y.test. 60 IN A 100.96.0.9"),
		record(t, "y.test. 60 IN AAAA ::ffff:10.0.0.1"), record(t, `y.test. 60 IN HTTPS 1 . ipv4hint="10.0.0.1"`), record(t, "y.test. 60 IN A 203.0.113.7"))
	mirror := env.EgressPolicy{Mode: env.EgressAllow, Allow: []env.EgressRule{{CIDR: netip.MustParsePrefix("203.0.113.0/24")}}}
	for name, tc := range map[string]struct {
		policy env.EgressPolicy
		want   []string
	}{
		"internet":                   {env.EgressPolicy{Mode: env.EgressInternet}, []string{"93.184.215.14"}},
		"a class that names a range": {mirror, []string{"93.184.215.14", "203.0.113.7"}},
	} {
		r := newResolver(mixed)
		reply := r.answer(t.Context(), question("x.test.", dns.TypeA), visibleTo(t, tc.policy))
		var got []string
		for _, rr := range reply.Answer {
			if a, ok := rr.(*dns.A); ok {
				got = append(got, a.A.String())
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if r.count.stripped.Load() == 0 {
			t.Errorf("%s: nothing was counted as stripped", name)
		}
	}
}

func TestResolverRefusesWhatIsNoOrdinaryQuestion(t *testing.T) {
	never := func(context.Context, *dns.Msg, netip.AddrPort) (*dns.Msg, error) {
		t.Error("asked upstream")
		return nil, errors.New("never")
	}
	two := question("x.test.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	update := question("x.test.", dns.TypeA)
	update.Opcode = dns.OpcodeUpdate
	for name, tc := range map[string]struct {
		q    *dns.Msg
		code int
	}{
		"none":     {new(dns.Msg), dns.RcodeFormatError},
		"two":      {two, dns.RcodeFormatError},
		"chaos":    {chaos, dns.RcodeRefused},
		"update":   {update, dns.RcodeNotImplemented},
		"any":      {question("x.test.", dns.TypeANY), dns.RcodeRefused},
		"transfer": {question("x.test.", dns.TypeAXFR), dns.RcodeRefused},
		"null":     {question("x.test.", dns.TypeNULL), dns.RcodeRefused},
	} {
		if reply := newResolver(never).answer(t.Context(), tc.q, nil); reply.Rcode != tc.code {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[reply.Rcode], dns.RcodeToString[tc.code])
		}
	}
}

func TestResolverAnswersAAAAWithNothingAndAsksNobody(t *testing.T) {
	r := newResolver(nil)
	reply := r.answer(t.Context(), question("x.test.", dns.TypeAAAA), nil)
	if reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 0 {
		t.Errorf("answer %v, want an empty one", reply)
	}
}

func TestResolverGoesOnToTheNextUpstreamAndBelievesNoStranger(t *testing.T) {
	var asked []string
	r := newResolver(func(_ context.Context, q *dns.Msg, up netip.AddrPort) (*dns.Msg, error) {
		asked = append(asked, up.String())
		if len(asked) == 1 { // about something else
			return new(dns.Msg).SetReply(question("evil.test.", dns.TypeA)), nil
		}
		m := new(dns.Msg)
		m.SetReply(q)
		return m, nil
	})
	if reply := r.answer(t.Context(), question("x.test.", dns.TypeA), nil); reply.Rcode != dns.RcodeSuccess {
		t.Errorf("rcode %d", reply.Rcode)
	}
	if diff := cmp.Diff([]string{"9.9.9.9:53", "1.1.1.1:53"}, asked); diff != "" {
		t.Error(diff)
	}
	down := newResolver(func(context.Context, *dns.Msg, netip.AddrPort) (*dns.Msg, error) { return nil, errors.New("down") })
	if reply := down.answer(t.Context(), question("x.test.", dns.TypeA), nil); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("with every upstream down: rcode %d, want SERVFAIL", reply.Rcode)
	}
}

func TestLargeAnswersFitTheClientsTransport(t *testing.T) {
	var many []dns.RR
	for i := range 200 {
		many = append(many, &dns.A{Hdr: dns.RR_Header{Name: "x.test.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(8, 8, 8, byte(i))})
	}
	for name, tc := range map[string]struct {
		edns uint16
		size int
	}{"plain": {0, 512}, "edns": {4096, maxUDPAnswer}, "absurd edns": {65535, maxUDPAnswer}, "tiny edns": {1, 512}} {
		q := question("x.test.", dns.TypeA)
		if tc.edns != 0 {
			q.SetEdns0(tc.edns, false)
		}
		reply := newResolver(upstream(many...)).answer(t.Context(), q, visibleTo(t, env.EgressPolicy{Mode: env.EgressInternet}))
		if len(reply.Answer) != maxRecords {
			t.Errorf("%s: %d records, want them cut at %d", name, len(reply.Answer), maxRecords)
		}
		fit(reply, q, true)
		if b, err := reply.Pack(); err != nil || len(b) > tc.size {
			t.Errorf("%s: %d bytes, %v; want at most %d", name, len(b), err, tc.size)
		}
	}
}

// FuzzResolver feeds hostile questions and hostile answers: whatever comes, the
// reply packs, fits, and names no address that the island cannot reach.
func FuzzResolver(f *testing.F) {
	seed := func(m *dns.Msg) []byte {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	q := question("x.test.", dns.TypeA)
	a := new(dns.Msg).SetReply(q)
	a.Answer = []dns.RR{record(f, "x.test. 60 IN A 10.0.0.1"), record(f, "x.test. 60 IN A 8.8.8.8"), record(f, `x.test. 60 IN TXT "t"`)}
	f.Add(seed(q), seed(a))
	f.Add([]byte{0}, []byte{0})
	visible := visibleTo(f, env.EgressPolicy{Mode: env.EgressInternet})
	f.Fuzz(func(t *testing.T, question, answer []byte) {
		q := new(dns.Msg)
		if q.Unpack(question) != nil {
			return
		}
		r := newResolver(func(_ context.Context, asked *dns.Msg, _ netip.AddrPort) (*dns.Msg, error) {
			m := new(dns.Msg)
			if err := m.Unpack(answer); err != nil {
				return nil, err
			}
			m.Id, m.Response, m.Question = asked.Id, true, asked.Question
			return m, nil
		})
		reply := r.answer(t.Context(), q, visible)
		fit(reply, q, true)
		b, err := reply.Pack()
		if err != nil {
			return // miekg/dns drops such a reply: the client hears nothing
		}
		if len(b) > maxUDPAnswer {
			t.Fatalf("reply of %d bytes", len(b))
		}
		back := new(dns.Msg)
		if err := back.Unpack(b); err != nil {
			t.Fatalf("reply cannot be read: %v", err)
		}
		for _, rr := range back.Answer {
			if a, ok := rr.(*dns.A); ok {
				if addr, ok := netip.AddrFromSlice(a.A.To4()); !ok || !visible(addr) {
					t.Fatalf("reply names %s", a.A)
				}
			}
			if _, ok := rr.(*dns.AAAA); ok {
				t.Fatal("reply has an IPv6 address")
			}
		}
	})
}
