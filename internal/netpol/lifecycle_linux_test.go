package netpol

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

// probe sends a datagram every millisecond until stopped, and counts.
func (g *guest) probe(t testing.TB, to string) (stop func() uint64) {
	t.Helper()
	var c net.Conn
	g.Do(t, func() (err error) { c, err = net.Dial("udp4", to); return err })
	var sent atomic.Uint64
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer c.Close()
		for {
			select {
			case <-quit:
				return
			case <-time.After(time.Millisecond):
				_, _ = c.Write([]byte("probe"))
				sent.Add(1)
			}
		}
	}()
	return func() uint64 { close(quit); <-done; return sent.Load() }
}

func TestKernelIslandSurvivesARestartWithoutAGap(t *testing.T) {
	for _, kind := range []string{attachTCX, attachClsact} {
		t.Run(kind, func(t *testing.T) {
			kerneltest.Require(t, kerneltest.BPF(), kerneltest.UserNS())
			if kind == attachTCX {
				kerneltest.Require(t, kerneltest.TCX())
			}
			kerneltest.NoLeaks(t)
			w := world(t)
			cfg := testConfig(t)
			cfg.ForceClsact = kind == attachClsact
			s := openSite(t, cfg, w)
			s.echoWorld(t, "7")
			g := s.guest(t)
			g.unlock(t, internet, nil)
			if rec := g.Record(); rec.Attach != kind {
				t.Fatalf("attached by %s", rec.Attach)
			}
			b, err := json.Marshal(g.Record())
			if err != nil {
				t.Fatal(err)
			}
			stop := g.probe(t, "10.1.2.3:7")
			var second *Manager
			for range 5 {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond) // nobody is there
				if second, err = Open(cfg, quiet()); err != nil {
					t.Fatal(err)
				}
				var rec IslandRecord
				if err := json.Unmarshal(b, &rec); err != nil {
					t.Fatal(err)
				}
				if err := second.Adopt(g.slot, rec); err != nil {
					t.Fatal(err)
				}
				s.Manager, g.m = second, second
			}
			if err := second.Sweep(t.Context(), func(s env.SlotID) bool { return s == g.slot }); err != nil {
				t.Fatal(err)
			}
			sent := stop()
			c := g.counters(t)
			if c.Allowed != 0 || c.Drops[env.ReasonPrivate] != sent || sent < 50 {
				t.Errorf("%d forbidden probes: %d passed, refused %v", sent, c.Allowed, c.Drops)
			}
			if !g.answered("8.8.8.8:7") {
				t.Error("after the restarts the internet does not answer")
			}
			next := s.guest(t)
			if next.NetID <= g.NetID || next.Address == g.Address {
				t.Errorf("island %d at %s was given out again: %d at %s", g.NetID, g.Address, next.NetID, next.Address)
			}
		})
	}
}

