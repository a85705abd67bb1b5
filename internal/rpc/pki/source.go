package pki

import (
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
type Source struct {
	current atomic.Pointer[Credentials]
	pool    *x509.CertPool // of the authority, which never changes
	caPEM   []byte
}

// NewSource starts with c.
func NewSource(c Credentials) (*Source, error) {
	ca, err := parseCert(c.CAPEM)
	if err != nil {
		return nil, err
	}
	s := &Source{pool: x509.NewCertPool(), caPEM: c.CAPEM}
	s.pool.AddCert(ca)
	s.current.Store(&c)
	return s, nil
}

// Current is what handshakes use now.
func (s *Source) Current() Credentials { return *s.current.Load() }

// CAPEM is the authority, as clients get it to verify this process.
func (s *Source) CAPEM() []byte { return s.caPEM }

// Replace makes c current. Another identity or authority is env.ErrInvalid.
func (s *Source) Replace(c Credentials) error {
	if c.Identity != s.Current().Identity || string(c.CAPEM) != string(s.caPEM) {
		return fmt.Errorf("%w: new credentials are of %s or of another authority", env.ErrInvalid, c.Identity)
	}
	s.current.Store(&c)
	return nil
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
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  s.pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &s.current.Load().Certificate, nil
		},
	}
}

// ClientConfig is mutual TLS 1.3 toward exactly one process, wherever it runs.
func (s *Source) ClientConfig(server Identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    s.pool,
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
