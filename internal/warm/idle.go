package warm

import "time"

// An environment is idle if in no piece of its class's window anything happened.
// A piece is a quarter of the window, so that work is noticed whenever it was,
// and at most 30 s.
const (
	pieces       = 4
	longestPiece = 30 * time.Second
)

// What is next to nothing, so that idle daemons keep nothing awake: of a piece,
// a hundredth of one CPU, and a packet a second in both directions together
// (keep-alives, clocks, a resolver).
const (
	idleCPUShare      = 100
	idlePacketSeconds = 1
)

// lingering is how long an agent that has handed over may carry open streams,
// of which its successor knows nothing.
const lingering = time.Minute

// piece is how often an environment with this window is looked at.
func piece(window time.Duration) time.Duration { return min(window/pieces, longestPiece) }

// usage is what an environment has used until a moment.
type usage struct {
	at      time.Duration // CLOCK_BOOTTIME
	cpu     time.Duration
	packets uint64
	users   int           // processes, files and ports that callers have open
	used    time.Duration // when the last caller came or went; 0 before there was one
}

// idleness is what is known of one environment's quiet.
type idleness struct {
	last  usage
	since time.Duration // nothing has happened since
}

// newIdleness begins to watch. One that this agent has not claimed itself may be
// in use through the agent before it.
func newIdleness(u usage, takenBack bool) *idleness {
	w := &idleness{last: u, since: u.at}
	if takenBack {
		w.since += lingering
	}
	return w
}

// note takes a further look and says for how long nothing has happened.
func (w *idleness) note(u usage) (quiet time.Duration) {
	past := u.at - w.last.at
	cpu, packets := u.cpu-w.last.cpu, u.packets-w.last.packets
	switch {
	case u.users > 0 || u.used > w.last.at,
		u.cpu < w.last.cpu || u.packets < w.last.packets, // counted anew: nothing is known
		cpu > past/idleCPUShare,
		packets > uint64(max(past, 0)/(idlePacketSeconds*time.Second)):
		w.since = max(w.since, u.at)
	}
	w.last = u
	return u.at - w.since
}
