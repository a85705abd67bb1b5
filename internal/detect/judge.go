package detect

import (
	"bytes"
	"fmt"
	"time"

	"hearth/internal/detect/flow"
	"hearth/internal/detect/rules"
	"hearth/internal/env"
)

// onPayload judges one record of the island's ring.
func (e *Engine) onPayload(record []byte) {
	e.metrics.events.WithLabelValues("payload").Inc()
	seg, err := decodePayload(record)
	if err != nil {
		e.metrics.drops.WithLabelValues("payload", "malformed").Inc()
		return
	}
	b := e.subjects.net(seg.Key.NetID)
	if b == nil { // not bound yet, or gone already
		e.metrics.drops.WithLabelValues("payload", "unbound").Inc()
		return
	}
	e.forgetIdle(seg.At)
	p, grown := e.flows.Add(seg)
	e.metrics.flows.Set(float64(e.flows.Len()))
	e.evicted.Store(e.flows.Evicted())
	if p.Conflict && !p.Seen.Conflict {
		p.Seen.Conflict = true
		e.reportConflict(b, p)
	}
	if grown && due(p, seg.Data) {
		e.judge(b, p)
	}
}

// forgetIdle looks for idle flows at most once a second, by the records' clock.
func (e *Engine) forgetIdle(now time.Duration) {
	if now-e.expired < time.Second {
		return
	}
	e.expired = now
	e.flows.Expire(now)
}

// alwaysJudged is how often the prefix of a stream is judged at any growth.
const alwaysJudged = 128

// due keeps a sender of single bytes from making a judgement of each for ever:
// after many, only the end of an object makes one, or every sixteenth segment. A prefix that is full is the last: it always is.
func due(p flow.Prefix, added []byte) bool {
	return p.Seen.Times < alwaysJudged || p.Full || p.Segments%16 == 0 ||
		bytes.IndexByte(added, '}') >= 0
}

func (e *Engine) judge(b *bound, p flow.Prefix) {
	for _, m := range e.set.Load().Judge(p) {
		f := found(b, m, p.First)
		f.key = &p.Key
		e.report(f)
	}
}

func (e *Engine) reportConflict(b *bound, p flow.Prefix) {
	e.report(finding{
		subject: b, rule: ruleConflict, severity: env.SeverityMedium, ceiling: env.ResponseAlert,
		detail: fmt.Sprintf("%s: bytes sent twice differ within the first %d", p.Direction, flow.Cap),
		key:    &p.Key, at: p.At,
	})
}

// found makes a finding of a match.
func found(b *bound, m rules.Match, at time.Duration) finding {
	return finding{
		subject: b, rule: m.Rule.Name(), severity: m.Rule.Severity(), ceiling: m.Rule.Ceiling(),
		detail: m.Detail, at: at,
	}
}

// onExec judges one record of the execs' ring.
func (e *Engine) onExec(record []byte) {
	s, ev, err := decodeExec(record)
	if b := e.subjectOf("exec", s, err); b != nil {
		e.judgeProcess(b, ev, s.at, ev.PID, ev.Comm)
	}
}

// onConnect judges one record of the connects' ring.
func (e *Engine) onConnect(record []byte) {
	s, ev, err := decodeConnect(record)
	if b := e.subjectOf("connect", s, err); b != nil {
		e.judgeProcess(b, ev, s.at, ev.PID, ev.Comm)
	}
}

// subjectOf counts a sensor's record and gives its slot, or nil.
func (e *Engine) subjectOf(sensor string, s sensed, err error) *bound {
	e.metrics.events.WithLabelValues(sensor).Inc()
	if err != nil {
		e.metrics.drops.WithLabelValues(sensor, "malformed").Inc()
		return nil
	}
	b := e.subjects.cgroup(s.cgroup)
	if b == nil {
		e.metrics.drops.WithLabelValues(sensor, "unbound").Inc()
	}
	return b
}

func (e *Engine) judgeProcess(b *bound, ev rules.Event, at time.Duration, pid int, command string) {
	for _, m := range e.set.Load().Match(ev, nil) {
		f := found(b, m, at)
		f.pid, f.command = pid, command
		if c, ok := ev.(*rules.Connect); ok {
			f.key = connectKey(b, c)
		}
		e.report(f)
	}
}
