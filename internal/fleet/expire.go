package fleet

import (
	"time"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
)

// What nodes do by themselves, in a word; see Environment.reason.
const (
	reasonIdle    = "idle"
	reasonExpired = "expired"
)

const expiredMessage = "its time to live ended"

// clocksDiffer is how much the clocks of controller and nodes may, when an
// environment that a node denies is said to have come to its end.
const clocksDiffer = 2 * time.Second

// isExpired reports whether the node released it because its time came.
func isExpired(e *hearthv1.Environment) bool {
	return e.GetPhase() == hearthv1.Phase_PHASE_RELEASED && e.GetReason() == reasonExpired
}

// idle reports whether its node paused it because it did nothing: it goes on by
// itself.
func (r *Record) idle() bool {
	return r.Environment.GetPhase() == hearthv1.Phase_PHASE_PAUSED && r.Environment.GetReason() == reasonIdle
}

// mustHaveExpired reports whether its time has come, so that a node which does not
// have it any more has released it, though it does not say so any more.
func (r *Record) mustHaveExpired(now time.Time) bool {
	at := r.Environment.GetExpiresAt()
	return at.IsValid() && !at.AsTime().After(now.Add(clocksDiffer))
}

// differs reports whether the node says something else than is known, of what it
// decides.
func (r *Record) differs(e *hearthv1.Environment) bool {
	have := r.Environment
	return e.GetPhase() != have.GetPhase() || !proto.Equal(e.GetResources(), have.GetResources()) || e.GetReason() != have.GetReason() ||
		!proto.Equal(e.GetExpiresAt(), have.GetExpiresAt()) || !proto.Equal(e.GetTimeToLive(), have.GetTimeToLive()) ||
		e.GetRevision() != have.GetRevision() || e.GetOutdated() != have.GetOutdated() || e.GetSlot() != have.GetSlot()
}

// observe takes over what a node decides.
func (r *Record) observe(e *hearthv1.Environment) {
	have := r.Environment
	have.Phase, have.Message, have.Reason = e.GetPhase(), e.GetMessage(), e.GetReason()
	have.Resources = proto.CloneOf(e.GetResources())
	have.ExpiresAt, have.TimeToLive = proto.CloneOf(e.GetExpiresAt()), proto.CloneOf(e.GetTimeToLive())
	// An upgrade gives it another slot.
	have.Revision, have.Outdated = e.GetRevision(), e.GetOutdated()
	have.Slot, have.Address, have.Pid = e.GetSlot(), e.GetAddress(), e.GetPid()
	have.Ports = nil
	for _, p := range e.GetPorts() {
		have.Ports = append(have.Ports, proto.CloneOf(p))
	}
}

// expire makes the record one whose time has come. Its placement is not stale: its
// node has let go of it.
func (r *Record) expire(message string) {
	r.Environment.Phase, r.Environment.Message, r.Environment.Reason = hearthv1.Phase_PHASE_RELEASED, message, reasonExpired
	r.Ended = true
}

// timeCame stores that a node has released a placement because its time came. If
// the store does not answer, the node is asked again.
func (f *Fleet) timeCame(was *Record, message string) {
	first := false
	r, err := f.update("expired", was.ID(), func(now *Record) (bool, error) {
		first = !now.final() && !now.moving() && now.placement() == was.placement()
		if first {
			now.expire(message)
		}
		return first, nil
	})
	switch {
	case err != nil:
		f.log.Warn("end of environment not stored", "environment", was.ID(), "error", err)
	case first:
		f.happened(Expired, r, message)
	}
}
