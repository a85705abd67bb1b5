package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/internal/durable"
	"hearth/internal/env"
)

func testDir(t *testing.T, fault durable.Fault) *durable.Dir {
	t.Helper()
	d, err := durable.OpenDir(t.TempDir(), fault)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func testCA(t *testing.T) *CA {
	t.Helper()
	ca, err := LoadOrCreateCA(testDir(t, nil), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}

func TestTheAuthorityIsMadeOnceWithAPrivateKey(t *testing.T) {
	d := testDir(t, nil)
	first, err := LoadOrCreateCA(d, "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreateCA(d, "test", time.Now())
	if err != nil || !bytes.Equal(first.PEM(), again.PEM()) {
		t.Errorf("another authority: %v", err)
	}
	info, err := os.Stat(filepath.Join(d.Path(), "ca.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ca.key: %v, %v", info.Mode(), err)
	}
	_, err = LoadOrCreateCA(d, "other", time.Now())
	wantErr(t, err, env.ErrExists)
}

func TestACrashAtAnyStepOfMakingTheAuthorityIsMended(t *testing.T) {
	broken := errors.New("crash")
	var steps []string
	if _, err := LoadOrCreateCA(testDir(t, func(op string) error { steps = append(steps, op); return nil }), "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	if len(steps) < 6 {
		t.Fatalf("steps = %q", steps)
	}
	for _, at := range steps {
		fail := true
		d := testDir(t, func(op string) error {
			if op == at && fail {
				return broken
			}
			return nil
		})
		if _, err := LoadOrCreateCA(d, "test", time.Now()); !errors.Is(err, broken) {
			t.Errorf("%s: error = %v", at, err)
		}
		fail = false
		if _, err := LoadOrCreateCA(d, "test", time.Now()); err != nil {
			t.Errorf("after a crash at %s: %v", at, err)
		}
	}
}

func TestADamagedAuthorityIsNeverReplaced(t *testing.T) {
	d := testDir(t, nil)
	if _, err := LoadOrCreateCA(d, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(d.Path(), "ca.key")
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	other, err := keyPEM(otherKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"damaged": []byte("x"), "another's": other, "doubled": append(good, good...)} {
		if err := os.WriteFile(key, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadOrCreateCA(d, "test", time.Now())
		if !errors.Is(err, env.ErrCorrupt) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	_, err = LoadOrCreateCA(d, "test", time.Now())
	wantErr(t, err, env.ErrCorrupt)
}

func TestSigningTakesOnlyTheKeyAndTheAddresses(t *testing.T) {
	ca := testCA(t)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	evil := &x509.CertificateRequest{
		DNSNames: []string{"node.example"},
		URIs:     []*url.URL{Controller("test").uri()},
	}
	evil.Subject.CommonName = "controller"
	der, err := x509.CreateCertificateRequest(rand.Reader, evil, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ca.SignRequest(Node("test", "n1"), der, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseCert(raw)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := IdentityOf(cert); err != nil || id != Node("test", "n1") {
		t.Errorf("identity = %v, %v", id, err)
	}
	if fmt.Sprint(cert.DNSNames) != "[n1.node.test.hearth.internal node.example]" || cert.IsCA {
		t.Errorf("names = %v, ca = %v", cert.DNSNames, cert.IsCA)
	}
	if life := cert.NotAfter.Sub(cert.NotBefore); life > LeafLife+skew {
		t.Errorf("lives %s", life)
	}
}

func TestSigningRefuses(t *testing.T) {
	ca := testCA(t)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	request := func(tmpl *x509.CertificateRequest, key any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	plain := &x509.CertificateRequest{}
	good := request(plain, p256)
	tampered := bytes.Clone(good)
	tampered[len(tampered)-1] ^= 1
	many := make([]string, maxHosts+1)
	for i := range many {
		many[i] = fmt.Sprintf("h%d.example", i)
	}
	cases := map[string]struct {
		id   Identity
		der  []byte
		want error
	}{
		"no request":         {Node("test", "n"), []byte("x"), env.ErrInvalid},
		"a broken signature": {Node("test", "n"), tampered, env.ErrInvalid},
		"an RSA key":         {Node("test", "n"), request(plain, rsaKey), env.ErrInvalid},
		"a reserved name":    {Node("test", "n"), request(&x509.CertificateRequest{DNSNames: []string{Controller("test").ServerName()}}, p256), env.ErrDenied},
		"a reserved name in capitals, with a dot": {Node("test", "n"), request(&x509.CertificateRequest{DNSNames: []string{"X.Hearth.Internal."}}, p256), env.ErrDenied},
		"a wildcard":       {Node("test", "n"), request(&x509.CertificateRequest{DNSNames: []string{"*.example"}}, p256), env.ErrDenied},
		"too many names":   {Node("test", "n"), request(&x509.CertificateRequest{DNSNames: many}, p256), env.ErrInvalid},
		"another instance": {Node("other", "n"), good, env.ErrDenied},
		"a bad name":       {Node("test", "../n"), good, env.ErrInvalid},
		"no role":          {Identity{"test", "", "n"}, good, env.ErrInvalid},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := ca.SignRequest(tc.id, tc.der, time.Now())
			wantErr(t, err, tc.want)
		})
	}
}

func TestBundlesThatDoNotBelongTogetherAreRefused(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	r, err := NewRequest([]string{"127.0.0.1", "n1.example"})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignRequest(Node("test", "n1"), r.DER, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := r.Bundle(cert, ca.PEM())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseBundle(bundle)
	if err != nil || c.Identity != Node("test", "n1") || len(c.Certificate.Certificate) != 2 {
		t.Errorf("credentials = %v, %v", c.Identity, err)
	}
	_, err = r.Bundle(cert, other.PEM())
	wantErr(t, err, env.ErrCorrupt)
	r2, err := NewRequest(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r2.Bundle(cert, ca.PEM())
	wantErr(t, err, env.ErrCorrupt)
	for cut := range 40 {
		if _, err := ParseBundle(bundle[:len(bundle)*cut/40]); !errors.Is(err, env.ErrCorrupt) {
			t.Errorf("cut at %d/40: %v", cut, err)
		}
	}
	s, err := NewSource(c)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ca.Credentials(Node("test", "n2"), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Replace(stranger), env.ErrInvalid)
	if until := time.Until(s.RenewAt()); until < LeafLife/3 || until > LeafLife*2/3 {
		t.Errorf("renewal in %s", until)
	}
}

func TestJoinTokensHideTheirSecretAndSurviveTheirText(t *testing.T) {
	ca := testCA(t)
	token := NewJoinToken(ca)
	back, err := ParseJoinToken(" " + token.Text() + "\n")
	if err != nil || back != token || back.Hash() != token.Hash() {
		t.Errorf("back = %v", err)
	}
	if shown := fmt.Sprintf("%s %v", token, token); strings.Contains(shown, token.Text()[80:]) {
		t.Errorf("shown: %s", shown)
	}
	if !token.matchesCA(ca.cert) || token.matchesCA(testCA(t).cert) {
		t.Error("the pin does not tell authorities apart")
	}
	for _, bad := range []string{"", "hearth-join::", token.Text()[1:], token.Text() + "0", token.Text() + ":", strings.ToUpper(token.Text())} {
		_, err := ParseJoinToken(bad)
		wantErr(t, err, env.ErrInvalid)
		if err != nil && len(bad) > 100 && strings.Contains(err.Error(), bad[90:]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseBundle(b); err == nil && c.Certificate.Leaf == nil {
			t.Error("credentials without a certificate")
		}
	})
}
