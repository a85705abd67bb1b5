package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
)

const issuer = "https://kubernetes.default.svc"

// signer is a cluster's key.
type signer struct {
	kid string
	alg jose.SignatureAlgorithm
	key any
}

// Keys are costly to make, and only read.
var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return k
	})
	ecKey = sync.OnceValue(func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		return k
	})
)

func (s signer) public() jose.JSONWebKey {
	k := jose.JSONWebKey{Key: s.key, KeyID: s.kid, Algorithm: string(s.alg), Use: "sig"}
	return k.Public()
}

func (s signer) sign(t testing.TB, payload []byte) string {
	t.Helper()
	g, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, (&jose.SignerOptions{}).WithHeader("kid", s.kid))
	if err != nil {
		t.Fatal(err)
	}
	o, err := g.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// claims are those that an API server puts into a token, with changes; a nil
// value removes one.
func claims(now time.Time, changes map[string]any) []byte {
	c := map[string]any{
		"iss": issuer, "aud": []string{"hearth"}, "sub": "system:serviceaccount:blue:bot", "jti": "1",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "blue", "serviceaccount": map[string]any{"name": "bot", "uid": "u1"},
			"pod": map[string]any{"name": "p", "uid": "u2"}, "node": map[string]any{"name": "n1", "uid": "u3"},
		},
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	b, _ := json.Marshal(c) // of strings and numbers
	return b
}

