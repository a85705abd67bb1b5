package netpol

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"hearth/internal/env"
)

// A name service's answers are foreign bytes, its questions hostile ones: both
// are taken apart, bounded and put together anew. Nothing of a client's message
// but name and type goes on, nothing of an upstream's but records of a few
// kinds comes back.
const (
	maxUDPAnswer = 1232 // what arrives unfragmented anywhere (DNS flag day 2020)
	maxRecords   = 64   // of one section
)

// dnsCounters are the resolver's, over all islands.
type dnsCounters struct {
	questions, answered, refused, failed, stripped, shed atomic.Uint64
}

// exchange asks one upstream; the transport is the caller's.
type exchange func(ctx context.Context, q *dns.Msg, upstream netip.AddrPort) (*dns.Msg, error)

// A resolver answers for one question what an island may know.
type resolver struct {
	upstreams []netip.AddrPort
	timeout   time.Duration
	ask       exchange
	count     *dnsCounters
}

// answer never returns nil. allowed says which addresses the island can reach.
func (r *resolver) answer(ctx context.Context, q *dns.Msg, allowed func(netip.Addr) bool) *dns.Msg {
	r.count.questions.Add(1)
	if code := checkQuestion(q); code != dns.RcodeSuccess {
		r.count.refused.Add(1)
		return failure(q, code)
	}
	reply := new(dns.Msg)
	reply.SetReply(q)
	reply.RecursionAvailable = true
	if q.Question[0].Qtype == dns.TypeAAAA {
		// Islands speak IPv4: no address is the truth, and the client goes on at once.
		r.count.answered.Add(1)
		return reply
	}
	upstream, err := r.forward(ctx, q.Question[0])
	if err != nil {
		r.count.failed.Add(1)
		return failure(q, dns.RcodeServerFailure)
	}
	reply.Rcode = upstream.Rcode
	answer, stripped := filter(upstream.Answer, allowed)
	reply.Answer = answer
	reply.Ns, _ = filter(authority(upstream.Ns), allowed)
	r.count.stripped.Add(uint64(stripped))
	r.count.answered.Add(1)
	return reply
}

// checkQuestion accepts one ordinary question of the Internet class.
func checkQuestion(q *dns.Msg) int {
	switch {
	case q.Response, q.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case len(q.Question) != 1, len(q.Answer) != 0, len(q.Ns) != 0, len(q.Extra) > 2:
		return dns.RcodeFormatError
	}
	switch one := q.Question[0]; {
	case one.Qclass != dns.ClassINET:
		return dns.RcodeRefused
	case one.Qtype == dns.TypeANY, one.Qtype == dns.TypeAXFR, one.Qtype == dns.TypeIXFR, one.Qtype == dns.TypeNULL, one.Qtype == dns.TypeNone:
		return dns.RcodeRefused // amplification, transfers and tunnels
	}
	return dns.RcodeSuccess
}

// forward asks the upstreams in turn, within one timeout.
func (r *resolver) forward(ctx context.Context, question dns.Question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	faults := []error{errors.New("no upstream resolver is configured")}
	for i, upstream := range r.upstreams {
		q := new(dns.Msg)
		q.SetQuestion(question.Name, question.Qtype)
		q.SetEdns0(maxUDPAnswer, false)
		share, cancel := context.WithTimeout(ctx, r.timeout/time.Duration(len(r.upstreams)-i+1))
		m, err := r.ask(share, q, upstream)
		cancel()
		switch {
		case err != nil:
			faults = append(faults, err)
		case !answers(m, q):
			faults = append(faults, errors.New("answer to another question"))
		case m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused:
			faults = append(faults, errors.New("upstream does not serve"))
		default:
			return m, nil
		}
	}
	return nil, errors.Join(faults...)
}

// answers checks that m is about q.
func answers(m, q *dns.Msg) bool {
	return m != nil && m.Response && m.Id == q.Id && len(m.Question) == 1 &&
		m.Question[0].Qtype == q.Question[0].Qtype && dns.CanonicalName(m.Question[0].Name) == dns.CanonicalName(q.Question[0].Name)
}

// filter drops addresses that the island could not reach, and records of kinds
// that carry addresses unseen; it returns how many it dropped.
func filter(in []dns.RR, allowed func(netip.Addr) bool) ([]dns.RR, int) {
	var out []dns.RR
	dropped := 0
	for _, rr := range in {
		keep := len(out) < maxRecords
		switch rr := rr.(type) {
		case *dns.A:
			a, ok := netip.AddrFromSlice(rr.A.To4())
			keep = keep && ok && allowed(a)
		case *dns.AAAA, *dns.SVCB, *dns.HTTPS, *dns.OPT, *dns.NULL, *dns.TSIG, *dns.SIG:
			keep = false
		case *dns.RFC3597, nil:
			keep = false // of unknown content
		}
		if keep {
			out = append(out, rr)
		} else {
			dropped++
		}
	}
	return out, dropped
}

// authority keeps what negative caching needs.
func authority(in []dns.RR) []dns.RR {
	var out []dns.RR
	for _, rr := range in {
		if _, ok := rr.(*dns.SOA); ok {
			out = append(out, rr)
		}
	}
	return out
}

func failure(q *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, code)
	if len(m.Question) > 1 {
		m.Question = m.Question[:1]
	}
	m.RecursionAvailable = true
	return m
}

// fit shortens an answer to what the client's transport carries.
func fit(reply, q *dns.Msg, udp bool) {
	size := dns.MaxMsgSize
	if opt := q.IsEdns0(); opt != nil {
		reply.SetEdns0(maxUDPAnswer, false)
		if udp {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDPAnswer)
		}
	} else if udp {
		size = dns.MinMsgSize
	}
	reply.Compress = true
	reply.Truncate(size)
}

// guarded reports whether the site's guards name an address.
func (c *compiler) guarded(a netip.Addr) bool { return c.guardOf(netip.PrefixFrom(a, 32)) != nil }

// visible says which addresses an island may be told: public ones, and others
// only if both its policies let something through to them.
func (c *compiler) visible(class, claim *policy) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		return !c.guarded(a) || (class.reaches(a) && (claim == nil || claim.reaches(a)))
	}
}

// speaks reports whether a policy has a resolver at all.
func (p *policy) speaks(gateway netip.Addr) bool {
	e := p.match(gateway)
	return e != nil && e.allows() && e.reason == env.ReasonPolicy
}
