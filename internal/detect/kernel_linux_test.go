package detect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

// rig is a running engine on the real kernel.
type rig struct {
	*Engine
	ring   *payloadRing
	events *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T, respond Responder, extraRules ...string) *rig {
	t.Helper()
	return newRigOf(t, budgetRate, respond, extraRules...)
}

// newRigOf has another budget of events a second than the product.
func newRigOf(t *testing.T, perSecond uint64, respond Responder, extraRules ...string) *rig {
	t.Helper()
	r := &rig{ring: newPayloadRing(t), events: &lockedBuffer{}}
	cfg := Config{Events: r.events, Respond: respond}
	if len(extraRules) > 0 {
		layer := fstest.MapFS{}
		for i := 0; i+1 < len(extraRules); i += 2 {
			layer[extraRules[i]] = &fstest.MapFile{Data: []byte(extraRules[i+1])}
		}
		cfg.Rules = append(cfg.Rules, layer)
	}
	e, err := open(cfg, r.ring.ring, perSecond, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("Open: %+v", err)
	}
	r.Engine = e
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := e.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

func requireKernel(t *testing.T) {
	t.Helper()
	kerneltest.Require(t, kerneltest.BPF())
	kerneltest.NoLeaks(t)
}

func noResponse(context.Context, env.Detection) error { return errors.New("no response was expected") }

func (r *rig) detection(t *testing.T, rule string) env.Detection {
	t.Helper()
	var found env.Detection
	eventually(t, "a detection by "+rule, func() bool {
		for _, d := range r.Recent(0) {
			if d.Rule == rule {
				found = d
				return true
			}
		}
		return false
	})
	return found
}

func TestKernelMinerIsNamedAndFrozen(t *testing.T) {
	requireKernel(t)
	cg := newSlotCgroup(t)
	slot, id := env.NewSlotID(), env.NewID()
	r := newRig(t, func(_ context.Context, d env.Detection) error {
		if d.Slot != slot {
			return errors.New("another slot")
		}
		return cg.freeze()
	})
	if err := r.Bind(Subject{Slot: slot, NetID: 7, CgroupID: cg.id, Class: "demo", Policy: freezing}); err != nil {
		t.Fatal(err)
	}
	r.Claimed(slot, id)
	c := start(t, cg, "postgres", "connect", "1")
	local, remote := c.addresses(t)

	r.ring.send(t, said(7, local, remote, `{"id":1,"method":"ping","params":[]}`+"\n"))
	other := said(7, local, remote, subscribe)
	other.ISN, other.Seq = 9000, 9000 // a connection of its own on the same ports
	r.ring.send(t, other)

	got := r.detection(t, "mining.stratum_v1")
	eventually(t, "frozen", cg.frozen)
	if got.Latency <= 0 || got.Latency > time.Second {
		t.Errorf("latency = %v", got.Latency)
	}
	t.Logf("latency %v", got.Latency)
	got.Time, got.Latency = time.Time{}, 0
	want := env.Detection{
		Rule: "mining.stratum_v1", Severity: env.SeverityCritical, Slot: slot, Environment: id, Class: "demo",
		PID: c.cmd.Process.Pid, Command: "postgres", Destination: remote,
		Detail:   `out "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n"`,
		Response: env.ResponseFreeze, Count: 1,
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }), cmpAddr); diff != "" {
		t.Errorf("detection (-want +got):\n%s", diff)
	}
	if n := len(r.Recent(0)); n != 1 {
		t.Errorf("%d detections, want 1: %+v", n, r.Recent(0))
	}
	eventually(t, "told", func() bool { return strings.HasSuffix(r.events.String(), "\n") })
	var line env.Detection
	if err := json.Unmarshal([]byte(r.events.String()), &line); err != nil || line.Environment != id {
		t.Errorf("event line %q: %v", r.events.String(), err)
	}
}

