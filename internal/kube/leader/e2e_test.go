//go:build e2e

package leader

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"hearth/internal/env"
	"hearth/internal/kube/kubetest"
)

func TestAnAgentReadsTheLeaseOfARealAPIServerWithItsRoleAlone(t *testing.T) {
	s := kubetest.Start(t)
	url, pod := s.Agent()
	ca := string(newCertificate(t))
	at := func(address string) map[string]string {
		return map[string]string{AddressAnnotation: address, CAAnnotation: ca}
	}
	dir := openDir(t)
	f, err := New(slog.New(slog.DiscardHandler), newAPIServer(url, pod), "hearth-system", "hearth-controller", dir)
	ok(t, err)
	if _, _, err := f.Find(t.Context()); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("before there is a lease: %v", err)
	}
	for _, address := range []string{"10.0.0.1:7400", "10.0.0.2:7400"} {
		s.Lease("hearth-system", "hearth-controller", "pod-1", at(address))
		// It is read from the API server's memory, a moment behind.
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			got, pem, err := f.Find(t.Context())
			if err == nil && got == address && string(pem) == ca {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%q, %v; want %q", got, err, address)
			}
		}
	}
	s.Lease("hearth-system", "another", "pod-1", at("10.0.0.9:7400"))
	other, err := New(slog.New(slog.DiscardHandler), newAPIServer(url, pod), "hearth-system", "another", openDir(t))
	ok(t, err)
	if got, _, err := other.Find(t.Context()); got != "" || !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("a lease that is none of the agent's: %q, %v", got, err)
	}
	speak := s.Silence()
	defer speak()
	begun := time.Now()
	got, _, err := f.Find(t.Context())
	if took := time.Since(begun); got != "10.0.0.2:7400" || err != nil || took > apiTimeout+time.Second {
		t.Errorf("while the API server is silent: %q, %v after %s", got, err, took)
	}
}
