package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs every certificate of one cluster; it is kept for
// certificates that the controller-manager signs.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// identity is one certificate to be. Organizations are Kubernetes groups.
type identity struct {
	file, name, group string
	names             []string // DNS names and addresses; a server has some
}

const certificateLife = 30 * 24 * time.Hour

func newAuthority(dir string, now time.Time) (*authority, error) {
	a := &authority{dir: dir}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster-ca"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLife),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	var err error
	if a.key, err = writeKey(filepath.Join(dir, "ca.key")); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign authority: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, writePEM(filepath.Join(dir, "ca.crt"), "CERTIFICATE", der, 0o644)
}

func (a *authority) issue(id identity, serial int64) error {
	key, err := writeKey(filepath.Join(a.dir, id.file+".key"))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: id.name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if id.group != "" {
		template.Subject.Organization = []string{id.group}
	}
	if len(id.names) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, n := range id.names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign %s: %w", id.file, err)
	}
	return writePEM(filepath.Join(a.dir, id.file+".crt"), "CERTIFICATE", der, 0o644)
}

// identities are all that a cluster needs.
func (o *Options) identities() []identity {
	service := "kubernetes.default.svc"
	ids := []identity{
		{file: "apiserver", name: "kube-apiserver", names: []string{
			"kubernetes", "kubernetes.default", service, service + "." + domain, "localhost", "127.0.0.1", o.nodes()[0].IP(), apiServiceIP,
		}},
		{file: "apiserver-kubelet-client", name: "apiserver-kubelet-client", group: "system:masters"},
		{file: "admin", name: "admin", group: "system:masters"},
		{file: "controller-manager", name: "system:kube-controller-manager"},
		{file: "scheduler", name: "system:kube-scheduler"},
		{file: "kube-proxy", name: "system:kube-proxy"},
	}
	for _, n := range o.nodes() {
		user := "system:node:" + n.Name
		ids = append(ids,
			identity{file: n.Name, name: user, group: "system:nodes"},
			identity{file: n.Name + "-server", name: user, group: "system:nodes", names: []string{n.Name, n.IP()}})
	}
	return ids
}

// writePKI makes the authority, every identity, and the key pair that signs
// service account tokens.
func (o *Options) writePKI(now time.Time) error {
	dir := o.path("pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	a, err := newAuthority(dir, now)
	if err != nil {
		return err
	}
	for i, id := range o.identities() {
		if err := a.issue(id, int64(i+2)); err != nil {
			return err
		}
	}
	return writeTokenKey(dir)
}

// writeTokenKey makes the pair that signs service account tokens: RSA, as
// nearly every cluster has it.
func writeTokenKey(dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "sa.key"), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), 0o600); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", der, 0o644)
}

func writeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(path, "EC PRIVATE KEY", der, 0o600)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
