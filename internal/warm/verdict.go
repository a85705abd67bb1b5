package warm

import "hearth/internal/env"

// fate is what a restart does with a slot that the journal knows.
type fate int

const (
	destroy fate = iota
	keepReady
	keepEnvironment
	keepFailed // its files, and nothing of it running
)

// finding is what the kernel and containerd say of a slot at a restart.
type finding struct {
	pid       int  // of the init that containerd knows; 0 for none
	rebooted  bool // the kernel under which it ran is gone, and all that was in it
	initAlive bool // the recorded pid runs and started when the journal says
	frozen    bool
	island    bool // enforcement is in force, as recorded
	replaced  bool // its environment has another slot since
}

// judge decides a slot's fate from its last journal record and what was found,
// with the reason for anything but keeping it as it is.
//
// A claim is journalled as claiming before its slot is touched and as running
// before it is answered. So a slot still claiming was never answered: a caller
// that waits repeats its key and gets another. An answered environment is never
// destroyed: without init or island it is kept as failed, with its files.
func judge(s slotState, f finding) (fate, string) {
	if f.replaced {
		return destroy, "its environment was upgraded"
	}
	if s.Phase == env.SlotClaimed && s.Env != nil {
		return judgeEnvironment(s.Env.Phase, f)
	}
	switch {
	case s.Phase == env.SlotCreated:
		return destroy, "" // as ever: its namespaces ended with its agent
	case s.Phase != env.SlotReady:
		return destroy, "it was " + string(s.Phase)
	case s.Filled:
		return destroy, "it was filled for a claim that was never answered"
	case !f.initAlive:
		return destroy, "its init has ended"
	case !f.island:
		return destroy, "its island is not in force"
	case !f.frozen && !s.Checking: // a check ends with the freeze that recovery repeats
		return destroy, "it was ready but not frozen"
	}
	return keepReady, ""
}

func judgeEnvironment(phase env.Phase, f finding) (fate, string) {
	switch {
	case phase == env.PhaseClaiming:
		return destroy, "its claim was never answered"
	case phase == env.PhaseReleased:
		return destroy, "its release was under way"
	case f.rebooted:
		return keepFailed, "its node was restarted"
	case phase == env.PhaseFailed, !f.initAlive:
		return keepFailed, "its init ended"
	case !f.island:
		return keepFailed, "its island was not in force"
	}
	return keepEnvironment, ""
}

// wantsFrozen reports whether an environment in this phase must be frozen. The
// journal is written before the cgroup, so a restart completes what the last
// agent intended: a pause goes on, a snapshot's freeze ends.
func wantsFrozen(p env.Phase) bool {
	return p == env.PhasePaused || p == env.PhaseStalled || p == env.PhaseQuarantined || p == env.PhaseFenced
}
