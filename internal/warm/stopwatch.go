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

// skip is a lap that took as long as was measured elsewhere; none for 0.
func (w *stopwatch) skip(name string, took time.Duration) {
	if took > 0 {
		w.laps = append(w.laps, PhaseTime{Name: name, Took: took})
		w.last = w.last.Add(took)
	}
}

// total is the time from the start to the last lap.
func (w *stopwatch) total() time.Duration { return w.last.Sub(w.start) }
