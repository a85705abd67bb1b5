package warm

import "time"

// stopwatch splits a claim's time into phases.
type stopwatch struct {
	start, last time.Time
	laps        []PhaseTime
}

func newStopwatch() *stopwatch {
	now := time.Now()
	return &stopwatch{start: now, last: now, laps: make([]PhaseTime, 0, 8)}
}

func (w *stopwatch) lap(name string) {
	now := time.Now()
	w.laps = append(w.laps, PhaseTime{Name: name, Took: now.Sub(w.last)})
	w.last = now
}

// total is the time from the start to the last lap.
func (w *stopwatch) total() time.Duration { return w.last.Sub(w.start) }
