package leader

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hearth/internal/env"
)

// accountDir is where a pod finds its service account.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

const (
	apiTimeout = 2 * time.Second
	maxObject  = 1 << 20
	maxFile    = 1 << 20
)

// APIServer reads objects as the pod's service account. Token and authority are
// read anew for each: the cluster replaces both.
type APIServer struct {
	base string
	dir  string

	mu     sync.Mutex // guards client, which trusts ca
	client *http.Client
	ca     string
}

// InCluster is the API server of the cluster that this process runs in, as the
// pod's environment says. Outside of a pod it is env.ErrInvalid.
func InCluster(getenv func(string) string) (*APIServer, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, fmt.Errorf("%w: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: the controller can be found by its lease only from a pod; set controller.address otherwise", env.ErrInvalid)
	}
	return newAPIServer("https://"+net.JoinHostPort(host, port), accountDir), nil
}

func newAPIServer(base, dir string) *APIServer { return &APIServer{base: base, dir: dir} }

// Get reads one object. Whatever keeps it from that is env.ErrUnavailable.
func (s *APIServer) Get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	body, err := s.get(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%w: the Kubernetes API server: %s", env.ErrUnavailable, err)
	}
	return body, nil
}

func (s *APIServer) get(ctx context.Context, path string) ([]byte, error) {
	token, err := s.file("token")
	if err != nil {
		return nil, err
	}
	client, err := s.trusting()
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
	r.Header.Set("Accept", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxObject))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusOK:
		return body, nil
	case resp.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%s: forbidden; the agent's service account needs get on this lease", path)
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s: not found; no controller has led yet", path)
	default:
		return nil, fmt.Errorf("%s: %s", path, resp.Status)
	}
}

// trusting is a client that trusts the authority that the pod has now.
func (s *APIServer) trusting() (*http.Client, error) {
	ca, err := s.file("ca.crt")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil && s.ca == ca {
		return s.client, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca)) {
		return nil, fmt.Errorf("%s has no certificate", filepath.Join(s.dir, "ca.crt"))
	}
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	s.ca = ca
	s.client = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
			TLSHandshakeTimeout: apiTimeout,
			IdleConnTimeout:     time.Minute,
			MaxIdleConns:        1,
		},
		// A token is shown to the API server alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s.client, nil
}

func (s *APIServer) file(name string) (string, error) {
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}
