package guest

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// Configure gives envinit its class; boot services start. Repeating it with an
// equal class is harmless; another one is env.ErrState.
func (c *Client) Configure(ctx context.Context, class *env.Class) error {
	if err := wire.CheckVariables(class.Env); err != nil {
		return fmt.Errorf("%w: class %s: %w", env.ErrInvalid, class.Name, err)
	}
	body := wire.Configure{Probe: probeOf(class.Readiness), Variables: class.Env, Hygiene: hygieneOf(class.Hygiene)}
	for _, s := range class.Services {
		body.Services = append(body.Services, serviceOf(s))
	}
	req := wire.Request{Op: wire.OpConfigure, Configure: &body}
	if body.Probe.File != nil {
		req.Least = max(req.Least, wire.VersionFileProbe)
	}
	if body.Hygiene != nil {
		req.Least = max(req.Least, wire.VersionHygiene)
	}
	return c.ask(ctx, req, idleTimeout, &wire.Reply{})
}

func serviceOf(s env.Service) wire.Service {
	return wire.Service{
		Name: s.Name, Command: s.Command, Dir: s.Dir, Env: s.Env,
		Start: string(s.Start), Restart: string(s.Restart),
	}
}

// hygieneOf is all that the class does not keep; nil is nothing.
func hygieneOf(p env.HygienePolicy) *wire.Hygiene {
	h := wire.Hygiene{
		Hostname:    !p.Keeps(env.TraitHostname),
		Hosts:       !p.Keeps(env.TraitHosts),
		MachineID:   !p.Keeps(env.TraitMachineID),
		SSHHostKeys: !p.Keeps(env.TraitSSHHostKeys),
		RandomSeed:  !p.Keeps(env.TraitRandomSeed),
	}
	if h == (wire.Hygiene{}) {
		return nil
	}
	return &h
}

func probeOf(p env.Probe) wire.Probe {
	out := wire.Probe{Command: p.Command, TCPPort: p.TCPPort, Timeout: p.Timeout, Interval: p.Interval}
	if p.HTTP != nil {
		out.HTTP = &wire.HTTPProbe{Port: p.HTTP.Port, Path: p.HTTP.Path}
	}
	if p.File != nil {
		out.File = &wire.FileProbe{Path: p.File.Path, NonEmpty: p.File.NonEmpty}
	}
	return out
}

// AwaitReady waits until the class's probe passes, bounded by ctx, by the
// probe's own timeout and by ten minutes. A probe that does not pass is an
// *UnreadyError that names the part to blame and its last output.
func (c *Client) AwaitReady(ctx context.Context) error {
	limit := readyLimit
	if d, ok := ctx.Deadline(); ok {
		limit = max(0, min(limit, time.Until(d)))
	}
	// Told a little less than we wait, envinit still gets to say why.
	req := wire.Request{Op: wire.OpReady, Ready: &wire.Ready{Timeout: limit - min(readySlack, limit/10)}}
	return c.askAndPart(ctx, req, limit+readySlack, &wire.ReadyReply{})
}

// Claimed starts the services that wait for a claim. The claim's variables
// (wire.EnvJSONFile) must be in place. Repeating it is harmless.
func (c *Client) Claimed(ctx context.Context) error {
	return c.ask(ctx, wire.Request{Op: wire.OpClaimed}, openTimeout, &wire.Reply{})
}

// Status is what an envinit tells of itself: for people, never for decisions.
type Status struct {
	Claimed  bool
	Execs    int // running now
	Orphans  int // adopted and reaped
	Services []ServiceStatus
	EnvError string
}

// ServiceStatus is one service's state as envinit tells it.
type ServiceStatus struct {
	Name     string
	PID      int // inside; 0 is not running
	Starts   int
	LastExit string
	Output   string // its last output
}

// Status asks envinit how it and its services are.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var r wire.StatusReply
	if err := c.ask(ctx, wire.Request{Op: wire.OpStatus}, openTimeout, &r); err != nil {
		return Status{}, err
	}
	st := Status{Claimed: r.Claimed, Execs: r.Execs, Orphans: r.Orphans, EnvError: clean(r.EnvError)}
	for _, s := range r.Services[:min(len(r.Services), wire.MaxServices)] {
		st.Services = append(st.Services, ServiceStatus{
			Name: clean(s.Name), PID: s.PID, Starts: s.Starts, LastExit: clean(s.LastExit), Output: clean(s.Output),
		})
	}
	return st, nil
}

// Shutdown asks every process to end and kills what remains after grace
// (0 is 10 s). It returns when envinit has accepted; the slot's pid 1 exits
// when it is done.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	req := wire.Request{Op: wire.OpShutdown, Shutdown: &wire.Shutdown{Grace: grace}}
	return c.ask(ctx, req, openTimeout, &wire.Reply{})
}
