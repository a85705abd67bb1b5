package agentlink

import (
	"context"
	"time"

	"hearth/internal/rpc/pki"
)

// Run reports and renews until ctx ends. Whenever the connection fails it finds
// the controller anew: another may lead now. Faults are logged and tried again
// with back-off, never returned.
func (l *Link) Run(ctx context.Context, s *pki.Source) error {
	delay := newBackoff()
	for ctx.Err() == nil {
		at, err := l.connect(ctx, s, delay.reset)
		l.connected.Store(false)
		if err != nil && ctx.Err() == nil {
			l.log.Warn("reports interrupted", "controller", at, "error", err)
		}
		_ = delay.wait(ctx) // it fails when ctx has ended, which the loop sees
	}
	return nil
}

// connect finds the controller and reports to it until the stream breaks.
func (l *Link) connect(ctx context.Context, s *pki.Source, worked func()) (address string, err error) {
	address, ca, err := l.find(ctx)
	if err != nil {
		return "", err
	}
	if ca != nil && !pki.SameAuthority(ca, s.CAPEM()) || ended(s) {
		if err := l.rejoin(ctx, s); err != nil {
			return address, err
		}
	}
	line := newLine(address, s.ClientConfig(pki.Controller(l.cfg.Instance)))
	defer line.hangUp()
	l.renew(ctx, line, s)
	return address, l.report(ctx, line, s, worked)
}

func ended(s *pki.Source) bool { return time.Now().After(s.Current().Certificate.Leaf.NotAfter) }

// rejoin gets a certificate by the token: the one that the agent has has ended,
// or the controller has another authority than the one that signed it.
func (l *Link) rejoin(ctx context.Context, s *pki.Source) error {
	c, at, err := l.joinOnce(ctx)
	if err != nil {
		return err
	}
	l.log.Info("joined controller again", "controller", at, "ends", c.Certificate.Leaf.NotAfter,
		"authority_changed", !pki.SameAuthority(c.CAPEM, s.CAPEM()))
	return s.Adopt(c)
}

// renew replaces the certificate if its time has come. On a fault the old one
// goes on; the next report's end or interval tries again.
func (l *Link) renew(ctx context.Context, line *line, s *pki.Source) {
	if time.Now().Before(s.RenewAt()) {
		return
	}
	c, err := l.request(ctx, line, "")
	if err == nil {
		err = s.Replace(c)
	}
	if err != nil {
		l.log.Warn("certificate not renewed", "ends", s.Current().Certificate.Leaf.NotAfter, "error", err)
		return
	}
	line.hangUp() // the next connection shows the new one
	l.log.Info("certificate renewed", "ends", c.Certificate.Leaf.NotAfter)
}
