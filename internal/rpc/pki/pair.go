package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"hearth/internal/env"
)

// Request is a key whose certificate has been asked for.
type Request struct {
	key *ecdsa.PrivateKey
	DER []byte // PKCS #10
}

// NewRequest makes a key and a request for its certificate. Hosts are the DNS
// names and IP addresses, without ports, by which the node is reached.
func NewRequest(hosts []string) (*Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	dns, ips := splitHosts(hosts)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: dns, IPAddresses: ips}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return &Request{key: key, DER: der}, nil
}

// Bundle is what an agent keeps on disk: key, certificate and authority in one
// PEM text, so that one rename replaces all three. It holds a private key.
func (r *Request) Bundle(certificatePEM, caPEM []byte) ([]byte, error) {
	b, err := keyPEM(r.key)
	if err != nil {
		return nil, err
	}
	b = append(b, certificatePEM...)
	b = append(b, caPEM...)
	if _, err := ParseBundle(b); err != nil {
		return nil, err
	}
	return b, nil
}

// Credentials are a certificate with its key, and the authority by which peers
// are verified.
type Credentials struct {
	Certificate tls.Certificate // Leaf is set; the chain ends with the authority
	Identity    Identity
	CAPEM       []byte
}

// ParseBundle reads a bundle and checks that its parts belong together; one that
// does not is env.ErrCorrupt. It does not look at the clock.
func ParseBundle(b []byte) (Credentials, error) {
	keyBlock, rest := pem.Decode(b)
	leafBlock, rest := pem.Decode(rest)
	caBlock, rest := pem.Decode(rest)
	if keyBlock == nil || leafBlock == nil || caBlock == nil || len(rest) != 0 {
		return Credentials{}, fmt.Errorf("%w: bundle does not hold key, certificate and authority", env.ErrCorrupt)
	}
	key, err := parseKey(pem.EncodeToMemory(keyBlock))
	if err != nil {
		return Credentials{}, err
	}
	cert, err := newPair(leafBlock.Bytes, caBlock.Bytes, key)
	if err != nil {
		return Credentials{}, err
	}
	return NewCredentials(cert, pem.EncodeToMemory(caBlock))
}

// NewCredentials checks that the certificate carries an identity and was signed
// by the authority.
func NewCredentials(cert tls.Certificate, caPEM []byte) (Credentials, error) {
	ca, err := parseCert(caPEM)
	if err != nil {
		return Credentials{}, err
	}
	if err := cert.Leaf.CheckSignatureFrom(ca); err != nil {
		return Credentials{}, fmt.Errorf("%w: certificate was not signed by its authority: %s", env.ErrCorrupt, err)
	}
	id, err := IdentityOf(cert.Leaf)
	if err != nil {
		return Credentials{}, err
	}
	return Credentials{Certificate: cert, Identity: id, CAPEM: caPEM}, nil
}

// Credentials issues for a process of this one's own; see Issue.
func (ca *CA) Credentials(id Identity, hosts []string, now time.Time) (Credentials, error) {
	cert, err := ca.Issue(id, hosts, now)
	if err != nil {
		return Credentials{}, err
	}
	return NewCredentials(cert, ca.PEM())
}

// newPair joins a leaf and its key. The authority goes along in the chain, so
// that a joining agent finds the one it has pinned.
func newPair(leafDER, caDER []byte, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(leafDER)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%w: certificate: %s", env.ErrCorrupt, err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return tls.Certificate{}, fmt.Errorf("%w: certificate and key do not belong together", env.ErrCorrupt)
	}
	return tls.Certificate{Certificate: [][]byte{leafDER, caDER}, PrivateKey: key, Leaf: leaf}, nil
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(raw []byte) (*ecdsa.PrivateKey, error) {
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, fmt.Errorf("%w: not one PEM block PRIVATE KEY", env.ErrCorrupt)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: private key: %s", env.ErrCorrupt, err)
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: private key is not ECDSA", env.ErrCorrupt)
	}
	return key, nil
}

func parseCert(raw []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE" || len(rest) != 0 {
		return nil, fmt.Errorf("%w: not one PEM block CERTIFICATE", env.ErrCorrupt)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate: %s", env.ErrCorrupt, err)
	}
	return cert, nil
}
