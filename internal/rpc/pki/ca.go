package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// The lifetimes. A leaf is renewed at half of its own, so that an agent restarts
// without its controller for at least LeafLife/2.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	LeafLife = 72 * time.Hour
	// skew is how far clocks of two machines may differ.
	skew = 5 * time.Minute
)

const (
	caCertFile = "ca.pem"
	caKeyFile  = "ca.key"
	maxPEM     = 64 << 10
)

// CA is the authority of one instance.
type CA struct {
	instance string
	cert     *x509.Certificate
	key      *ecdsa.PrivateKey
}

// files is where an authority is kept: a directory, or a Secret of Kubernetes. Of
// two processes that make one at once, one gets env.ErrExists from WriteNew, and
// finds the other's when it tries again.
type files interface {
	// Path is for messages.
	Path() string
	// ReadFile is env.ErrNotFound for a name that is not there.
	ReadFile(name string, limit int64) ([]byte, error)
	// WriteNew is durable when it returns, and env.ErrExists for a name that is there.
	WriteNew(op, name string, data []byte, perm fs.FileMode) error
}

var _ files = (*durable.Dir)(nil)

// LoadOrCreateCA reads ca.pem and ca.key (mode 0600) of dir, and makes them if
// neither is there. One that belongs to another instance is env.ErrExists; a
// damaged one is env.ErrCorrupt and is never replaced: every agent pins it.
func LoadOrCreateCA(dir files, instance string, now time.Time) (*CA, error) {
	key, err := loadOrCreateKey(dir)
	if err != nil {
		return nil, err
	}
	raw, err := dir.ReadFile(caCertFile, maxPEM)
	if errors.Is(err, env.ErrNotFound) {
		// First start, or a crash after the key was written.
		return createCA(dir, instance, key, now)
	}
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(raw)
	if err != nil {
		return nil, fmt.Errorf("read %s/%s: %w", dir.Path(), caCertFile, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%w: %s/%s and %s do not belong together; restore both from one backup",
			env.ErrCorrupt, dir.Path(), caCertFile, caKeyFile)
	}
	if cert.Subject.CommonName != caName(instance) {
		return nil, fmt.Errorf("%w: %s/%s is of %q, not of instance %q", env.ErrExists, dir.Path(), caCertFile, cert.Subject.CommonName, instance)
	}
	return &CA{instance: instance, cert: cert, key: key}, nil
}

func caName(instance string) string { return "hearth " + instance }

func loadOrCreateKey(dir files) (*ecdsa.PrivateKey, error) {
	raw, err := dir.ReadFile(caKeyFile, maxPEM)
	if err == nil {
		key, err := parseKey(raw)
		if err != nil {
			return nil, fmt.Errorf("read %s/%s: %w", dir.Path(), caKeyFile, err)
		}
		return key, nil
	}
	if !errors.Is(err, env.ErrNotFound) {
		return nil, err
	}
	if _, err := dir.ReadFile(caCertFile, maxPEM); err == nil {
		return nil, fmt.Errorf("%w: %s has %s but no %s; restore the key from its backup", env.ErrCorrupt, dir.Path(), caCertFile, caKeyFile)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	encoded, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return key, dir.WriteNew("ca-key", caKeyFile, encoded, 0o600)
}

func createCA(dir files, instance string, key *ecdsa.PrivateKey, now time.Time) (*CA, error) {
	if err := Controller(instance).Check(); err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: caName(instance)},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make ca: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{instance: instance, cert: cert, key: key}, dir.WriteNew("ca-cert", caCertFile, certPEM(der), 0o644)
}

// PEM is the authority's certificate, as clients verify by it.
func (ca *CA) PEM() []byte { return certPEM(ca.cert.Raw) }

// Secret is a key of 32 bytes for one purpose, the same for as long as the authority
// lives. It tells nothing of the authority's key, nor of another purpose's (RFC 5869).
func (ca *CA) Secret(purpose string) ([]byte, error) {
	own, err := ca.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("derive key for %s: %w", purpose, err)
	}
	return hkdf.Key(sha256.New, own, nil, "hearth "+ca.instance+" "+purpose, sha256.Size)
}

// Instance is whose authority this is.
func (ca *CA) Instance() string { return ca.instance }

// Issue makes a key and a certificate for a process of this one's own, for
// server and client use. Hosts are DNS names and IP addresses without ports.
func (ca *CA) Issue(id Identity, hosts []string, now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	dns, ips := splitHosts(hosts)
	der, err := ca.sign(id, &key.PublicKey, dns, ips, now)
	if err != nil {
		return tls.Certificate{}, err
	}
	return newPair(der, ca.cert.Raw, key)
}

// SignRequest signs the key of a PKCS #10 request for id. Of the request only
// the key and the addresses are taken, at most 16 of each kind and none that is
// reserved; everything else in it is ignored. Errors are env.ErrInvalid and
// env.ErrDenied.
func (ca *CA) SignRequest(id Identity, csrDER []byte, now time.Time) (certificatePEM []byte, err error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate request: %s", env.ErrInvalid, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: certificate request is not signed by its own key", env.ErrInvalid)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: certificate request: use an ECDSA P-256 key", env.ErrInvalid)
	}
	if len(csr.DNSNames) > maxHosts || len(csr.IPAddresses) > maxHosts {
		return nil, fmt.Errorf("%w: certificate request names more than %d addresses", env.ErrInvalid, maxHosts)
	}
	for _, n := range csr.DNSNames {
		if strings.HasSuffix(strings.ToLower(strings.TrimRight(n, ".")), ReservedDomain) || strings.Contains(n, "*") {
			return nil, fmt.Errorf("%w: certificate request names %.64q, which is reserved", env.ErrDenied, n)
		}
	}
	der, err := ca.sign(id, pub, csr.DNSNames, csr.IPAddresses, now)
	if err != nil {
		return nil, err
	}
	return certPEM(der), nil
}

const maxHosts = 16

func (ca *CA) sign(id Identity, pub *ecdsa.PublicKey, dns []string, ips []net.IP, now time.Time) ([]byte, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	if id.Instance != ca.instance {
		return nil, fmt.Errorf("%w: the authority of instance %q signs nothing for %s", env.ErrDenied, ca.instance, id)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: string(id.Role), Organization: []string{id.Instance}},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(LeafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.uri()},
		DNSNames:              append([]string{id.ServerName()}, dns...),
		IPAddresses:           ips,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", id, err)
	}
	return der, nil
}

func splitHosts(hosts []string) (dns []string, ips []net.IP) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
			continue
		}
		dns = append(dns, h)
	}
	return dns, ips
}

// serial is 120 random bits: RFC 5280 wants at most 20 octets, and positive.
func serial() *big.Int {
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return new(big.Int).SetBytes(b[:])
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
