package agentlink

import (
	"context"
	"fmt"
	"strings"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
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
	// What changes is told so long after it did, since what changed it may be a claim
	// whose answer is not sent yet, and no more often than that.
	changeAfter, changeEvery = 10 * time.Millisecond, 50 * time.Millisecond
)

// exchange is one stream: each report waits for its answer.
type exchange struct {
	send     func(*hearthv1.ReportRequest) error
	receive  func() (*hearthv1.ReportResponse, error)
	cut      context.CancelFunc
	sequence uint64
	told     string    // what nodes do by themselves, as the last inventory said
	sent     time.Time // when the controller was told of the stock
}

// report keeps one stream until it breaks or ctx ends.
func (l *Link) report(ctx context.Context, line *line, s *pki.Source, worked func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := line.fleet.Report(ctx)
	if err != nil {
		return err
	}
	defer func() {
		_ = stream.CloseRequest()
		_ = stream.CloseResponse()
	}()
	x := &exchange{send: stream.Send, receive: stream.Receive, cut: cancel}
	for beat := 0; ; beat++ {
		interval, err := l.beat(ctx, x, beat)
		if err != nil {
			return err
		}
		if !l.connected.Swap(true) {
			l.log.Info("controller connected", "controller", line.address)
		}
		worked()
		if err := l.pass(ctx, x, interval); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		l.renew(ctx, line, s)
	}
}

// beat sends the inventory, or the small part of it. An inventory goes out early
// when something has happened to environments that no call did. The answer to the first
// inventory of a stream, and to those of a fenced node, lets environments go on.
func (l *Link) beat(ctx context.Context, x *exchange, beat int) (time.Duration, error) {
	inv, err := l.source.Inventory(ctx, &hearthv1.InventoryRequest{})
	if err != nil {
		return 0, fmt.Errorf("read inventory: %w", err)
	}
	held, news := l.guard.holding(), byThemselves(inv)
	if beat%inventoryEvery != 0 && !held && news == x.told {
		return l.exchange(x, &hearthv1.ReportRequest{Message: &hearthv1.ReportRequest_Heartbeat{
			Heartbeat: &hearthv1.Heartbeat{Pools: inv.GetPools(), Room: inv.GetRoom()},
		}}, false)
	}
	inv.Node, x.told = l.cfg.Node, news
	return l.exchange(x, &hearthv1.ReportRequest{Message: &hearthv1.ReportRequest_Inventory{Inventory: inv}}, beat == 0 || held)
}

// byThemselves says to which environments something has happened that no call did:
// the node has paused or ended them, or their class has a newer release. Nobody else
// would tell the controller.
func byThemselves(inv *hearthv1.InventoryResponse) string {
	var b strings.Builder
	for _, e := range inv.GetEnvironments() {
		if e.GetReason() != "" || e.GetOutdated() {
			fmt.Fprintf(&b, "%s %d %s %t\n", e.GetId(), e.GetGeneration(), e.GetReason(), e.GetOutdated())
		}
	}
	return b.String()
}

// pass waits for the next heartbeat, and passes detections and changes of the stock
// on meanwhile.
func (l *Link) pass(ctx context.Context, x *exchange, interval time.Duration) error {
	t := time.NewTimer(interval)
	defer t.Stop()
	var tell <-chan time.Time // set while a change is to be told
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			return nil
		case <-l.cfg.Changed:
			if tell == nil {
				tell = time.After(max(changeAfter, changeEvery-time.Since(x.sent)))
			}
		case <-tell:
			tell = nil
			if _, err := l.exchange(x, &hearthv1.ReportRequest{Message: &hearthv1.ReportRequest_Heartbeat{Heartbeat: l.source.Stock()}}, false); err != nil {
				return err
			}
		case d := <-l.detections:
			if _, err := l.exchange(x, &hearthv1.ReportRequest{Message: &hearthv1.ReportRequest_Detection{Detection: d}}, false); err != nil {
				l.Detected(d) // for the next stream
				return err
			}
		}
	}
}

// exchange sends one report and takes its answer. Unfence says that the answer
// decides which environments go on.
func (l *Link) exchange(x *exchange, r *hearthv1.ReportRequest, unfence bool) (time.Duration, error) {
	x.sequence++
	r.Node, r.Address, r.Sequence = l.cfg.Node, l.cfg.Advertise, x.sequence
	timer := time.AfterFunc(answerTimeout, x.cut)
	defer timer.Stop()
	sent := l.guard.now()
	if r.GetDetection() == nil {
		x.sent = time.Now()
	}
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
	if err := l.epoch.obey(answer.GetEpoch()); err != nil {
		return 0, err
	}
	l.guard.renewed(sent, answer.GetFenceAfter().AsDuration())
	if unfence {
		l.guard.release(stale(answer))
	}
	interval := answer.GetInterval().AsDuration()
	if interval <= 0 || interval > maxInterval {
		interval = maxInterval
	}
	return interval, nil
}

// stale is what the controller says must not go on.
func stale(r *hearthv1.ReportResponse) []env.ID {
	ids := make([]env.ID, 0, len(r.GetStale()))
	for _, id := range r.GetStale() {
		ids = append(ids, env.ID(id)) // compared with the node's own, nothing else
	}
	return ids
}