func TestKernelOwnerOfAnIPv4FlowInAnIPv6SocketIsNamed(t *testing.T) {
	requireKernel(t)
	cg := newSlotCgroup(t)
	r := newRig(t, noResponse)
	if err := r.Bind(Subject{Slot: "s-1", NetID: 7, CgroupID: cg.id}); err != nil {
		t.Fatal(err)
	}
	c := start(t, cg, "dual", "connect", "1", "dual")
	local, remote := c.addresses(t)
	o, ok := r.kernel.owner(said(7, local, remote, "").Key)
	if !ok || o.PID != c.cmd.Process.Pid || o.Command != "dual" || o.CgroupID != cg.id || o.NetID != 7 {
		t.Errorf("owner = %+v, %v; want pid %d", o, ok, c.cmd.Process.Pid)
	}
}

// An agent that starts again has not seen the connect.
func TestKernelOwnerIsFoundAmongOpenFilesAfterARestart(t *testing.T) {
	requireKernel(t)
	cg := newSlotCgroup(t)
	c := start(t, cg, "older", "connect", "1")
	local, remote := c.addresses(t)

	r := newRig(t, noResponse)
	if err := r.Bind(Subject{Slot: "s-1", NetID: 7, CgroupID: cg.id}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.ring.send(t, said(7, local, remote, subscribe))
	got := r.detection(t, "mining.stratum_v1")
	t.Logf("walk and all: %v", time.Since(began))
	if got.PID != c.cmd.Process.Pid || got.Command != "older" {
		t.Errorf("pid %d %q, want %d", got.PID, got.Command, c.cmd.Process.Pid)
	}
}

func TestKernelForeignProcessBehindAFlowIsAMismatchAndNoFreeze(t *testing.T) {
	requireKernel(t)
	victim, intruder := newSlotCgroup(t), newSlotCgroup(t)
	r := newRig(t, noResponse)
	for i, cg := range []*slotCgroup{victim, intruder} {
		s := Subject{Slot: env.SlotID([]string{"s-victim", "s-intruder"}[i]), NetID: env.NetID(7 + i), CgroupID: cg.id, Policy: freezing}
		if err := r.Bind(s); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, intruder, "intruder", "connect", "1")
	local, remote := c.addresses(t)
	r.ring.send(t, said(7, local, remote, subscribe)) // the victim's veth

	mismatch := r.detection(t, ruleMismatch)
	if mismatch.Slot != "s-victim" || mismatch.Response != env.ResponseAlert {
		t.Errorf("mismatch = %+v", mismatch)
	}
	d := r.detection(t, "mining.stratum_v1")
	if d.Response != env.ResponseAlert || d.PID != 0 || d.ResponseError == "" {
		t.Errorf("detection = %+v; want an alert that names no process and says why", d)
	}
	if victim.frozen() || intruder.frozen() {
		t.Error("a slot was frozen on a guess")
	}
}

const execRules = `version: 1
rules:
- name: test.renamed
  description: any exec of a file with this name
  severity: low
  event: exec
  condition: exec.path.endsWith("/short-lived") && exec.args.size() == 3
  detail: exec.comm + " " + exec.args[2]
`

const execFixtures = `version: 1
fixtures:
- {name: hit, exec: {path: /x/short-lived, args: [a, b, c]}, expect: [test.renamed]}
- {name: miss, exec: {path: /bin/true, args: [a, b, c]}, expect: []}
`

func TestKernelShortLivedProcessIsSeenAndOneOutsideIsNot(t *testing.T) {
	requireKernel(t)
	cg := newSlotCgroup(t)
	r := newRig(t, noResponse, "x.yaml", execRules, "x.fixtures.yaml", execFixtures)
	if err := r.Bind(Subject{Slot: "s-1", NetID: 7, CgroupID: cg.id}); err != nil {
		t.Fatal(err)
	}
	program := copyOfSelf(t, "short-lived")
	outside := start(t, nil, "outside", "execs", "5", program, "out", "side")
	if err := outside.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	inside := start(t, cg, "inside", "execs", "1", program, "in", "side of it")
	if err := inside.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	d := r.detection(t, "test.renamed")
	if d.Detail != "short-lived side of it" || d.Command != "short-lived" || d.PID == 0 || d.Count != 1 {
		t.Errorf("detection = %+v", d)
	}
	// Two execs: the child's own (its clone began in the cgroup) and the program's.
	c, err := r.kernel.counts(cg.id)
	if err != nil || c[sensorExec] != (fates{emitted: 2}) {
		t.Errorf("counts = %+v, %v", c, err)
	}
}

func TestKernelFloodLosesOnlyItsOwnEventsAndCountsThem(t *testing.T) {
	requireKernel(t)
	loud, quiet := newSlotCgroup(t), newSlotCgroup(t)
	// So small a budget that the slowest machine floods it.
	const perSecond, flood, calm = 20, 1000, 20
	r := newRigOf(t, perSecond, noResponse)
	for i, cg := range []*slotCgroup{loud, quiet} {
		s := Subject{Slot: env.SlotID([]string{"s-loud", "s-quiet"}[i]), NetID: env.NetID(7 + i), CgroupID: cg.id}
		if err := r.Bind(s); err != nil {
			t.Fatal(err)
		}
	}
	f := start(t, loud, "flooder", "connect", strconv.Itoa(flood))
	q := start(t, quiet, "calm", "connect", strconv.Itoa(calm))
	q.addresses(t)
	f.addresses(t)
	lc, err := r.kernel.counts(loud.id)
	if err != nil {
		t.Fatal(err)
	}
	qc, err := r.kernel.counts(quiet.id)
	if err != nil {
		t.Fatal(err)
	}
	l := lc[sensorConnect]
	t.Logf("flooder: %+v", l)
	if l.emitted+l.shed+l.lost != flood || l.shed == 0 || l.lost != 0 {
		t.Errorf("flooder's counts %+v do not add up to %d with some shed", l, flood)
	}
	if qc[sensorConnect] != (fates{emitted: calm}) {
		t.Errorf("the calm slot's counts = %+v, want %d emitted", qc[sensorConnect], calm)
	}
	if d := r.detection(t, ruleFlood); d.Slot != "s-loud" || d.Response != env.ResponseAlert {
		t.Errorf("flood detection = %+v", d)
	}
	eventually(t, "every emitted record read", func() bool {
		return counterValue(t, r.metrics.events.WithLabelValues("connect")) == float64(l.emitted+calm)
	})
}

func TestKernelSlotUnboundIsForgottenAndItsKeysCanBeBoundAgain(t *testing.T) {
	requireKernel(t)
	cg := newSlotCgroup(t)
	r := newRig(t, noResponse)
	first := Subject{Slot: "s-1", NetID: 7, CgroupID: cg.id}
	if err := r.Bind(first); err != nil {
		t.Fatal(err)
	}
	for _, again := range []Subject{
		{Slot: "s-1", NetID: 8, CgroupID: cg.id + 1},
		{Slot: "s-2", NetID: 7, CgroupID: cg.id + 1},
		{Slot: "s-2", NetID: 8, CgroupID: cg.id},
	} {
		if err := r.Bind(again); !errors.Is(err, env.ErrExists) {
			t.Errorf("Bind(%+v) = %v, want ErrExists", again, err)
		}
	}
	c := start(t, cg, "before", "connect", "3")
	local, remote := c.addresses(t)
	r.Unbind("s-1")
	r.Unbind("s-1")
	if _, err := r.kernel.counts(cg.id); err == nil {
		t.Error("the kernel still counts for the slot")
	}
	if got := r.budget.totals()[sensorConnect].emitted; got != 3 {
		t.Errorf("total after unbind = %d, want 3", got)
	}
	if err := r.Bind(Subject{Slot: "s-2", NetID: 8, CgroupID: cg.id}); err != nil {
		t.Fatalf("bind the cgroup again: %v", err)
	}
	r.ring.send(t, said(7, local, remote, subscribe)) // of the net that is gone
	eventually(t, "the stale record dropped", func() bool {
		return counterValue(t, r.metrics.drops.WithLabelValues("payload", "unbound")) == 1
	})
	r.ring.send(t, said(8, local, remote, subscribe))
	if d := r.detection(t, "mining.stratum_v1"); d.Slot != "s-2" || d.PID != c.cmd.Process.Pid {
		t.Errorf("detection = %+v, want slot s-2 and pid %d", d, c.cmd.Process.Pid)
	}
	if n := len(r.Recent(0)); n != 1 {
		t.Errorf("%d detections, want 1", n)
	}
}
