package agentlink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/rpc/pki"
)

// Times of the calls that get a certificate.
const (
	findTimeout = 5 * time.Second
	joinTimeout = 20 * time.Second
)

// Load returns the credentials on disk. None, or none that is valid now, is
// env.ErrNotFound: then Join.
func (l *Link) Load() (*pki.Source, error) {
	raw, err := l.dir.ReadFile(bundleFile, maxFile)
	if err != nil {
		return nil, err
	}
	c, err := pki.ParseBundle(raw)
	if err != nil {
		return nil, fmt.Errorf("read %s/%s: %w; remove the file and join again", l.dir.Path(), bundleFile, err)
	}
	if want := pki.Node(l.cfg.Instance, l.cfg.Node); c.Identity != want {
		return nil, fmt.Errorf("%w: %s/%s is of %s, this agent is %s; remove the file to join under the new name",
			env.ErrExists, l.dir.Path(), bundleFile, c.Identity, want)
	}
	if leaf := c.Certificate.Leaf; time.Now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("%w: the certificate in %s/%s ended at %s", env.ErrNotFound, l.dir.Path(), bundleFile, leaf.NotAfter)
	}
	return pki.NewSource(c)
}

// Join loads the credentials, or gets them by the token, trying again with
// back-off until ctx ends. What cannot get better by waiting, a refused join
// token or a name in use, is returned at once.
func (l *Link) Join(ctx context.Context) (*pki.Source, error) {
	s, err := l.Load()
	if !errors.Is(err, env.ErrNotFound) {
		return s, err
	}
	for delay := newBackoff(); ; {
		c, at, err := l.joinOnce(ctx)
		if err == nil {
			l.log.Info("joined controller", "controller", at, "node", l.cfg.Node)
			return pki.NewSource(c)
		}
		var f *finalError
		if errors.As(err, &f) {
			return nil, f.error
		}
		l.log.Warn("not joined yet", "controller", at, "error", err)
		if err := delay.wait(ctx); err != nil {
			return nil, fmt.Errorf("join controller %s: %w", at, err)
		}
	}
}

// finalError is one that waiting does not mend.
type finalError struct{ error }

// joinOnce finds the controller and gets a certificate by the token.
func (l *Link) joinOnce(ctx context.Context) (_ pki.Credentials, address string, err error) {
	text, err := l.cfg.Token()
	if err != nil {
		return pki.Credentials{}, "", &finalError{fmt.Errorf("read token: %w", err)}
	}
	address, ca, err := l.find(ctx)
	if err != nil {
		return pki.Credentials{}, "", err
	}
	cfg, err := l.joinConfig(text, ca)
	if err != nil {
		return pki.Credentials{}, address, err
	}
	line := newLine(address, cfg)
	defer line.hangUp()
	c, err := l.request(ctx, line, text)
	if err != nil {
		err = fmt.Errorf("join controller %s: %w", address, err)
	}
	// A refused join token stays refused. The cluster's token is replaced, and
	// what stands against it (rights, the node's name) may be put right.
	if err != nil && isJoinToken(text) && hopeless(err) {
		err = &finalError{err}
	}
	return c, address, err
}

func hopeless(err error) bool {
	return errors.Is(err, env.ErrDenied) || errors.Is(err, env.ErrInvalid) || errors.Is(err, env.ErrExists) || errors.Is(err, env.ErrCorrupt)
}

func isJoinToken(text string) bool { return strings.HasPrefix(text, "hearth-join:") }

// joinConfig is how the controller is verified while the agent has no
// certificate: by the hash in the join token, or by who the finder says it is.
func (l *Link) joinConfig(token string, caPEM []byte) (*tls.Config, error) {
	if isJoinToken(token) {
		t, err := pki.ParseJoinToken(token)
		if err != nil {
			return nil, &finalError{err}
		}
		return pki.PinnedConfig(t, l.cfg.Instance), nil
	}
	if caPEM == nil {
		return nil, &finalError{fmt.Errorf("%w: the token is no join token, and nothing else says by which authority to verify the controller", env.ErrInvalid)}
	}
	return pki.CAClientConfig(caPEM, pki.Controller(l.cfg.Instance).ServerName())
}

func (l *Link) find(ctx context.Context) (address string, caPEM []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	address, caPEM, err = l.cfg.Finder.Find(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("find controller: %w", err)
	}
	return address, caPEM, nil
}

// request asks for a certificate of a new key, and keeps both on disk. Without
// a token the line's own certificate speaks for the node.
func (l *Link) request(ctx context.Context, line *line, token string) (pki.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	r, err := pki.NewRequest(l.cfg.Hosts)
	if err != nil {
		return pki.Credentials{}, err
	}
	resp, err := line.fleet.Join(ctx, &hearthv1.JoinRequest{Token: token, Node: l.cfg.Node, CsrDer: r.DER})
	if err != nil {
		return pki.Credentials{}, err
	}
	bundle, err := r.Bundle(resp.GetCertificatePem(), resp.GetCaPem())
	if err != nil {
		return pki.Credentials{}, fmt.Errorf("controller's answer: %w", err)
	}
	c, err := pki.ParseBundle(bundle)
	if err != nil {
		return pki.Credentials{}, err
	}
	if want := pki.Node(l.cfg.Instance, l.cfg.Node); c.Identity != want {
		return pki.Credentials{}, fmt.Errorf("%w: the controller's answer is of %s, this agent is %s", env.ErrCorrupt, c.Identity, want)
	}
	if l.changes(c) {
		l.log.Warn("controller has another authority than before", "node", l.cfg.Node)
		if err := l.epoch.forget(); err != nil {
			return pki.Credentials{}, err
		}
	}
	return c, l.dir.WriteFile("agent-bundle", bundleFile, bundle, 0o600)
}

// changes reports whether c is of another authority than the credentials on
// disk, ended ones included.
func (l *Link) changes(c pki.Credentials) bool {
	raw, err := l.dir.ReadFile(bundleFile, maxFile)
	if err != nil {
		return false
	}
	old, err := pki.ParseBundle(raw)
	return err == nil && !pki.SameAuthority(old.CAPEM, c.CAPEM)
}
