package netpol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"hearth/bpf"
)

const (
	dnsConnsMax  = 8    // TCP connections of one island
	dnsTotalMax  = 1024 // questions of all islands that wait
	dnsIdle      = 10 * time.Second
	dnsStopAfter = time.Second           // in which questions that wait are answered
	dnsLookups   = 20 * time.Millisecond // for a lookup of a socket that is under way in the kernel
	dnsDrained   = time.Millisecond      // between two looks at what is not read yet
)

// DNS is the resolver's sockets.
type DNS struct {
	m   *Manager
	udp net.PacketConn
	tcp net.Listener
}

// ListenDNS opens the gateway's port 53, UDP and TCP. The sockets share the port
// with those of a process that takes over, or that hands over. Serve must follow.
func (m *Manager) ListenDNS(ctx context.Context) (*DNS, error) {
	addr := netip.AddrPortFrom(m.cfg.gateway(), 53).String()
	lc := net.ListenConfig{Control: reusePort}
	udp, err := lc.ListenPacket(ctx, "udp4", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for dns on udp %s: %w", addr, err)
	}
	tcp, err := lc.Listen(ctx, "tcp4", addr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for dns on tcp %s: %w", addr, err), udp.Close())
	}
	return &DNS{m: m, udp: udp, tcp: tcp}, nil
}

// Serve answers until ctx ends; it returns once all its goroutines have. Each
// island may have DNSInFlight questions waiting; more are dropped, and only its
// own. At the end, questions that wait are answered for a moment, and new ones
// go to the process that took over, if one has opened the port.
func (d *DNS) Serve(ctx context.Context) error {
	m, pc, tcp := d.m, d.udp, d.tcp
	answering, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	h := &dnsHandler{m: m, ctx: answering, waiting: map[netip.Addr]int{}, resolver: &resolver{
		upstreams: m.cfg.Resolvers, timeout: m.cfg.DNSTimeout, ask: askUpstream, count: &m.dns}}
	servers := []*dns.Server{
		{PacketConn: pc, Handler: h, UDPSize: dns.MinMsgSize, MsgAcceptFunc: acceptQuestion},
		{Listener: &fewConns{Listener: tcp, open: map[netip.Addr]int{}}, Handler: h, MaxTCPQueries: 32,
			ReadTimeout: dnsIdle, IdleTimeout: func() time.Duration { return dnsIdle }, MsgAcceptFunc: acceptQuestion},
	}
	ended := make(chan error, len(servers))
	for _, s := range servers {
		go func() { ended <- s.ActivateAndServe() }()
	}
	var fault error
	running := len(servers)
	select {
	case <-ctx.Done():
		drain(pc, m.cfg.gateway())
	case fault = <-ended:
		running--
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), dnsStopAfter)
	defer cancel()
	defer context.AfterFunc(stop, end)()
	for _, s := range servers {
		_ = s.ShutdownContext(stop) // the one that ended says "not started"
	}
	_ = errors.Join(pc.Close(), tcp.Close()) // closed already if it was shut down
	for range running {
		if err := <-ended; err != nil {
			m.log.Debug("dns socket closed", "error", err)
		}
	}
	h.wait.Wait()
	if fault != nil {
		return fmt.Errorf("serve dns: %w", fault)
	}
	return nil
}

// acceptQuestion ignores replies, which nobody asked for, and lets the handler
// answer the rest.
func acceptQuestion(h dns.Header) dns.MsgAcceptAction {
	if h.Bits&(1<<15) != 0 {
		return dns.MsgIgnore
	}
	return dns.MsgAccept
}

type dnsHandler struct {
	m        *Manager
	ctx      context.Context
	resolver *resolver
	wait     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	waiting map[netip.Addr]int
	total   int
}

// ServeDNS answers one question. Silence is for those who are no open island.
func (h *dnsHandler) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	h.wait.Add(1)
	defer h.wait.Done()
	from := addrOf(w.RemoteAddr())
	allowed, speaks, open := h.m.knows(from)
	if !open || !h.enter(from) {
		h.m.dns.shed.Add(1)
		return
	}
	defer h.leave(from)
	var reply *dns.Msg
	if speaks {
		reply = h.resolver.answer(h.ctx, q, allowed)
	} else {
		h.m.dns.refused.Add(1)
		reply = failure(q, dns.RcodeRefused)
	}
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	fit(reply, q, udp)
	if err := w.WriteMsg(reply); err != nil {
		h.m.log.Debug("dns answer not sent", "island", from, "error", err)
	}
}