func documents(t testing.TB, keys ...jose.JSONWebKey) (discovery, jwks []byte) {
	t.Helper()
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"issuer":%q,"jwks_uri":"https://elsewhere/keys"}`, issuer), jwks
}

func setOf(t testing.TB, keys ...jose.JSONWebKey) *keySet {
	t.Helper()
	set, err := parseKeys(documents(t, keys...))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestTokensAreJudgedByTheClustersKeys(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	rs, es := signer{"rs", jose.RS256, rsaKey()}, signer{"es", jose.ES256, ecKey()}
	es384, es512 := signer{"es384", jose.ES384, mustEC(t, elliptic.P384())}, signer{"es512", jose.ES512, mustEC(t, elliptic.P521())}
	other := signer{"rs", jose.RS256, mustRSA(t, 2048)}
	set := setOf(t, rs.public(), es.public(), es384.public(), es512.public())
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	in := func(c map[string]any) string { return rs.sign(t, claims(now, c)) }
	good := in(nil)
	head, rest, _ := strings.Cut(good, ".")
	body, signature, _ := strings.Cut(rest, ".")
	owner := map[string]any{"namespace": "red", "serviceaccount": map[string]any{"name": "bot", "uid": "u1"}}
	cases := map[string]struct {
		token string
		want  string // in the error; "" is accepted
	}{
		"good, RS256":                        {good, ""},
		"good, ES256":                        {es.sign(t, claims(now, nil)), ""},
		"good, ES384":                        {es384.sign(t, claims(now, nil)), ""},
		"good, ES512":                        {es512.sign(t, claims(now, nil)), ""},
		"for several":                        {in(map[string]any{"aud": []string{"vault", "hearth"}}), ""},
		"audience as one string":             {in(map[string]any{"aud": "hearth"}), ""},
		"ended, within the skew":             {in(map[string]any{"exp": now.Add(-20 * time.Second).Unix()}), ""},
		"ended":                              {in(map[string]any{"exp": now.Add(-time.Minute).Unix()}), "ended at"},
		"never ends":                         {in(map[string]any{"exp": nil}), "never ends"},
		"not yet":                            {in(map[string]any{"nbf": now.Add(time.Minute).Unix()}), "holds from"},
		"issued tomorrow":                    {in(map[string]any{"iat": now.Add(24 * time.Hour).Unix()}), "was issued at"},
		"wrong audience":                     {in(map[string]any{"aud": []string{"https://kubernetes.default.svc"}}), "audience"},
		"no audience":                        {in(map[string]any{"aud": nil}), "audience"},
		"a longer audience":                  {in(map[string]any{"aud": []string{"hearth2"}}), "audience"},
		"another issuer":                     {in(map[string]any{"iss": "https://evil"}), "issued by"},
		"no issuer":                          {in(map[string]any{"iss": nil}), "issued by"},
		"a user":                             {in(map[string]any{"sub": "alice"}), "no service account"},
		"a node":                             {in(map[string]any{"sub": "system:node:n1"}), "no service account"},
		"a subject of another namespace":     {in(map[string]any{"kubernetes.io": owner}), "no service account"},
		"an account with a colon":            {in(map[string]any{"sub": "system:serviceaccount:blue:x:y", "kubernetes.io": map[string]any{"namespace": "blue", "serviceaccount": map[string]any{"name": "x:y", "uid": "u"}}}), "no service account"},
		"a namespace with a colon":           {in(map[string]any{"sub": "system:serviceaccount:a:b:c", "kubernetes.io": map[string]any{"namespace": "a:b", "serviceaccount": map[string]any{"name": "c", "uid": "u"}}}), "no service account"},
		"no account":                         {in(map[string]any{"kubernetes.io": nil}), "no service account"},
		"no uid":                             {in(map[string]any{"kubernetes.io": map[string]any{"namespace": "blue", "serviceaccount": map[string]any{"name": "bot"}}}), "no service account"},
		"a key of the same name, not theirs": {other.sign(t, claims(now, nil)), "signature"},
		"an unknown key":                     {signer{"new", jose.RS256, rsaKey()}.sign(t, claims(now, nil)), "does not publish"},
		"no key named":                       {signer{"", jose.RS256, rsaKey()}.sign(t, claims(now, nil)), "does not publish"},
		"ES256 said to be by the RSA key":    {signer{"rs", jose.ES256, ecKey()}.sign(t, claims(now, nil)), "signature"},
		"PS256":                              {signer{"rs", jose.PS256, rsaKey()}.sign(t, claims(now, nil)), "RS256, ES256"},
		"RS512":                              {signer{"rs", jose.RS512, rsaKey()}.sign(t, claims(now, nil)), "RS256, ES256"},
		"HS256 with the public key":          {signer{"rs", jose.HS256, rsaKey().N.Bytes()}.sign(t, claims(now, nil)), "RS256, ES256"},
		"alg none":                           {part(`{"alg":"none","kid":"rs"}`) + "." + body + ".", "RS256, ES256"},
		"alg none with a signature":          {part(`{"alg":"none","kid":"rs"}`) + "." + body + "." + signature, "RS256, ES256"},
		"changed content":                    {head + "." + part(string(claims(now, map[string]any{"sub": "system:serviceaccount:red:bot"}))) + "." + signature, "signature"},
		"changed header":                     {part(`{"alg":"RS256","kid":"rs","typ":"x"}`) + "." + body + "." + signature, "signature"},
		"a critical header":                  {part(`{"alg":"RS256","kid":"rs","crit":["b64"],"b64":false}`) + "." + body + "." + signature, "denied"},
		"without its signature":              {head + "." + body + ".", "denied"},
		"not even dots":                      {"hearth", "RS256, ES256"},
		"empty":                              {"", "RS256, ES256"},
		"enormous":                           {good + strings.Repeat("A", maxToken), "bytes"},
		"content that is no object":          {rs.sign(t, []byte(`["hearth"]`)), "signature or content"},
		"content that is no JSON":            {rs.sign(t, []byte(`hearth`)), "signature or content"},
		"a name given twice":                 {rs.sign(t, []byte(`{"sub":"a","sub":"b"}`)), "signature or content"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := set.verify(tc.token, now)
			if tc.want == "" {
				if want := (env.ServiceAccount{Namespace: "blue", Name: "bot", UID: "u1"}); err != nil || got != want {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if !errors.Is(err, env.ErrDenied) || !strings.Contains(fmt.Sprint(err), tc.want) || got != (env.ServiceAccount{}) {
				t.Errorf("%+v, %v; want %q", got, err, tc.want)
			}
			if len(tc.token) > 100 && strings.Contains(fmt.Sprint(err), tc.token[:100]) {
				t.Errorf("the token is echoed: %v", err)
			}
		})
	}
}

func mustRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustEC(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeysThatClustersDoNotSignWithAreLeftOut(t *testing.T) {
	good := signer{"good", jose.RS256, rsaKey()}.public()
	bare := good
	bare.KeyID, bare.Algorithm, bare.Use = "bare", "", ""
	use, named, alg := good, good, good
	use.KeyID, use.Use = "enc", "enc"
	named.KeyID = ""
	alg.KeyID, alg.Algorithm = "hs", "HS256"
	secret := jose.JSONWebKey{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: "secret", Algorithm: "HS256"}
	short := signer{"short", jose.RS256, mustRSA(t, 1024)}.public()
	wide := signer{"p384", jose.ES256, mustEC(t, elliptic.P384())}.public()
	discovery, jwks := documents(t, good, bare, use, named, alg, secret, short, wide)
	jwks = []byte(strings.Replace(string(jwks), `"keys":[`, `"keys":[{"kty":"AKP","kid":"future"},null,7,`, 1))
	set, err := parseKeys(discovery, jwks)
	if err != nil {
		t.Fatal(err)
	}
	if len(set.keys) != 2 || set.keys["good"] == nil || set.keys["bare"] == nil {
		t.Errorf("kept %v", set.keys)
	}
	for name, docs := range map[string][2]string{
		"no issuer":   {`{}`, string(jwks)},
		"no keys":     {string(discovery), `{"keys":[]}`},
		"not JSON":    {string(discovery), `<html>`},
		"too long":    {string(discovery), strings.Repeat(" ", maxKeysSize+1)},
		"no document": {``, string(jwks)},
	} {
		if _, err := parseKeys([]byte(docs[0]), []byte(docs[1])); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// server is an API server's documents.
type server struct {
	mu   sync.Mutex
	keys []jose.JSONWebKey
	down bool
	read int // key sets
	slow time.Duration
	t    testing.TB
}

func (s *server) Get(ctx context.Context, path string) ([]byte, error) {
	s.mu.Lock()
	down, keys, slow := s.down, s.keys, s.slow
	if path == jwksPath {
		s.read++
	}
	s.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if down {
		return nil, errors.New("connection refused")
	}
	discovery, jwks := documents(s.t, keys...)
	if path == jwksPath {
		return jwks, nil
	}
	return discovery, nil
}

func (s *server) set(down bool, keys ...signer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down, s.keys = down, nil
	for _, k := range keys {
		s.keys = append(s.keys, k.public())
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read
}

func newTokens(s *server) *Tokens {
	return &Tokens{log: slog.New(slog.DiscardHandler), api: s, metrics: NewIdentityMetrics(prometheus.NewRegistry())}
}

func TestKeysAreReadOnceUsedStaleAndReadAgainForANewOne(t *testing.T) {
	first, second := signer{"1", jose.ES256, ecKey()}, signer{"2", jose.RS256, rsaKey()}
	synctest.Test(t, func(t *testing.T) {
		s := &server{t: t}
		s.set(false, first)
		tokens := newTokens(s)
		check := func(k signer, want error) {
			t.Helper()
			_, err := tokens.Verify(t.Context(), k.sign(t, claims(time.Now(), nil)))
			if !errors.Is(err, want) || (want == nil) != (err == nil) {
				t.Errorf("key %s: %v", k.kid, err)
			}
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { check(first, nil) })
		}
		wg.Wait()
		if n := s.count(); n != 1 {
			t.Errorf("20 callers read the keys %d times", n)
		}
		time.Sleep(keysUnknown)
		s.set(false, first, second)
		check(second, nil)
		s.set(true)
		time.Sleep(time.Hour)
		check(first, nil) // the API server is down for an hour
		check(second, nil)
		check(signer{"3", jose.ES256, ecKey()}, env.ErrUnavailable)
	})
}

func TestForgedTokensDoNotMakeTheControllerReadKeys(t *testing.T) {
	known := signer{"1", jose.ES256, ecKey()}
	synctest.Test(t, func(t *testing.T) {
		s := &server{t: t}
		s.set(false, known)
		tokens := newTokens(s)
		for i := range 1000 {
			time.Sleep(10 * time.Millisecond)
			forged := signer{fmt.Sprint("forged-", i), jose.ES256, ecKey()}
			if _, err := tokens.Verify(t.Context(), forged.sign(t, claims(time.Now(), nil))); !errors.Is(err, env.ErrDenied) {
				t.Fatal(err)
			}
		}
		if n := s.count(); n > 3 { // in 10 s
			t.Errorf("1000 forged tokens read the keys %d times", n)
		}
		if got := testutil.ToFloat64(tokens.metrics.tokens.WithLabelValues("denied")); got != 1000 {
			t.Errorf("counted %v", got)
		}
	})
}

func TestWithoutKeysNobodyIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{t: t, slow: time.Hour}
		tokens := newTokens(s)
		begun := time.Now()
		_, err := tokens.Verify(t.Context(), signer{"1", jose.ES256, ecKey()}.sign(t, claims(time.Now(), nil)))
		if took := time.Since(begun); !errors.Is(err, env.ErrUnavailable) || took > keysTimeout {
			t.Errorf("%v after %s", err, took)
		}
	})
}

func TestKeysAreKeptFreshUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{t: t}
		s.set(true)
		tokens := newTokens(s)
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error)
		go func() { end <- tokens.Run(ctx) }()
		time.Sleep(time.Minute)
		s.set(false, signer{"1", jose.ES256, ecKey()})
		time.Sleep(2 * keysRetry)
		if tokens.current() == nil {
			t.Error("not read within two tries after the API server came back")
		}
		before := s.count()
		time.Sleep(time.Hour)
		if n := s.count() - before; n < 8 || n > 12 {
			t.Errorf("read %d times an hour", n)
		}
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	k := signer{"k", jose.ES256, ecKey()}
	set := setOf(f, k.public())
	good := k.sign(f, claims(now, nil))
	f.Add(good)
	f.Add(good + "=")
	f.Add("..")
	f.Add("e30.e30.")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"k"}`)) + ".e30.AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		a, err := set.verify(token, now)
		switch {
		case err == nil:
			if a.Namespace != "blue" || a.Name != "bot" {
				t.Errorf("%q is of %+v", token, a)
			}
		case !errors.Is(err, env.ErrDenied):
			t.Errorf("%q: %v", token, err)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	discovery, jwks := documents(f, signer{"k", jose.ES256, ecKey()}.public())
	f.Add(discovery, jwks)
	f.Add([]byte(`{"issuer":"x"}`), []byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"AA","y":"AA"}]}`))
	f.Fuzz(func(t *testing.T, discovery, jwks []byte) {
		set, err := parseKeys(discovery, jwks)
		if err == nil && (set.issuer == "" || len(set.keys) == 0) {
			t.Errorf("accepted %+v", set)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	now := time.Now()
	for name, k := range map[string]signer{"RS256": {"k", jose.RS256, rsaKey()}, "ES256": {"k", jose.ES256, ecKey()}} {
		b.Run(name, func(b *testing.B) {
			set, token := setOf(b, k.public()), k.sign(b, claims(now, nil))
			for b.Loop() {
				if _, err := set.verify(token, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
