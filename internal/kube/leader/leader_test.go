package leader

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// apiserver serves one lease on real TLS to who has the token of now.
type apiserver struct {
	*httptest.Server
	dir string // a pod's service account

	mu     sync.Mutex
	token  string
	lease  string // what is answered
	status int
	asked  []string
}

func start(t *testing.T) *apiserver {
	t.Helper()
	s := &apiserver{dir: t.TempDir(), status: http.StatusOK}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, r.URL.String())
		switch {
		case r.Header.Get("Authorization") != "Bearer "+s.token:
			w.WriteHeader(http.StatusUnauthorized)
		case s.status == http.StatusFound:
			http.Redirect(w, r, "https://127.0.0.1:1/steal", http.StatusFound)
		default:
			w.WriteHeader(s.status)
			_, _ = w.Write([]byte(s.lease))
		}
	}))
	t.Cleanup(s.Close)
	s.pod(t, "token-1", s.ca())
	return s
}

func (s *apiserver) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// pod writes what the cluster gives the pod.
func (s *apiserver) pod(t *testing.T, token string, ca []byte) {
	t.Helper()
	s.mu.Lock()
	s.token = token
	s.mu.Unlock()
	ok(t, os.WriteFile(filepath.Join(s.dir, "token"), []byte(token+"\n"), 0o600))
	ok(t, os.WriteFile(filepath.Join(s.dir, "ca.crt"), ca, 0o600))
}

func (s *apiserver) say(status int, lease string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.lease = status, lease
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func lease(t testing.TB, holder, address string, ca []byte) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
		"metadata": map[string]any{"annotations": map[string]string{AddressAnnotation: address, CAAnnotation: string(ca)}},
		"spec":     map[string]any{"holderIdentity": holder},
	})
	ok(t, err)
	return string(b)
}

func finder(t *testing.T, s *apiserver, dir *durable.Dir) *Finder {
	t.Helper()
	f, err := New(slog.New(slog.DiscardHandler), newAPIServer(s.URL, s.dir), "hearth-system", "hearth-controller", dir)
	ok(t, err)
	return f
}

func openDir(t *testing.T) *durable.Dir {
	t.Helper()
	d, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestTheLeaderIsFoundInTheLeaseAndRememberedOverRestarts(t *testing.T) {
	s, dir := start(t), openDir(t)
	f := finder(t, s, dir)
	s.say(http.StatusOK, lease(t, "a", "10.0.0.1:7400", s.ca()))
	find := func(f *Finder, want string) {
		t.Helper()
		address, ca, err := f.Find(t.Context())
		if address != want || err != nil || string(ca) != string(s.ca()) {
			t.Errorf("%q, %d bytes, %v; want %q", address, len(ca), err, want)
		}
	}
	find(f, "10.0.0.1:7400")
	s.say(http.StatusOK, lease(t, "b", "10.0.0.2:7400", s.ca()))
	find(f, "10.0.0.2:7400")
	if want := "/apis/coordination.k8s.io/v1/namespaces/hearth-system/leases/hearth-controller?resourceVersion=0"; s.asked[0] != want {
		t.Errorf("asked for %s", s.asked[0])
	}
	// A token that was replaced is read again.
	s.pod(t, "token-2", s.ca())
	find(f, "10.0.0.2:7400")
	s.Close()
	find(f, "10.0.0.2:7400")
	find(finder(t, s, dir), "10.0.0.2:7400")
}

func TestOnlyAnAPIServerThatDoesNotAnswerMakesTheLastLeaderCount(t *testing.T) {
	s := start(t)
	s.say(http.StatusOK, lease(t, "a", "10.0.0.1:7400", s.ca()))
	f := finder(t, s, openDir(t))
	_, _, err := f.Find(t.Context())
	ok(t, err)
	s.say(http.StatusOK, lease(t, "", "10.0.0.1:7400", s.ca()))
	if address, _, err := f.Find(t.Context()); !errors.Is(err, env.ErrState) {
		t.Errorf("nobody leads: %q, %v", address, err)
	}
	s.say(http.StatusInternalServerError, "")
	if address, _, err := f.Find(t.Context()); address != "10.0.0.1:7400" || err != nil {
		t.Errorf("500: %q, %v", address, err)
	}
}

func TestWithoutAnyLeaderKnownTheFaultIsNamed(t *testing.T) {
	s := start(t)
	cases := map[string]struct {
		status int
		body   string
		want   string
	}{
		"forbidden":          {http.StatusForbidden, "", "needs get on this lease"},
		"no lease":           {http.StatusNotFound, "", "no controller has led yet"},
		"redirected":         {http.StatusFound, "", "302"},
		"not JSON":           {http.StatusOK, "<html>", "corrupt"},
		"no annotations":     {http.StatusOK, `{"spec":{"holderIdentity":"a"}}`, "no host:port"},
		"no port":            {http.StatusOK, lease(t, "a", "10.0.0.1", s.ca()), "no host:port"},
		"no authority":       {http.StatusOK, lease(t, "a", "10.0.0.1:7400", nil), CAAnnotation},
		"a damaged one":      {http.StatusOK, lease(t, "a", "10.0.0.1:7400", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), CAAnnotation},
		"two":                {http.StatusOK, lease(t, "a", "10.0.0.1:7400", append(s.ca(), s.ca()...)), CAAnnotation},
		"longer than 1 MiB":  {http.StatusOK, lease(t, "a", "10.0.0.1:7400", []byte(strings.Repeat("x", maxObject))), "corrupt"},
		"the token is wrong": {http.StatusUnauthorized, "", "401"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s.say(tc.status, tc.body)
			address, _, err := finder(t, s, openDir(t)).Find(t.Context())
			if address != "" || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%q, %v; want %q", address, err, tc.want)
			}
			if strings.Contains(fmt.Sprint(err), s.token) {
				t.Errorf("the token is echoed: %v", err)
			}
		})
	}
}

