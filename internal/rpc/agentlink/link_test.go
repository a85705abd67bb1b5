package agentlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

const instance = "test"

// controller is a controller's Fleet API on real TLS, and nothing behind it.
type controller struct {
	hearthv1connect.UnimplementedFleetServiceHandler
	ca    *pki.CA
	addr  string
	epoch uint64
	stop  func()

	mu         sync.Mutex
	tokens     []string // shown at joins, in order; "" is a renewal
	refuse     error    // joins
	left       time.Duration
	fenceAfter time.Duration
	stale      []string
	reports    chan *hearthv1.ReportRequest
	silent     bool // reports are not answered
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.LoadOrCreateCA(openDir(t), instance, time.Now())
	ok(t, err)
	return ca
}

func startController(t *testing.T, ca *pki.CA) *controller {
	t.Helper()
	c := &controller{ca: ca, left: pki.LeafLife, reports: make(chan *hearthv1.ReportRequest, 1000)}
	creds, err := ca.Credentials(pki.Controller(instance), []string{"127.0.0.1"}, time.Now())
	ok(t, err)
	source, err := pki.NewSource(creds)
	ok(t, err)
	l, err := rpc.ListenTLS("127.0.0.1:0", source)
	ok(t, err)
	c.addr = l.Addr().String()
	log := slog.New(slog.DiscardHandler)
	_, handler := hearthv1connect.NewFleetServiceHandler(c, rpc.HandlerOptions(log, rpc.NewMetrics(prometheus.NewRegistry()))...)
	server := rpc.NewServer(log, handler)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	c.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		<-done
	})
	t.Cleanup(c.stop)
	return c
}

func (c *controller) Join(ctx context.Context, r *hearthv1.JoinRequest) (*hearthv1.JoinResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens = append(c.tokens, r.GetToken())
	id := pki.Node(instance, r.GetNode())
	if r.GetToken() == "" && rpc.CallerFrom(ctx).Identity != id {
		return nil, rpc.Unauthenticated(fmt.Errorf("%w: no certificate", env.ErrDenied))
	}
	if c.refuse != nil {
		return nil, c.refuse
	}
	cert, err := c.ca.SignRequest(id, r.GetCsrDer(), time.Now().Add(c.left-pki.LeafLife))
	return &hearthv1.JoinResponse{CertificatePem: cert, CaPem: c.ca.PEM()}, err
}

func (c *controller) Report(ctx context.Context, s *connect.BidiStream[hearthv1.ReportRequest, hearthv1.ReportResponse]) error {
	for {
		r, err := s.Receive()
		if err != nil {
			return err
		}
		c.reports <- r
		c.mu.Lock()
		a := &hearthv1.ReportResponse{Sequence: r.GetSequence(), Epoch: c.epoch, Interval: durationpb.New(50 * time.Millisecond), FenceAfter: durationpb.New(c.fenceAfter)}
		if r.GetInventory() != nil {
			a.Stale = c.stale
		}
		silent := c.silent
		c.mu.Unlock()
		if silent {
			<-ctx.Done()
			return nil
		}
		if err := s.Send(a); err != nil {
			return err
		}
	}
}

func (c *controller) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *controller) shown() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.tokens...)
}

// place is a Finder whose leader changes.
type place struct {
	mu   sync.Mutex
	addr string
	ca   []byte
}

func at(c *controller) *place { return &place{addr: c.addr, ca: c.ca.PEM()} }

func (p *place) Find(context.Context) (string, []byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.addr == "" {
		return "", nil, fmt.Errorf("%w: no controller leads now", env.ErrState)
	}
	return p.addr, p.ca, nil
}

func (p *place) move(c *controller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addr, p.ca = "", nil
	if c != nil {
		p.addr, p.ca = c.addr, c.ca.PEM()
	}
}

type empty struct{}

func (empty) Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error) {
	return &hearthv1.InventoryResponse{}, nil
}

func (empty) Stock() *hearthv1.Heartbeat { return &hearthv1.Heartbeat{} }

const podToken = "header.claims.signature"

func newLink(t *testing.T, f Finder, dir *durable.Dir, token func() (string, error), fencer fencer) *Link {
	t.Helper()
	l, err := New(slog.New(slog.NewTextHandler(t.Output(), nil)), Config{
		Instance: instance, Node: "n1", Advertise: "127.0.0.1:1", Hosts: []string{"127.0.0.1"}, Finder: f, Token: token, Fencer: fencer,
	}, dir, empty{})
	ok(t, err)
	return l
}

