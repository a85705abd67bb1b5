package detect

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"hearth/internal/detect/flow"
	"hearth/internal/detect/rules"
	"hearth/internal/env"
)

// respondWithin bounds one call of the Responder.
const respondWithin = 5 * time.Second

// connectKey carries the destination of a connect; the local side is unknown.
func connectKey(b *bound, c *rules.Connect) *flow.Key {
	addr, err := netip.ParseAddr(c.RemoteAddr)
	if err != nil {
		return nil
	}
	return &flow.Key{NetID: b.NetID, Protocol: flow.TCP, Remote: netip.AddrPortFrom(addr, uint16(c.RemotePort))}
}

// answer makes a detection of a finding and does what the class says.
func (e *Engine) answer(ctx context.Context, f finding) {
	latency := e.mono() - f.at
	foreign := e.attribute(&f)
	d := env.Detection{
		Time: time.Now(), Rule: f.rule, Severity: f.severity,
		Slot: f.subject.Slot, Environment: e.subjects.environment(f.subject), Class: f.subject.Class,
		PID: f.pid, Command: f.command, Detail: f.detail,
		Response: choose(f.subject.Policy, f.severity, f.ceiling),
		Latency:  max(latency, 0),
	}
	if f.key != nil {
		d.Destination = f.key.Remote
	}
	if foreign != "" {
		e.answerMismatch(ctx, f, foreign)
		d.Response = weaker(d.Response, env.ResponseAlert)
		d.ResponseError = "no response on a guess: " + foreign
	}
	failed := e.respond(ctx, &d)
	k := &kept{detection: d}
	k.count.Store(1)
	e.desk.settle(d.Slot, d.Rule, k, failed, e.mono())
	e.publish(k)
}

func weaker(a, b env.Response) env.Response {
	if strength(a) > strength(b) {
		return b
	}
	return a
}

// attribute names the process of a flow's finding. It returns why the process
// cannot be the slot's, if so; then it stays unnamed.
func (e *Engine) attribute(f *finding) (foreign string) {
	if f.pid != 0 || f.key == nil || f.key.Protocol != flow.TCP || !f.key.Local.IsValid() {
		return ""
	}
	owners := e.owners(f.subject, *f.key)
	for _, o := range owners {
		if o.CgroupID == f.subject.CgroupID {
			f.pid, f.command = o.PID, o.Command
			return ""
		}
	}
	if len(owners) == 0 {
		e.metrics.drops.WithLabelValues("owner", "unknown").Inc()
		return ""
	}
	o := owners[0]
	if b := e.subjects.cgroup(o.CgroupID); b != nil {
		return fmt.Sprintf("the flow is slot %s's, its process %d (%q) is slot %s's", f.subject.Slot, o.PID, o.Command, b.Slot)
	}
	return fmt.Sprintf("the flow is slot %s's, its process %d (%q) is in no slot", f.subject.Slot, o.PID, o.Command)
}

// owners looks where the connect was noted, then among the open files. A note
// that names another slot proves nothing by itself: an environment can make a
// network namespace with a neighbour's address in it and connect there. If the
// slot has the socket open, it is the slot's.
func (e *Engine) owners(b *bound, k flow.Key) []Owner {
	noted, ok := e.kernel.owner(k)
	if ok && noted.CgroupID == b.CgroupID {
		return []Owner{noted}
	}
	holders, err := e.kernel.holders(k)
	if err != nil {
		e.log.Debug("open files not walked", "error", err)
	}
	// A note of a slot that is gone is of an earlier use of the address.
	if ok && e.subjects.cgroup(noted.CgroupID) != nil {
		holders = append(holders, noted)
	}
	return holders
}

// answerMismatch makes a detection of its own of the mismatch, at once.
func (e *Engine) answerMismatch(ctx context.Context, f finding, why string) {
	if !e.desk.receive(f.subject.Slot, ruleMismatch, e.mono()) {
		e.metrics.repeats.WithLabelValues(ruleMismatch).Inc()
		return
	}
	e.answer(ctx, finding{
		subject: f.subject, rule: ruleMismatch, severity: env.SeverityCritical, ceiling: env.ResponseAlert,
		detail: why, at: f.at,
		// The destination only: the owner is not looked for again.
		key: &flow.Key{NetID: f.key.NetID, Protocol: f.key.Protocol, Remote: f.key.Remote},
	})
}

// respond carries out d's response and writes the outcome into d.
func (e *Engine) respond(ctx context.Context, d *env.Detection) (failed bool) {
	if d.Response != env.ResponseFreeze {
		e.metrics.responses.WithLabelValues(string(d.Response), "done").Inc()
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), respondWithin)
	defer cancel()
	if err := e.cfg.Respond(ctx, *d); err != nil {
		e.metrics.responses.WithLabelValues(string(d.Response), "failed").Inc()
		d.Response, d.ResponseError = env.ResponseAlert, err.Error()
		return true
	}
	e.metrics.responses.WithLabelValues(string(d.Response), "done").Inc()
	return false
}

// publish tells everybody who listens.
func (e *Engine) publish(k *kept) {
	d := k.value()
	e.metrics.detections.WithLabelValues(d.Rule, string(d.Severity), d.Class).Inc()
	e.metrics.latency.Observe(d.Latency.Seconds())
	e.recent.add(k)
	e.writeLine(d)
	if d.Response == env.ResponseRecord {
		return
	}
	e.log.Warn("detection", "rule", d.Rule, "severity", d.Severity, "slot", d.Slot,
		"environment", d.Environment, "class", d.Class, "pid", d.PID, "destination", d.Destination,
		"response", d.Response, "response_error", d.ResponseError, "latency", d.Latency)
}

func (e *Engine) writeLine(d env.Detection) {
	if e.cfg.Events == nil {
		return
	}
	line, err := json.Marshal(d)
	if err == nil {
		e.events.Lock()
		_, err = e.cfg.Events.Write(append(line, '\n'))
		e.events.Unlock()
	}
	if err != nil {
		e.metrics.drops.WithLabelValues("detection", "event_line").Inc()
		e.log.Error("event line not written", "error", err)
	}
}