// The child of TestKernelIslandSurvivesKill9: makes an island and waits to be
// killed.
func TestKernelKillMeHelper(t *testing.T) {
	if os.Getenv("HEARTH_KILL_ME") == "" {
		return // not a test by itself
	}
	m, err := Open(testConfig(t), quiet())
	if err != nil {
		t.Fatal(err)
	}
	slot := env.SlotID(os.Getenv("HEARTH_KILL_ME"))
	is, err := m.connected(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unlock(slot, internet, nil); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(struct {
		Rec IslandRecord
		FD  uintptr
	}{is.Record(), is.NetNSFile().Fd()}); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestKernelIslandSurvivesKill9(t *testing.T) {
	kerneltest.Require(t, kerneltest.BPF(), kerneltest.UserNS())
	kerneltest.NoLeaks(t)
	w := world(t)
	slot := env.NewSlotID()
	child := exec.Command("/proc/self/exe", "-test.run=^TestKernelKillMeHelper$")
	child.Env = append(os.Environ(), "HEARTH_KILL_ME="+string(slot))
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// The namespaces were the parent's already: Main does not enter others.
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var made struct {
		Rec IslandRecord
		FD  uintptr
	}
	if err := json.NewDecoder(out).Decode(&made); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/" + itoa(child.Process.Pid) + "/fd/" + itoa(int(made.FD)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside := kerneltest.FromFile(t, f)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	g := &guest{NS: inside, slot: slot}
	g.send(t, 5, "10.1.2.3:7") // nobody is there
	s := openSite(t, testConfig(t), w)
	m := s.Manager
	g.m = m
	s.echoWorld(t, "7")
	if err := m.Adopt(slot, made.Rec); err != nil {
		t.Fatal(err)
	}
	if c := g.counters(t); c.Drops[env.ReasonPrivate] != 5 || c.Allowed != 0 {
		t.Errorf("while nobody was there: %+v", c)
	}
	if !g.answered("8.8.8.8:7") {
		t.Error("adopted, yet the internet does not answer")
	}
}

func TestKernelSweepRemovesWhatNobodyKeeps(t *testing.T) {
	s := newSite(t, nil)
	lost, kept := s.guest(t), s.guest(t)
	for _, g := range []*guest{lost, kept} {
		g.unlock(t, internet, nil)
		if err := g.ReleaseHolder(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.Manager, err = Open(s.cfg, quiet()); err != nil {
		t.Fatal(err)
	}
	m := s.Manager
	if err := m.Adopt(kept.slot, kept.Record()); err != nil {
		t.Fatal(err)
	}
	if err := m.Sweep(t.Context(), func(s env.SlotID) bool { return s == kept.slot }); err != nil {
		t.Fatal(err)
	}
	slots, err := m.present()
	if err != nil || len(slots) != 1 || !slots[kept.slot] {
		t.Errorf("present = %v, %v; want the kept slot alone", slots, err)
	}
	records, err := m.records()
	if err != nil || len(records) != 1 {
		t.Errorf("records = %v, %v; want one", records, err)
	}
	for range 2 { // idempotent
		if err := m.Destroy(t.Context(), lost.slot); err != nil {
			t.Error(err)
		}
	}
}

// The record of an island's making says locked for ever; the kernel knows that
// it was opened, and open flows must not notice the restart.
func TestKernelAdoptWithoutPoliciesKeepsWhatTheKernelHas(t *testing.T) {
	s := newSite(t, nil)
	s.echoWorld(t, "7")
	open, locked := s.guest(t), s.guest(t)
	first := open.Record()
	open.unlock(t, internet, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.Manager, err = Open(s.cfg, quiet()); err != nil {
		t.Fatal(err)
	}
	open.m, locked.m = s.Manager, s.Manager
	if err := errors.Join(s.Adopt(open.slot, first), s.Adopt(locked.slot, locked.Record())); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context(), func(env.SlotID) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if !open.answered("8.8.8.8:7") {
		t.Error("the open island was shut by the restart")
	}
	open.refusedBy(t, map[env.Reason]uint64{env.ReasonPrivate: 1}, func() { open.send(t, 1, "10.1.2.3:7") })
	locked.refusedBy(t, map[env.Reason]uint64{env.ReasonLocked: 1}, func() { locked.send(t, 1, "8.8.8.8:7") })
}

func TestKernelAdoptRefusesARecordThatTheKernelDoesNotKnow(t *testing.T) {
	s := newSite(t, nil)
	g := s.guest(t)
	good := g.Record()
	for name, edit := range map[string]func(*IslandRecord){
		"another link":    func(r *IslandRecord) { r.IfIndex = 1 },
		"another net id":  func(r *IslandRecord) { r.NetID++ },
		"another address": func(r *IslandRecord) { r.Address = r.Address.Next() },
		"another name":    func(r *IslandRecord) { r.HostLink = "lo" },
	} {
		rec := good
		edit(&rec)
		if err := s.Adopt(g.slot, rec); !errors.Is(err, env.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

// A slot that is given up before it has a container has namespaces and no link.
func TestKernelAnIslandWithoutLinkIsShutAndGoesWhole(t *testing.T) {
	s := newSite(t, nil)
	slot := env.NewSlotID()
	is, err := s.Create(t.Context(), slot, testIDs)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Lock(slot); err != nil {
		t.Errorf("lock: %v", err)
	}
	if err := s.Unlock(slot, internet, nil); !errors.Is(err, env.ErrState) {
		t.Errorf("unlock: %v, want ErrState", err)
	}
	if err := is.ReleaseHolder(); err != nil {
		t.Error(err)
	}
	if err := s.Connect(t.Context(), slot); !errors.Is(err, env.ErrState) {
		t.Errorf("connect without namespaces: %v, want ErrState", err)
	}
	if err := s.Destroy(t.Context(), slot); err != nil {
		t.Error(err)
	}
	if slots, err := s.present(); err != nil || len(slots) != 0 {
		t.Errorf("left: %v, %v", slots, err)
	}
	if err := s.Connect(t.Context(), slot); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("connect what is gone: %v, want ErrNotFound", err)
	}
}

func TestKernelASecondConnectLeavesTheIslandAsItIs(t *testing.T) {
	s := newSite(t, nil)
	g := s.guest(t)
	if err := s.Connect(t.Context(), g.slot); !errors.Is(err, env.ErrState) {
		t.Errorf("connect again: %v, want ErrState", err)
	}
	if slots, err := s.present(); err != nil || len(slots) != 1 {
		t.Errorf("islands: %v, %v, want the one", slots, err)
	}
	g.unlock(t, internet, nil)
}

func TestKernelFullMapsRefuseTheNewcomerOnly(t *testing.T) {
	s := newSite(t, func(c *Config) { c.MaxIslands = 1; c.FlowQuota = 4; c.NewFlowRate = 1000 })
	g := s.guest(t)
	g.unlock(t, internet, nil)
	if _, err := s.connected(t.Context(), env.NewSlotID()); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("a second island: %v, want ErrExhausted", err)
	}
	if slots, _ := s.present(); len(slots) != 1 {
		t.Errorf("the refused island left %v", slots)
	}
	g.refusedBy(t, map[env.Reason]uint64{env.ReasonQuota: 2}, func() {
		for range 6 {
			g.send(t, 1, "8.8.8.8:9")
		}
	})
	if c := g.counters(t); c.FlowsMade != 4 {
		t.Errorf("%d flows were made, want the quota of 4", c.FlowsMade)
	}
	if flows, err := s.Flows(g.slot); err != nil || len(flows) != 4 || flows[0].Remote.String() != "8.8.8.8:9" {
		t.Errorf("flows = %v, %v", flows, err)
	}
}

func TestKernelPolicyEditHoldsForOpenFlowsAtOnce(t *testing.T) {
	s := newSite(t, nil)
	s.echoWorld(t, "7")
	g := s.guest(t)
	g.unlock(t, internet, nil)
	var c net.Conn
	g.Do(t, func() (err error) { c, err = net.Dial("udp4", "8.8.8.8:7"); return err })
	defer c.Close()
	talk := func() bool {
		_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = c.Write([]byte("hello"))
		_, err := c.Read(make([]byte, 8))
		return err == nil
	}
	if !talk() {
		t.Fatal("8.8.8.8:7 does not answer")
	}
	deny := env.EgressPolicy{Mode: env.EgressInternet, Deny: []env.EgressRule{{CIDR: mustPrefix("8.8.8.0/24")}}}
	if err := s.SetPolicy(g.slot, internet, &deny); err != nil {
		t.Fatal(err)
	}
	g.refusedBy(t, map[env.Reason]uint64{env.ReasonPolicy: 1}, func() {
		if talk() {
			t.Error("the open flow went on")
		}
	})
	if err := s.SetPolicy(g.slot, internet, nil); err != nil {
		t.Fatal(err)
	}
	if !talk() {
		t.Error("allowed again, yet the flow is dead")
	}
}

func TestKernelOpenForTestNeedsTheUnsafeSetting(t *testing.T) {
	s := newSite(t, func(c *Config) { c.UnsafeAllowOpen = false })
	g := s.guest(t)
	if err := s.OpenForTest(g.slot); !errors.Is(err, env.ErrDenied) {
		t.Errorf("OpenForTest = %v, want ErrDenied", err)
	}
	// Even a record that says so opens nothing.
	is, _ := s.island(g.slot)
	is.mu.Lock()
	err := s.write(is, 2, nil, nil)
	is.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	g.refusedBy(t, map[env.Reason]uint64{env.ReasonLocked: 1}, func() { g.send(t, 1, "8.8.8.8:7") })
}