func TestAnAPIServerOfAnotherAuthorityGetsNoToken(t *testing.T) {
	s, other := start(t), start(t)
	wrong := newCertificate(t)
	other.pod(t, "token-1", wrong)
	f, err := New(slog.New(slog.DiscardHandler), newAPIServer(s.URL, other.dir), "a", "b", openDir(t))
	ok(t, err)
	if _, _, err := f.Find(t.Context()); !errors.Is(err, env.ErrUnavailable) || len(s.asked) != 0 {
		t.Errorf("%v; asked %q", err, s.asked)
	}
	// The authority of now is used as soon as the pod has it.
	s.say(http.StatusOK, lease(t, "a", "10.0.0.1:7400", s.ca()))
	other.pod(t, s.token, s.ca())
	if address, _, err := f.Find(t.Context()); address != "10.0.0.1:7400" || err != nil {
		t.Errorf("%q, %v", address, err)
	}
}

// newCertificate is of another server.
func newCertificate(t *testing.T) []byte {
	t.Helper()
	// httptest's own certificate is the same for all; this one is not it.
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: otherDER(t)})
}

func TestAnAPIServerThatHangsIsLeftInTime(t *testing.T) {
	s := start(t)
	stop := make(chan struct{})
	defer close(stop)
	s.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stop })
	begun := time.Now()
	_, _, err := finder(t, s, openDir(t)).Find(t.Context())
	if took := time.Since(begun); !errors.Is(err, env.ErrUnavailable) || took > apiTimeout+time.Second {
		t.Errorf("%v after %s", err, took)
	}
}

func TestADamagedMemoryCountsAsNone(t *testing.T) {
	s, dir := start(t), openDir(t)
	ok(t, dir.WriteFile("x", knownFile, []byte(`{"address":"nowhere"`), 0o600))
	s.say(http.StatusInternalServerError, "")
	if _, _, err := finder(t, s, dir).Find(t.Context()); !errors.Is(err, env.ErrUnavailable) {
		t.Error(err)
	}
}

func TestOutsideOfAPodThereIsNoAPIServer(t *testing.T) {
	if _, err := InCluster(func(string) string { return "" }); !errors.Is(err, env.ErrInvalid) {
		t.Error(err)
	}
	s, err := InCluster(func(k string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}[k]
	})
	if err != nil || s.base != "https://[fd00::1]:443" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := s.Get(context.Background(), "/"); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("without a token: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"metadata":{"annotations":{"hearth.run/address":"a:1","hearth.run/ca":"x"}},"spec":{"holderIdentity":"h"}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b)
		if err == nil && (p.Address == "" || p.CA == "") {
			t.Errorf("accepted %+v", p)
		}
	})
}
