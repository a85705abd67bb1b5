package pki

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"hearth/internal/env"
)

// Source holds a process's current credentials. Servers and clients ask it at
// every handshake, so that replacing them restarts nothing.
type Source struct{ current atomic.Pointer[held] }

// held is one set of credentials, as handshakes use it.
type held struct {
	Credentials
	pool *x509.CertPool // of the authority
	// tickets, unless zero, keep sessions that another authority let in from
	// being resumed.
	tickets [32]byte
}

func newHeld(c Credentials) (*held, error) {
	ca, err := parseCert(c.CAPEM)
	if err != nil {
		return nil, err
	}
	h := &held{Credentials: c, pool: x509.NewCertPool()}
	h.pool.AddCert(ca)
	return h, nil
}

// NewSource starts with c.
func NewSource(c Credentials) (*Source, error) {
	h, err := newHeld(c)
	if err != nil {
		return nil, err
	}
	s := &Source{}
	s.current.Store(h)
	return s, nil
}

// Current is what handshakes use now.
func (s *Source) Current() Credentials { return s.current.Load().Credentials }

// CAPEM is the authority, as clients get it to verify this process.
func (s *Source) CAPEM() []byte { return s.Current().CAPEM }

// Replace makes c current. Another identity or authority is env.ErrInvalid.
func (s *Source) Replace(c Credentials) error {
	if !SameAuthority(c.CAPEM, s.CAPEM()) {
		return fmt.Errorf("%w: new credentials of %s are of another authority", env.ErrInvalid, c.Identity)
	}
	return s.Adopt(c)
}

// Adopt is Replace for credentials that may be of another authority, whom this
// process was told to trust from now on. Another identity is env.ErrInvalid.
func (s *Source) Adopt(c Credentials) error {
	have := s.current.Load()
	if c.Identity != have.Identity {
		return fmt.Errorf("%w: new credentials are of %s, not of %s", env.ErrInvalid, c.Identity, have.Identity)
	}
	h, err := newHeld(c)
	if err != nil {
		return err
	}
	h.tickets = have.tickets
	if !SameAuthority(c.CAPEM, have.CAPEM) {
		_, _ = rand.Read(h.tickets[:]) // never fails: crypto/rand aborts the program instead
	}
	s.current.Store(h)
	return nil
}

// SameAuthority reports whether both PEM texts hold the same certificate.
func SameAuthority(a, b []byte) bool {
	x, errX := parseCert(a)
	y, errY := parseCert(b)
	return errX == nil && errY == nil && x.Equal(y)
}

// RenewAt is the time from which the current certificate should be replaced:
// half of its life.
func (s *Source) RenewAt() time.Time {
	leaf := s.Current().Certificate.Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

// ServerConfig is TLS 1.3 with the current certificate; a client's certificate
// is verified if it gives one.
func (s *Source) ServerConfig(protocols ...string) *tls.Config {
	first := s.current.Load()
	cfg := first.server(protocols)
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &s.current.Load().Certificate, nil
	}
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := s.current.Load()
		if now.tickets == first.tickets {
			return nil, nil //nolint:nilnil // crypto/tls: nil is the config itself
		}
		other := now.server(protocols)
		other.Certificates = []tls.Certificate{now.Certificate}
		other.SetSessionTicketKeys([][32]byte{now.tickets})
		return other, nil
	}
	return cfg
}

func (h *held) server(protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  h.pool,
	}
}

// ClientConfig is mutual TLS 1.3 toward exactly one process, wherever it runs,
// of the authority that is current now.
func (s *Source) ClientConfig(server Identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    s.current.Load().pool,
		ServerName: server.ServerName(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.current.Load().Certificate, nil
		},
	}
}

// PinnedConfig is TLS 1.3 for the first contact: the server is the controller of
// instance if it shows a chain to the authority whose hash the join token names.
func PinnedConfig(t JoinToken, instance string) *tls.Config {
	server := Controller(instance).ServerName()
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: server,
		// The default verification needs the authority beforehand; the one
		// below is as strict, and takes it from the handshake by its hash.
		InsecureSkipVerify: true, //nolint:gosec // verified by VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyPinned(cs, t, server)
		},
	}
}

func verifyPinned(cs tls.ConnectionState, t JoinToken, server string) error {
	for _, cert := range cs.PeerCertificates {
		if !t.matchesCA(cert) {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(cert)
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: server, Roots: roots})
		return err
	}
	return errors.New("the server's authority is not the one that the join token names: wrong address, or a token of another controller")
}

// CAClientConfig is TLS 1.3 for a caller that has the authority's certificate
// and no own one. An empty serverName verifies the address that is dialled.
func CAClientConfig(caPEM []byte, serverName string) (*tls.Config, error) {
	ca, err := parseCert(caPEM)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: serverName}, nil
}
