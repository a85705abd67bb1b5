package agentlink

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

const (
	// inventoryEvery so many heartbeats the full inventory goes out again, so
	// that what went astray is found without a reconnect.
	inventoryEvery = 30
	// answerTimeout: a controller that does not answer a report is left and
	// called again.
	answerTimeout = 15 * time.Second
	// maxInterval bounds what a controller may ask for.
	maxInterval = time.Minute
)

// Run reports and renews until ctx ends. Faults are logged and tried again with
// back-off, never returned.
func (l *Link) Run(ctx context.Context, s *pki.Source) error {
	client := rpc.TLSClient(s.ClientConfig(pki.Controller(l.cfg.Instance)))
	defer client.CloseIdleConnections()
	delay := newBackoff()
	for ctx.Err() == nil {
		l.renew(ctx, client, s)
		err := l.report(ctx, client, s, delay.reset)
		l.connected.Store(false)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			l.log.Warn("reports interrupted", "controller", l.cfg.Controller, "error", err)
		}
		if delay.wait(ctx) != nil {
			break
		}
	}
	return nil
}

// renew replaces the certificate if its time has come. On a fault the old one
// goes on; the next report's end or interval tries again.
func (l *Link) renew(ctx context.Context, client *http.Client, s *pki.Source) {
	if time.Now().Before(s.RenewAt()) {
		return
	}
	c, err := l.request(ctx, client, "")
	if err == nil {
		err = s.Replace(c)
	}
	if err != nil {
		l.log.Warn("certificate not renewed", "ends", s.Current().Certificate.Leaf.NotAfter, "error", err)
		return
	}
	client.CloseIdleConnections() // the next connection shows the new one
	l.log.Info("certificate renewed", "ends", c.Certificate.Leaf.NotAfter)
}

// exchange is one stream: each report waits for its answer.
type exchange struct {
	send     func(*hearthv1.ReportRequest) error
	receive  func() (*hearthv1.ReportResponse, error)
	cut      context.CancelFunc
	sequence uint64
}

// report keeps one stream until it breaks or ctx ends.
func (l *Link) report(ctx context.Context, client *http.Client, s *pki.Source, worked func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.fleetClient(client).Report(ctx)
	if err != nil {
		return err
	}
	defer func() {
		_ = stream.CloseRequest()
		_ = stream.CloseResponse()
	}()
	x := &exchange{send: stream.Send, receive: stream.Receive, cut: cancel}
	for beat := 0; ; beat++ {
		interval, err := l.beat(ctx, x, beat%inventoryEvery == 0)
		if err != nil {
			return err
		}
		if !l.connected.Swap(true) {
			l.log.Info("controller connected", "controller", l.cfg.Controller)
		}
		worked()
		if err := l.pass(ctx, x, interval); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		l.renew(ctx, client, s)
	}
}

// beat sends the inventory, or the small part of it.
func (l *Link) beat(ctx context.Context, x *exchange, full bool) (time.Duration, error) {
	inv, err := l.source.Inventory(ctx, &hearthv1.InventoryRequest{})
	if err != nil {
		return 0, fmt.Errorf("read inventory: %w", err)
	}
	r := &hearthv1.ReportRequest{Message: &hearthv1.ReportRequest_Heartbeat{
		Heartbeat: &hearthv1.Heartbeat{Pools: inv.GetPools(), Room: inv.GetRoom()},
	}}
	if full {
		inv.Node = l.cfg.Node
		r.Message = &hearthv1.ReportRequest_Inventory{Inventory: inv}
	}
	return l.exchange(x, r)
}

// pass waits for the next heartbeat, and passes detections on meanwhile.
func (l *Link) pass(ctx context.Context, x *exchange, interval time.Duration) error {
	t := time.NewTimer(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			return nil
		case d := <-l.detections:
			if _, err := l.exchange(x, &hearthv1.ReportRequest{Message: &hearthv1.ReportRequest_Detection{Detection: d}}); err != nil {
				l.Detected(d) // for the next stream
				return err
			}
		}
	}
}

// exchange sends one report and takes its answer.
func (l *Link) exchange(x *exchange, r *hearthv1.ReportRequest) (time.Duration, error) {
	x.sequence++
	r.Node, r.Address, r.Sequence = l.cfg.Node, l.cfg.Advertise, x.sequence
	timer := time.AfterFunc(answerTimeout, x.cut)
	defer timer.Stop()
	if err := x.send(r); err != nil {
		// The stream was ended by the controller; receiving says why.
		if _, why := x.receive(); why != nil {
			err = why
		}
		return 0, err
	}
	answer, err := x.receive()
	if err != nil {
		return 0, err
	}
	if answer.GetSequence() != x.sequence {
		return 0, fmt.Errorf("%w: controller answered report %d, not %d", env.ErrInvalid, answer.GetSequence(), x.sequence)
	}
	if err := l.obey(answer.GetEpoch()); err != nil {
		return 0, err
	}
	interval := answer.GetInterval().AsDuration()
	if interval <= 0 || interval > maxInterval {
		interval = maxInterval
	}
	return interval, nil
}

// obey refuses an epoch that is lower than one seen before, over restarts too.
func (l *Link) obey(epoch uint64) error {
	have := l.epoch.Load()
	if epoch < have {
		return fmt.Errorf("%w: controller has epoch %d, a later one had %d; if its state was restored from a copy, remove %s/%s and restart the agent",
			env.ErrFenced, epoch, have, l.dir.Path(), epochFile)
	}
	if epoch == have {
		return nil
	}
	l.epoch.Store(epoch)
	return l.dir.WriteFile("controller-epoch", epochFile, strconv.AppendUint(nil, epoch, 10), 0o600)
}
