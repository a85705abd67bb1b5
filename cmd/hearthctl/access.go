package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

// accessCache keeps the accesses of claimed environments, one file of mode 0600
// each, since asking for a new token ends the older ones. dir is empty if the
// user has no home: then nothing is kept.
type accessCache struct{ dir string }

func (a *app) accessCache() accessCache {
	state := a.getenv("XDG_STATE_HOME")
	if state == "" && a.getenv("HOME") != "" {
		state = filepath.Join(a.getenv("HOME"), ".local", "state")
	}
	if state == "" {
		return accessCache{}
	}
	return accessCache{filepath.Join(state, "hearth", "access")}
}

// maxAccessBytes bounds a cache file: an address, a token and a certificate.
const maxAccessBytes = 1 << 20

// load returns nil if there is none; a damaged one counts as none.
func (c accessCache) load(id string) *hearthv1.Access {
	if c.dir == "" {
		return nil
	}
	path := c.path(id)
	if st, err := os.Stat(path); err != nil || st.Size() > maxAccessBytes {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var acc hearthv1.Access
	if protojson.Unmarshal(data, &acc) != nil || acc.GetToken() == "" {
		return nil
	}
	return &acc
}

func (c accessCache) save(id string, acc *hearthv1.Access) error {
	if c.dir == "" {
		return nil
	}
	data, err := protojson.Marshal(acc)
	if err != nil {
		return fmt.Errorf("keep access: %w", err)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("keep access: %w", err)
	}
	tmp, err := os.CreateTemp(c.dir, ".access-*") // 0600
	if err != nil {
		return fmt.Errorf("keep access: %w", err)
	}
	_, werr := tmp.Write(data)
	if err := errors.Join(werr, tmp.Close()); err != nil {
		return errors.Join(fmt.Errorf("keep access: %w", err), os.Remove(tmp.Name()))
	}
	return os.Rename(tmp.Name(), c.path(id))
}

func (c accessCache) forget(id string) {
	if c.dir != "" {
		_ = os.Remove(c.path(id)) // a stale one is denied and replaced
	}
}

// path is safe: ids were parsed.
func (c accessCache) path(id string) string { return filepath.Join(c.dir, id+".json") }

// keep saves an access; that it cannot be kept costs a token later, no more.
func (a *app) keep(id string, acc *hearthv1.Access) {
	if acc.GetToken() == "" {
		return
	}
	if err := a.accessCache().save(id, acc); err != nil {
		fmt.Fprintf(a.stderr, "hearthctl: %s: the next command will ask for a new token\n", err)
	}
}

// guest is one environment's Guest API.
type guest struct {
	hearthv1connect.GuestServiceClient
	id   string
	http *http.Client
}

var errNoAuthority = errors.New("no certificate authority")

func newGuest(id string, acc *hearthv1.Access) (*guest, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(acc.GetCaPem()) {
		return nil, fmt.Errorf("access of %s: %w: hearthctl token %s gets a new one", id, errNoAuthority, id)
	}
	h := rpc.TLSClient(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots})
	h.Transport = withHeaders{h.Transport, map[string]string{
		"Authorization":      "Bearer " + acc.GetToken(),
		"Hearth-Environment": id,
	}}
	client := hearthv1connect.NewGuestServiceClient(h, "https://"+acc.GetAddress(), rpc.ClientOptions()...)
	return &guest{GuestServiceClient: client, id: id, http: h}, nil
}

// inside runs do with the environment's Guest API: with the kept access, and if
// that one is refused, or there is none, with a new token. So do must have had no
// effect when its first call is refused.
func (a *app) inside(ctx context.Context, id string, do func(*guest) error) error {
	if acc := a.accessCache().load(id); acc != nil {
		err := a.tryInside(id, acc, do)
		if !a.accessRefused(ctx, id, acc, err) {
			return err
		}
	}
	b, err := a.backend()
	if err != nil {
		return err
	}
	acc, err := b.token(ctx, id)
	if err != nil {
		return fmt.Errorf("get access to %s: %w", id, err)
	}
	a.keep(id, acc)
	return a.tryInside(id, acc, do)
}

// accessRefused tells whether err is the node's refusal of the access, and not
// one of what was asked for: then the cheapest call is refused too.
func (a *app) accessRefused(ctx context.Context, id string, acc *hearthv1.Access, err error) bool {
	var unknownCA x509.UnknownAuthorityError
	switch {
	case errors.Is(err, errNoAuthority) || errors.As(err, &unknownCA):
		return true // the kept access is damaged, or the node has another authority now
	case !errors.Is(err, env.ErrDenied):
		return false
	}
	probe := func(g *guest) error {
		_, err := g.ListDir(ctx, &hearthv1.ListDirRequest{Path: "/"})
		return err
	}
	return errors.Is(a.tryInside(id, acc, probe), env.ErrDenied)
}

func (a *app) tryInside(id string, acc *hearthv1.Access, do func(*guest) error) error {
	g, err := newGuest(id, acc)
	if err != nil {
		return err
	}
	defer g.http.CloseIdleConnections()
	return do(g)
}
