package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// errLied: a node answered what cannot be.
var errLied = errors.New("the node's answer does not fit")

// moveAsk asks a node for one step.
func (f *Fleet) moveAsk(ctx context.Context, m *move, r *Record, s moveStep) error {
	node := r.Next.Node
	if s == moveHold || s == moveResume {
		node = r.Environment.GetNode()
	}
	client := f.client(node)
	if client == nil {
		return fmt.Errorf("%w: node %s has not reported yet", env.ErrUnavailable, node)
	}
	limit := f.cfg.CallTimeout
	if s == moveHold || s == moveClaim || s == moveRevoke {
		limit = f.cfg.SnapshotTimeout // files are copied
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	switch s {
	case moveHold:
		if err = f.awaitUsers(ctx, r.ID()); err == nil {
			err = m.hold(ctx, client, r)
		}
	case moveLook:
		err = m.look(ctx, client, r)
	case moveClaim:
		err = m.claim(ctx, client, r, f.AddressOf(r.Environment.GetNode()))
	case movePause:
		err = m.pause(ctx, client, r)
	case moveRevoke:
		_, err = client.Release(ctx, releaseRequest(r.ID(), r.Next.Generation, false))
	case moveResume:
		err = resumeSource(ctx, client, r)
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	return nil
}

// moveKey is of one step towards one target, which has a generation of its own:
// nothing that was answered before another target was chosen is answered again.
func moveKey(r *Record, s moveStep) string {
	return fmt.Sprintf("%s/%d/move-%s", r.ID(), r.Next.Generation, s)
}

// hold lets the source capture and hold the environment, for the target to fetch.
// The answer says what the environment was claimed with, which nobody stores.
func (m *move) hold(ctx context.Context, source hearthv1connect.NodeServiceClient, r *Record) error {
	resp, err := source.Snapshot(ctx, &hearthv1.NodeSnapshotRequest{
		IdempotencyKey: moveKey(r, moveHold), Environment: string(r.ID()), Hold: true, FetchBy: r.Next.Node,
	})
	if err != nil {
		return err
	}
	snap, spec := resp.GetSnapshot(), resp.GetSpec()
	switch {
	case snap.GetId() == "" || snap.GetEnvironment() != string(r.ID()):
		return fmt.Errorf("%w: snapshot %.64q of environment %.40q", errLied, snap.GetId(), snap.GetEnvironment())
	case snap.GetTenant() != "" && snap.GetTenant() != r.Environment.GetTenant():
		return fmt.Errorf("%w: snapshot of tenant %.64q", errLied, snap.GetTenant())
	case spec == nil:
		return fmt.Errorf("%w: it does not say what the environment was claimed with; its agent is too old to move environments", errLied)
	case spec.GetClass() != "" && spec.GetClass() != r.Environment.GetClass():
		return fmt.Errorf("%w: class %.64q", errLied, spec.GetClass())
	}
	m.held = resp
	return nil
}

// look finds out whether the target has it. One that is there and does not live is
// an error of its own.
func (m *move) look(ctx context.Context, target hearthv1connect.NodeServiceClient, r *Record) error {
	resp, err := target.Get(ctx, &hearthv1.NodeGetRequest{Environment: string(r.ID())})
	if err != nil {
		return err
	}
	e := resp.GetEnvironment()
	switch phase := phaseWord[e.GetPhase()]; {
	case e.GetId() != string(r.ID()) || env.Generation(e.GetGeneration()) != r.Next.Generation:
		return fmt.Errorf("%w: it has generation %d, not %d", env.ErrExists, e.GetGeneration(), r.Next.Generation)
	case phase.Live():
		m.found = e
		return nil
	case phase == env.PhaseClaiming:
		return fmt.Errorf("%w: it is being made", env.ErrExists)
	default:
		return fmt.Errorf("%w: it is %s there: %.*s", errUseless, phase, maxReason, e.GetMessage())
	}
}

// errUseless: the target has made it, and it has ended.
var errUseless = errors.New("useless")

// claim lets the target make it from what the source holds.
func (m *move) claim(ctx context.Context, target hearthv1connect.NodeServiceClient, r *Record, source string) error {
	m.asked = time.Now()
	spec := proto.CloneOf(m.held.GetSpec())
	spec.Class, spec.Tenant, spec.Labels = r.Environment.GetClass(), r.Environment.GetTenant(), r.Environment.GetLabels()
	spec.Snapshot = m.held.GetSnapshot().GetId()
	resp, err := target.Claim(ctx, &hearthv1.NodeClaimRequest{
		IdempotencyKey: fmt.Sprintf("%s/%d", r.ID(), r.Next.Generation),
		Environment:    string(r.ID()), Generation: uint64(r.Next.Generation), Spec: spec,
		Fetch:    &hearthv1.FetchFrom{Node: r.Environment.GetNode(), Address: source},
		ClaimKey: hashBytes(r.ClaimKey), ClaimRequest: hashBytes(r.ClaimRequest),
		Lifetime: m.held.GetLifetime(),
	})
	m.asked = time.Now()
	if err != nil {
		return err
	}
	e := resp.GetEnvironment()
	if e.GetId() != string(r.ID()) || env.Generation(e.GetGeneration()) != r.Next.Generation {
		return fmt.Errorf("%w: environment %.40q, generation %d", env.ErrExists, e.GetId(), e.GetGeneration())
	}
	if !phaseWord[e.GetPhase()].Live() {
		return fmt.Errorf("%w: it is %s there", errUseless, phaseWord[e.GetPhase()])
	}
	m.found = e
	return nil
}

func (m *move) pause(ctx context.Context, target hearthv1connect.NodeServiceClient, r *Record) error {
	resp, err := target.Pause(ctx, &hearthv1.NodePauseRequest{IdempotencyKey: moveKey(r, movePause), Environment: string(r.ID())})
	if err == nil && resp.GetEnvironment().GetId() == string(r.ID()) {
		m.found = resp.GetEnvironment()
	}
	return err
}

// resumeSource undoes the hold. A node cannot do it without letting the
// environment run, so that one that was paused runs for a moment.
func resumeSource(ctx context.Context, source hearthv1connect.NodeServiceClient, r *Record) error {
	key := moveKey(r, moveResume)
	if _, err := source.Resume(ctx, &hearthv1.NodeResumeRequest{IdempotencyKey: key, Environment: string(r.ID())}); err != nil {
		return err
	}
	if r.Phase() != env.PhasePaused || r.idle() {
		return nil
	}
	_, err := source.Pause(ctx, &hearthv1.NodePauseRequest{IdempotencyKey: key + "-paused", Environment: string(r.ID())})
	return err
}

// answerTo says what an error means for a step.
func answerTo(s moveStep, err error) moveAnswer {
	switch {
	case err == nil:
		return moveDone
	case errors.Is(err, env.ErrSuperseded), errors.Is(err, env.ErrUnavailable), errors.Is(err, env.ErrExists),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return moveOpen
	case s == moveRevoke && isGone(err), s == moveLook && isNotFound(err):
		return moveAbsent
	case s == moveResume && (isNotFound(err) || errors.Is(err, env.ErrState)):
		return moveAbsent // nothing is there that could go on
	case s == moveResume, s == moveRevoke, s == moveLook && !errors.Is(err, errUseless):
		return moveOpen // it has to, so it is asked again
	case s == moveClaim && errors.Is(err, env.ErrInvalid):
		return moveBadKey
	default:
		return moveFailed
	}
}
