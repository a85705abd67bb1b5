package fleet

import (
	hearthv1 "hearth/api/hearth/v1"
)

// A move takes an environment from one node, its source, to another, its target.
// Its order keeps two generations from running at once, whoever dies:
//
//  1. Store where it goes: Record.Next, with a generation that no node was ever
//     meant to have. The placement stays the source's.
//  2. The source captures and holds it: frozen and locked.
//  3. The target claims it from that snapshot, which it fetches from the source.
//  4. Store that the target has it. The source's is stale from then on, and released.
//
// Until 4 it may go back, but only after the target has said that it has nothing
// and will have nothing (or was silent for so long that it has fenced what it
// has): that is stored, by naming the source in Next, before the source resumes.
//
// So what must be known after a crash is in the record, and the rest is asked of
// the nodes again: the target first, since it may run it already.

// moveStep is the next thing to do about a move.
type moveStep string

const (
	moveRest   moveStep = "rest"   // nothing
	moveWait   moveStep = "wait"   // nothing, until a node speaks or time passes
	moveBegin  moveStep = "begin"  // choose a target and store it
	moveHold   moveStep = "hold"   // let the source capture and hold it
	moveLook   moveStep = "look"   // ask the target whether it has it
	moveClaim  moveStep = "claim"  // let the target make it
	movePause  moveStep = "pause"  // it was paused: let the target pause it
	moveArrive moveStep = "arrive" // store that it is at the target
	moveRevoke moveStep = "revoke" // let the target give up what it may have
	moveBack   moveStep = "back"   // store that it stays at the source
	moveResume moveStep = "resume" // let the source go on
	moveSettle moveStep = "settle" // store that it does not move any more
)

// moveState is what is known of an environment that moves or shall move.
type moveState struct {
	// Of the record.
	at, next Placement
	ended    bool
	movable  bool // its phase and class allow it
	paused   bool

	// Of the nodes.
	leave      bool // its node is being drained
	sourceUp   bool // it reports
	targetUp   bool
	targetLost bool // silent for so long that it has fenced what it has

	// quiet: no claim whose outcome is open can be under way at the target.
	quiet bool

	moveMemory
}

// moveMemory is what this controller learned since it took the move up. The zero
// value is that after a crash: the target may have been asked.
type moveMemory struct {
	own     bool // this controller has stored Next, so that nobody else has asked
	claimed bool // and it has asked
	known   bool // a claim's last outcome is not open
	looked  bool // the target said since that it does not have it
	held    bool // the source has answered
	refused bool // the target will not take it
	stay    bool // it shall stay: the source cannot, or no target is left
	there   bool // the target has it
	asleep  bool // and has paused it, or cannot
	gone    bool // the target has nothing and will have nothing
	resumed bool // the source runs it, or has nothing to run
}

// asked reports whether the target may have been asked.
func (m *moveState) asked() bool { return !m.own || m.claimed }

// open reports whether a claim at the target may yet come to something.
func (m *moveState) open() bool { return m.asked() && !m.known }

// stays reports whether it shall not go to any target.
func (m *moveState) stays() bool { return m.stay || !m.leave || !m.movable }

// turned reports whether it shall not go to this target.
func (m *moveState) turned() bool { return m.refused || m.stays() }

// step decides. It is a pure function: the table in the tests is the
// specification, and a model of two nodes there checks what it is for.
func (m *moveState) step() moveStep {
	switch {
	case m.ended:
		return moveRest
	case m.next.Node == "":
		if m.sourceUp && !m.stays() {
			return moveBegin
		}
		return moveRest
	case m.next.Node == m.at.Node:
		return m.back()
	case m.there && m.paused && !m.asleep && m.targetUp:
		return movePause
	case m.there:
		return moveArrive
	case m.gone, m.turned() && !m.asked():
		if m.stays() {
			return moveBack
		}
		return moveBegin
	case m.asked() && m.targetLost:
		return moveBack // what it may have is stale, and will not thaw
	case m.open() && !m.looked:
		return when(m.targetUp, moveLook)
	case m.turned():
		return when(m.targetUp && (!m.open() || m.quiet), moveRevoke)
	case !m.targetUp && !m.asked():
		return moveBegin // another one, before it is held
	case !m.held:
		return when(m.sourceUp, moveHold)
	default:
		return when(m.targetUp, moveClaim)
	}
}

// back is the step of one that stays at its source.
func (m *moveState) back() moveStep {
	if m.resumed {
		return moveSettle
	}
	return when(m.sourceUp, moveResume)
}

func when(can bool, s moveStep) moveStep {
	if can {
		return s
	}
	return moveWait
}

// moveAnswer is what came of a step.
type moveAnswer string

const (
	moveDone   moveAnswer = "done"
	moveAbsent moveAnswer = "absent"  // the node does not have the environment
	moveBadKey moveAnswer = "bad key" // the node's word: invalid, or its key came with another request
	moveFailed moveAnswer = "failed"  // the node's word: it cannot
	moveOpen   moveAnswer = "open"    // no answer, or one that leaves it open
)

// learn notes what came of a step that asked a node.
func (m *moveMemory) learn(s moveStep, a moveAnswer) {
	switch {
	case s == moveHold && a == moveDone:
		m.held = true
	case s == moveHold && a != moveOpen:
		m.stay = true
	case s == moveLook && a == moveDone:
		m.there = true
	case s == moveLook && a == moveAbsent:
		m.looked = true
	case s == moveLook && a == moveFailed:
		m.known, m.refused = true, true // it is there, and useless
	case s == moveClaim:
		m.claimed = true
		m.learnClaim(a)
	case s == movePause && a != moveOpen:
		m.asleep = true
	case s == moveRevoke && (a == moveDone || a == moveAbsent):
		m.gone = true
	case s == moveResume && (a == moveDone || a == moveAbsent):
		m.resumed = true
	}
}

func (m *moveMemory) learnClaim(a moveAnswer) {
	switch a {
	case moveDone:
		m.there = true
	case moveFailed:
		// Claims of one key come one after the other there, so that this is the
		// last word about those before too.
		m.known, m.refused = true, true
	case moveBadKey:
		// Unless all were this controller's, another request with the key may be
		// under way.
		m.known, m.refused = m.own, true
	default:
		m.known, m.looked = false, false
	}
}

// movablePhase reports whether an environment in this phase may move. One that
// moves already may have been loaded in the phase of a claim.
func movablePhase(p hearthv1.Phase, moving bool) bool {
	switch p {
	case hearthv1.Phase_PHASE_RUNNING, hearthv1.Phase_PHASE_PAUSED, hearthv1.Phase_PHASE_STALLED:
		return true
	case hearthv1.Phase_PHASE_CLAIMING:
		return moving
	default:
		return false
	}
}