func always(token string) func() (string, error) { return func() (string, error) { return token, nil } }

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start joins and reports until the test's end.
func start(t *testing.T, l *Link) *pki.Source {
	t.Helper()
	s, err := l.Join(t.Context())
	ok(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx, s) })
	wg.Go(func() { _ = l.Guard(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s
}

func (c *controller) reported(t *testing.T, within time.Duration) *hearthv1.ReportRequest {
	t.Helper()
	select {
	case r := <-c.reports:
		return r
	case <-time.After(within):
		t.Fatalf("no report within %s", within)
		return nil
	}
}

func TestTheLinkFindsANewLeaderAboutASecondAfterItBegan(t *testing.T) {
	ca := newCA(t)
	first := startController(t, ca)
	p := at(first)
	start(t, newLink(t, p, openDir(t), always(podToken), nil))
	first.reported(t, 5*time.Second)
	p.move(nil)
	first.stop()
	time.Sleep(4 * time.Second) // nobody leads, and the waits have grown
	second := startController(t, ca)
	begun := time.Now()
	p.move(second)
	if r := second.reported(t, 5*time.Second); r.GetInventory() == nil {
		t.Errorf("the first report to a new leader is %v", r)
	}
	took := time.Since(begun)
	t.Logf("found after %s", took.Round(time.Millisecond))
	if took > 1500*time.Millisecond {
		t.Errorf("it took %s", took)
	}
}

func TestTheClustersTokenIsReadAgainUntilItIsAccepted(t *testing.T) {
	c := startController(t, newCA(t))
	c.set(func() { c.refuse = rpc.Unauthenticated(fmt.Errorf("%w: the token has ended", env.ErrDenied)) })
	tries := 0
	l := newLink(t, at(c), openDir(t), func() (string, error) {
		if tries++; tries == 3 {
			c.set(func() { c.refuse = nil })
		}
		return fmt.Sprintf("a.b.%d", tries), nil
	}, nil)
	s, err := l.Join(t.Context())
	ok(t, err)
	if got := strings.Join(c.shown(), " "); got != "a.b.1 a.b.2 a.b.3" || s.Current().Identity != pki.Node(instance, "n1") {
		t.Errorf("tokens %q, identity %s", got, s.Current().Identity)
	}
}

func TestATokenIsShownToNobodyButTheControllerOfTheLease(t *testing.T) {
	impostor := startController(t, newCA(t))
	p := &place{addr: impostor.addr, ca: newCA(t).PEM()}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := newLink(t, p, openDir(t), always(podToken), nil).Join(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || len(impostor.shown()) != 0 {
		t.Errorf("error = %v, tokens shown: %d", err, len(impostor.shown()))
	}
}

func TestATokenIsNotSentInPlainText(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	got := make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			_ = c.SetDeadline(time.Now().Add(time.Second))
			n, _ := c.Read(b)
			got <- string(b[:n])
			_ = c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	p := &place{addr: l.Addr().String(), ca: newCA(t).PEM()}
	if _, err := newLink(t, p, openDir(t), always(podToken), nil).Join(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v", err)
	}
	if said := <-got; strings.Contains(said, podToken) || !strings.HasPrefix(said, "\x16\x03") {
		t.Errorf("the first bytes are no TLS handshake: %.40q", said)
	}
}

func TestAPodsTokenNeedsAnAuthorityToTrust(t *testing.T) {
	c := startController(t, newCA(t))
	_, err := newLink(t, Static(c.addr), openDir(t), always(podToken), nil).Join(t.Context())
	if !errors.Is(err, env.ErrInvalid) {
		t.Errorf("error = %v", err)
	}
}

func TestACertificateThatEndedIsReplacedByTheToken(t *testing.T) {
	c := startController(t, newCA(t))
	c.set(func() { c.left = 1500 * time.Millisecond })
	p := at(c)
	s := start(t, newLink(t, p, openDir(t), always(podToken), nil))
	old := s.Current().Certificate.Leaf
	c.reported(t, 5*time.Second)
	// Renewals fail until it has ended, and then the connection does.
	c.set(func() { c.refuse = fmt.Errorf("%w: starting", env.ErrUnavailable) })
	p.move(nil)
	c.stop()
	time.Sleep(time.Until(old.NotAfter) + 100*time.Millisecond)
	next := startController(t, c.ca)
	p.move(next)
	next.reported(t, 5*time.Second)
	if got := next.shown(); len(got) != 1 || got[0] != podToken {
		t.Errorf("tokens %q", got)
	}
	if now := s.Current().Certificate.Leaf; !now.NotAfter.After(old.NotAfter) {
		t.Errorf("certificate ends at %s, the old one at %s", now.NotAfter, old.NotAfter)
	}
}

func TestACertificateIsRenewedAtHalfItsLifeWithoutAToken(t *testing.T) {
	c := startController(t, newCA(t))
	c.set(func() { c.left = time.Hour }) // of 72: its half is over
	s := start(t, newLink(t, at(c), openDir(t), always(podToken), nil))
	old := s.Current().Certificate.Leaf.NotAfter
	c.set(func() { c.left = pki.LeafLife })
	for end := time.Now().Add(5 * time.Second); !s.Current().Certificate.Leaf.NotAfter.After(old); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not renewed; tokens %q", c.shown())
		}
	}
	if got := c.shown(); got[0] != podToken || got[1] != "" {
		t.Errorf("tokens %q", got)
	}
}

func TestANewAuthorityOfTheLeaseIsFollowed(t *testing.T) {
	before := startController(t, newCA(t))
	before.set(func() { before.epoch = 9 })
	p, dir := at(before), openDir(t)
	l := newLink(t, p, dir, always(podToken), nil)
	s := start(t, l)
	before.reported(t, 5*time.Second)
	waitFor(t, "connected", l.Connected) // the report was answered, not only sent
	if err := l.Obey(8); !errors.Is(err, env.ErrSuperseded) {
		t.Errorf("epoch 8 after 9: %v", err)
	}
	after := startController(t, newCA(t)) // installed anew: its first epoch
	after.set(func() { after.epoch = 1 })
	p.move(after)
	before.stop()
	after.reported(t, 5*time.Second)
	waitFor(t, "connected", l.Connected)
	if err := l.Obey(1); err != nil {
		t.Error(err)
	}
	if !pki.SameAuthority(s.CAPEM(), after.ca.PEM()) {
		t.Error("callers are still given the old authority")
	}
	kept, err := l.Load()
	ok(t, err)
	if !pki.SameAuthority(kept.CAPEM(), after.ca.PEM()) {
		t.Error("a restart would go back to the old authority")
	}
}

func TestANodeThatLosesItsControllerIsFencedAndThawedByAnother(t *testing.T) {
	ca := newCA(t)
	c := startController(t, ca)
	c.set(func() { c.fenceAfter = 400 * time.Millisecond })
	p, n := at(c), &fakeNode{begun: time.Now()}
	l := newLink(t, p, openDir(t), always(podToken), n)
	start(t, l)
	c.reported(t, 5*time.Second)
	p.move(nil)
	c.stop()
	lost := time.Now()
	waitFor(t, "fenced", func() bool { return l.Lease().Fenced })
	if took := time.Since(lost); took > 2*time.Second {
		t.Errorf("fenced after %s", took)
	}
	next := startController(t, ca)
	next.set(func() { next.fenceAfter, next.stale = time.Minute, []string{"e-gone"} })
	p.move(next)
	waitFor(t, "unfenced", func() bool { return !l.Lease().Fenced })
	if got := l.Lease(); got.FenceAfter != time.Minute || len(got.Stale) != 1 {
		t.Errorf("lease %+v", got)
	}
	done := n.done()
	if len(done) < 3 || !strings.HasPrefix(done[len(done)-1], "unfence but e-gone") {
		t.Errorf("done: %q", done)
	}
}

func TestAControllerThatHearsAndDoesNotAnswerRenewsNothing(t *testing.T) {
	c := startController(t, newCA(t))
	c.set(func() { c.fenceAfter = 400 * time.Millisecond })
	n := &fakeNode{begun: time.Now()}
	l := newLink(t, at(c), openDir(t), always(podToken), n)
	start(t, l)
	c.reported(t, 5*time.Second)
	c.set(func() { c.silent = true })
	waitFor(t, "fenced", func() bool { return l.Lease().Fenced })
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
