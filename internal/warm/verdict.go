package warm

import "hearth/internal/env"

// fate is what a restart does with a slot that the journal knows.
type fate int

const (
	destroy fate = iota
	keepReady
	keepEnvironment
)

// finding is what the kernel and containerd say of a slot at a restart.
type finding struct {
	initAlive bool // the recorded pid runs and started when the journal says
	frozen    bool
	island    bool // enforcement is in force, as recorded
}

// judge decides a slot's fate from its last journal record and what was found,
// with the reason for destroying it.
//
// A claim is journalled as claiming before its slot is touched and as running
// before it is answered. So a slot still claiming was never answered: a caller
// that waits repeats its key and gets another.
func judge(s slotState, f finding) (fate, string) {
	switch {
	case s.Phase == env.SlotPreparing:
		return destroy, "was being prepared"
	case !f.initAlive:
		return destroy, "its init is gone"
	case !f.island:
		return destroy, "its island is not in force"
	case s.Phase == env.SlotReady && f.frozen:
		return keepReady, ""
	case s.Phase == env.SlotReady:
		return destroy, "was ready but not frozen"
	case s.Env == nil:
		return destroy, "claimed by nobody"
	case s.Env.Phase == env.PhaseClaiming:
		return destroy, "its claim was never answered"
	case s.Env.Phase == env.PhaseReleased:
		return destroy, "its release was under way"
	default:
		return keepEnvironment, ""
	}
}

// wantsFrozen reports whether an environment in this phase must be frozen. The
// journal is written before the cgroup, so a restart completes what the last
// agent intended: a pause goes on, a snapshot's freeze ends.
func wantsFrozen(p env.Phase) bool { return p == env.PhasePaused || p == env.PhaseQuarantined }
