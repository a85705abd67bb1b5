package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"hearth/internal/env"
)

func sourceOf(t *testing.T, ca *CA, id Identity) *Source {
	t.Helper()
	c, err := ca.Credentials(id, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSource(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serveOnce answers each connection with a byte that says whether the client was
// known, and whether its session was resumed.
func serveOnce(t *testing.T, s *Source) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.ServerConfig("h2"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answer(c)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

func answer(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	t, _ := c.(*tls.Conn)
	if t.Handshake() != nil {
		return
	}
	said := []byte("nobody")
	if len(t.ConnectionState().VerifiedChains) > 0 {
		said = []byte("known")
	}
	if t.ConnectionState().DidResume {
		said = append(said, " again"...)
	}
	_, _ = c.Write(said)
}

func ask(t *testing.T, addr string, cfg *tls.Config) string {
	t.Helper()
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return "refused"
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil {
		return "refused"
	}
	return string(b[:n])
}

func TestAnAdoptedAuthorityIsTheOnlyOneFromThenOn(t *testing.T) {
	old, next := testCA(t), testCA(t)
	node, controller := Node("test", "n1"), Controller("test")
	server := sourceOf(t, old, node)
	addr := serveOnce(t, server)
	before, after := sourceOf(t, old, controller), sourceOf(t, next, controller)
	resuming := before.ClientConfig(node)
	resuming.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for i, want := range []string{"known", "known again"} {
		if got := ask(t, addr, resuming); got != want {
			t.Errorf("connection %d before: %q, want %q", i, got, want)
		}
	}
	if got := ask(t, addr, after.ClientConfig(node)); got != "refused" {
		t.Errorf("the next authority before it was adopted: %q", got)
	}
	creds, err := next.Credentials(node, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, server.Replace(creds), env.ErrInvalid)
	if err := server.Adopt(creds); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, addr, after.ClientConfig(node)); got != "known" {
		t.Errorf("the adopted authority: %q", got)
	}
	// A client that still trusts the old server's name must not be let in by a
	// session of before.
	resuming.InsecureSkipVerify = true //nolint:gosec // to see what the server does
	if got := ask(t, addr, resuming); got != "refused" {
		t.Errorf("a session of the old authority: %q", got)
	}
	if !bytes.Equal(server.CAPEM(), next.PEM()) {
		t.Error("callers are given the old authority")
	}
	roots := server.ClientConfig(controller).RootCAs
	pool := x509.NewCertPool()
	pool.AddCert(next.cert)
	if !roots.Equal(pool) {
		t.Error("the node's own calls trust another authority")
	}
}

func TestAdoptingKeepsTheIdentity(t *testing.T) {
	ca := testCA(t)
	s := sourceOf(t, ca, Node("test", "n1"))
	creds, err := ca.Credentials(Node("test", "n2"), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Adopt(creds), env.ErrInvalid)
	wantErr(t, s.Replace(creds), env.ErrInvalid)
	if SameAuthority(ca.PEM(), nil) || !SameAuthority(ca.PEM(), ca.PEM()) || SameAuthority(ca.PEM(), testCA(t).PEM()) {
		t.Error("authorities are not told apart")
	}
}
