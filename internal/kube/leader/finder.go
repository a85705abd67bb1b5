package leader

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// The leader writes these annotations into its Lease.
const (
	AddressAnnotation = "hearth.run/address" // host:port of the Fleet API
	CAAnnotation      = "hearth.run/ca"      // PEM of the authority
)

const (
	knownFile = "controller.json"
	maxKnown  = 64 << 10
)

// Finder finds the leader. It may be called from several goroutines.
type Finder struct {
	log  *slog.Logger
	api  getter
	path string
	dir  *durable.Dir

	mu    sync.Mutex // guards all below
	known place      // zero before anything was
	cut   bool       // the API server did not answer the last time
}

// getter reads one object of the API server as JSON.
type getter interface {
	Get(ctx context.Context, path string) ([]byte, error)
}

// place is where a leader is. Known is kept on disk in this form.
type place struct {
	Address string `json:"address"`
	CA      string `json:"ca"`
}

// New makes a finder that reads the Lease namespace/name, and keeps in dir what
// it found. A file there that is damaged counts as missing.
func New(log *slog.Logger, api getter, namespace, name string, dir *durable.Dir) (*Finder, error) {
	f := &Finder{
		log: log, api: api, dir: dir,
		// From the API server's memory: a moment old, and cheap for a fleet
		// that lost its leader at once.
		path: "/apis/coordination.k8s.io/v1/namespaces/" + namespace + "/leases/" + name + "?resourceVersion=0",
	}
	raw, err := dir.ReadFile(knownFile, maxKnown)
	switch {
	case errors.Is(err, env.ErrNotFound):
		return f, nil
	case err != nil:
		return nil, err
	}
	var p place
	if err := json.Unmarshal(raw, &p); err == nil && p.check() == nil {
		f.known = p
	}
	return f, nil
}

// Find returns the leader's host:port and the authority by which to verify it.
// While the API server does not answer it is the last one that was known.
func (f *Finder) Find(ctx context.Context) (address string, caPEM []byte, err error) {
	p, err := f.ask(ctx)
	if err == nil {
		f.keep(p)
		return p.Address, []byte(p.CA), nil
	}
	f.mu.Lock()
	known, first := f.known, !f.cut
	f.cut = !errors.Is(err, env.ErrState)
	cut := f.cut
	f.mu.Unlock()
	if !cut || known == (place{}) {
		return "", nil, err
	}
	if first {
		f.log.Warn("lease not read, trying the controller that was last known", "controller", known.Address, "error", err)
	}
	return known.Address, []byte(known.CA), nil
}

func (f *Finder) ask(ctx context.Context) (place, error) {
	raw, err := f.api.Get(ctx, f.path)
	if err != nil {
		return place{}, fmt.Errorf("read the controller's lease: %w", err)
	}
	return parse(raw)
}

// parse reads a Lease. One that nobody holds is env.ErrState.
func parse(raw []byte) (place, error) {
	var l struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
		Spec struct {
			Holder string `json:"holderIdentity"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return place{}, fmt.Errorf("%w: the controller's lease: %s", env.ErrCorrupt, err)
	}
	if l.Spec.Holder == "" {
		return place{}, fmt.Errorf("%w: no controller leads now", env.ErrState)
	}
	p := place{l.Metadata.Annotations[AddressAnnotation], l.Metadata.Annotations[CAAnnotation]}
	return p, p.check()
}

func (p place) check() error {
	host, _, err := net.SplitHostPort(p.Address)
	if err != nil || host == "" || len(p.Address) > 300 {
		return fmt.Errorf("%w: the controller's lease says %.64q in %s, which is no host:port", env.ErrCorrupt, p.Address, AddressAnnotation)
	}
	block, rest := pem.Decode([]byte(p.CA))
	if block == nil || len(rest) != 0 {
		return fmt.Errorf("%w: the controller's lease has no certificate in %s", env.ErrCorrupt, CAAnnotation)
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return fmt.Errorf("%w: the controller's lease, %s: %s", env.ErrCorrupt, CAAnnotation, err)
	}
	return nil
}

// keep remembers p over restarts.
func (f *Finder) keep(p place) {
	f.mu.Lock()
	same := f.known == p
	f.known, f.cut = p, false
	f.mu.Unlock()
	if same {
		return
	}
	raw, err := json.Marshal(p)
	if err == nil {
		err = f.dir.WriteFile("controller-known", knownFile, append(raw, '\n'), 0o600)
	}
	if err != nil {
		f.log.Warn("controller's address not kept", "controller", p.Address, "error", err)
	}
}