func (h *dnsHandler) enter(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting[a] >= h.m.cfg.DNSInFlight || h.total >= dnsTotalMax {
		return false
	}
	h.waiting[a]++
	h.total++
	return true
}

func (h *dnsHandler) leave(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.total--
	if h.waiting[a]--; h.waiting[a] == 0 {
		delete(h.waiting, a)
	}
}

// knows returns what an open island may be told, and whether its policies have
// a resolver.
func (m *Manager) knows(a netip.Addr) (allowed func(netip.Addr) bool, speaks, open bool) {
	m.mu.Lock()
	is := m.addresses[a]
	m.mu.Unlock()
	if is == nil {
		return nil, false, false
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	if is.mode == bpf.IslandIslandModeISLAND_LOCKED || is.class == nil {
		return nil, false, false
	}
	g := m.cfg.gateway()
	speaks = is.class.speaks(g) && (is.claim == nil || is.claim.speaks(g))
	return m.policies.compiler.visible(is.class, is.claim), speaks, true
}

// askUpstream asks by UDP, and by TCP if the answer was cut.
func askUpstream(ctx context.Context, q *dns.Msg, upstream netip.AddrPort) (*dns.Msg, error) {
	udp := &dns.Client{Net: "udp", UDPSize: maxUDPAnswer}
	m, _, err := udp.ExchangeContext(ctx, q, upstream.String())
	if err != nil || !m.Truncated {
		return m, err
	}
	tcp := &dns.Client{Net: "tcp"}
	m, _, err = tcp.ExchangeContext(ctx, q, upstream.String())
	return m, err
}

// fewConns bounds the TCP connections of each source.
type fewConns struct {
	net.Listener

	mu   sync.Mutex // guards open
	open map[netip.Addr]int
}

// Accept closes at once what is too much.
func (l *fewConns) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		a := addrOf(c.RemoteAddr())
		l.mu.Lock()
		over := l.open[a] >= dnsConnsMax
		if !over {
			l.open[a]++
		}
		l.mu.Unlock()
		if !over {
			return &fewConn{Conn: c, done: sync.OnceFunc(func() { l.done(a) })}, nil
		}
		_ = c.Close()
	}
}

func (l *fewConns) done(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[a]--; l.open[a] <= 0 {
		delete(l.open, a)
	}
}

type fewConn struct {
	net.Conn
	done func()
}

// Close gives the connection's place back.
func (c *fewConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// drain sees to it that new questions go to other sockets on the port, and
// returns when those that came before are read, or after dnsStopAfter. The
// server still reads meanwhile: what it has not read when it is shut down would
// be lost.
func drain(pc net.PacketConn, gateway netip.Addr) {
	conn, ok := pc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return // closed
	}
	_ = raw.Control(func(fd uintptr) { deafen(int(fd), gateway) })
	time.Sleep(dnsLookups)
	for end := time.Now().Add(dnsStopAfter); time.Now().Before(end); time.Sleep(dnsDrained) {
		waiting := 0
		err := raw.Control(func(fd uintptr) { waiting, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		if err != nil || waiting == 0 {
			return
		}
	}
}

// deafen connects a socket to an address that never sends, so that new questions
// are no more for it: the kernel gives them to other sockets on the port
// (net/ipv4/udp.c, compute_score). What it received is still read and answered.
func deafen(fd int, gateway netip.Addr) {
	const discard = 9                                                             // RFC 863
	_ = unix.Connect(fd, &unix.SockaddrInet4{Port: discard, Addr: gateway.As4()}) // it only spares questions
}

func reusePort(_, _ string, c syscall.RawConn) error {
	var fault error
	if err := c.Control(func(fd uintptr) {
		fault = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); err != nil {
		return err
	}
	return fault
}
