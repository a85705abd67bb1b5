package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

const mebibyte = 1 << 20

// limitsInside are CPU quota, burst and memory as programs inside read them, in
// microseconds of 100,000 and in MiB.
func (a *agent) limitsInside(t *testing.T, c stage.Claimed) string {
	t.Helper()
	out, err := a.Hearthctl.Sh(c, `cd /sys/fs/cgroup
if [ -e memory.max ]; then
  echo $(cut -d' ' -f1 cpu.max) $(cat cpu.max.burst) $(($(cat memory.max)/1048576))
else
  echo $(cat cpu/cpu.cfs_quota_us) $(cat cpu/cpu.cfs_burst_us) $(($(cat memory/memory.limit_in_bytes)/1048576))
fi`)
	ok(t, err)
	return strings.TrimSpace(out)
}

// wantLimits compares what programs inside, the API and the node's books say.
func (a *agent) wantLimits(t *testing.T, c stage.Claimed, cpu, burst, memory uint64) {
	t.Helper()
	if got, want := a.limitsInside(t, c), fmt.Sprint(cpu*100, " ", burst*100, " ", memory/mebibyte); got != want {
		t.Errorf("limits inside are %q, want %q", got, want)
	}
	r := a.get(t, c.ID()).GetResources()
	if r.GetCpuMillis() != cpu || r.GetCpuBurstMillis() != burst || r.GetMemoryBytes() != memory {
		t.Errorf("resources = %v", r)
	}
}

// hog has a program inside use so much memory, and says whether it lived.
func (a *agent) hog(t *testing.T, c stage.Claimed, mib int) bool {
	t.Helper()
	// A line without an end is kept whole.
	out, stderr, code := a.Hearthctl.Try("exec", c.ID(), "--", "sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tail -n 1 | wc -c", mib*mebibyte))
	if code != 0 {
		t.Fatalf("hog: exit %d: %s", code, stderr)
	}
	n, err := strconv.Atoi(strings.TrimSpace(out))
	ok(t, err)
	return n >= mib*mebibyte
}

// throttled counts the periods in which the slot's CPU limit held it back.
func (a *agent) throttled(t *testing.T, c stage.Claimed) (n int) {
	t.Helper()
	for _, root := range a.CgroupRoots() {
		for _, leaf := range []string{"", "ctr"} {
			b, err := os.ReadFile(filepath.Join(root, c.Environment.Slot, leaf, "cpu.stat"))
			for line := range strings.Lines(string(b)) {
				if v, isIt := strings.CutPrefix(line, "nr_throttled "); isIt && err == nil {
					k, err := strconv.Atoi(strings.TrimSpace(v))
					ok(t, err)
					n += k
				}
			}
		}
	}
	return n
}

func (a *agent) resize(t *testing.T, c stage.Claimed, r *hearthv1.Resources) {
	t.Helper()
	_, err := a.Node.Resize(t.Context(), &hearthv1.NodeResizeRequest{Environment: c.ID(), Resources: r})
	ok(t, err)
}

func TestNodeResizedLimitsHoldInside(t *testing.T) {
	a := node(t)
	c := a.claim(t, "sized")
	defer a.release(t, c)
	a.wantLimits(t, c, 1000, 500, 64*mebibyte)
	if out, err := a.Hearthctl.Sh(c, "ulimit -Hn"); err != nil || strings.TrimSpace(out) != "512" {
		t.Errorf("open files: %q, %v", out, err)
	}
	if a.hog(t, c, 100) {
		t.Error("100 MiB fit into 64")
	}
	out, err := a.Hearthctl.Run("resize", c.ID(), "--memory", "192Mi", "--cpu", "1500m")
	ok(t, err)
	holds(t, out, c.ID()+" resized: cpu 1.5 (burst 0.5), memory 192.0MiB")
	a.wantLimits(t, c, 1500, 500, 192*mebibyte)
	if !a.hog(t, c, 100) {
		t.Error("100 MiB do not fit into 192")
	}
	a.resize(t, c, &hearthv1.Resources{MemoryBytes: 80 * mebibyte})
	if a.hog(t, c, 100) {
		t.Error("100 MiB fit into 80")
	}
	a.resize(t, c, &hearthv1.Resources{CpuMillis: 200})
	a.wantLimits(t, c, 200, 200, 80*mebibyte) // the burst shrinks with the CPU
	none := uint64(0)
	a.resize(t, c, &hearthv1.Resources{CpuBurstMillis: &none})
	before := a.throttled(t, c)
	begun := time.Now()
	_, err = a.Hearthctl.Sh(c, "timeout 2 sh -c 'while :; do :; done'; true")
	ok(t, err)
	periods := int(time.Since(begun) / (100 * time.Millisecond))
	if got := a.throttled(t, c) - before; got < 10 {
		t.Errorf("a spinner with a fifth of a CPU was held back in %d of about %d periods", got, periods)
	}
	a.alive(t, c)
}

func TestNodeResizeKeepsFrozenWhatIsFrozenAndHoldsOverARestart(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare", "--cpu", "500m", "--memory", "96Mi")
	defer a.release(t, c)
	a.wantLimits(t, c, 500, 0, 96*mebibyte)
	_, err := a.Hearthctl.Run("pause", c.ID())
	ok(t, err)
	a.resize(t, c, &hearthv1.Resources{CpuMillis: 700, MemoryBytes: 128 * mebibyte})
	if !a.frozen(t, c) {
		t.Error("resizing has thawed a paused environment")
	}
	_, err = a.Hearthctl.Run("resume", c.ID())
	ok(t, err)
	a.wantLimits(t, c, 700, 0, 128*mebibyte)
	a.kill(t)
	a.up(t)
	a.wantLimits(t, c, 700, 0, 128*mebibyte)
	inv, err := a.Node.Inventory(t.Context(), &hearthv1.InventoryRequest{})
	ok(t, err)
	if got, want := inv.GetRoom().GetMemoryReservedBytes(), uint64(128+warm*128)*mebibyte; got != want {
		t.Errorf("%d MiB are promised, want %d: %d warm slots and the environment", got/mebibyte, want/mebibyte, warm)
	}
	a.resize(t, c, &hearthv1.Resources{MemoryBytes: 64 * mebibyte})
	a.wantLimits(t, c, 700, 0, 64*mebibyte)
	a.alive(t, c)
}

func TestNodeAResizeThatCannotBeChangesNothing(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare", "--memory", "128Mi")
	defer a.release(t, c)
	// Memory that cannot be taken back.
	_, err := a.Hearthctl.Sh(c, "dd if=/dev/zero of=/dev/shm/held bs=1M count=60 2>/dev/null")
	ok(t, err)
	a.refused(t, 3, []string{c.ID(), "less than what is in use", "ask for more"}, "resize", c.ID(), "--memory", "32Mi", "--cpu", "100m")
	a.refused(t, 3, []string{c.ID(), "limits.memory"}, "resize", c.ID(), "--memory", "900Ti")
	a.refused(t, 2, []string{"--memory"}, "resize", c.ID(), "--memory", "plenty")
	_, err = a.Node.Resize(t.Context(), &hearthv1.NodeResizeRequest{Environment: c.ID()})
	fails(t, err, env.ErrInvalid, "no limit is named")
	a.wantLimits(t, c, 1000, 0, 128*mebibyte)
	_, err = a.Hearthctl.Sh(c, "rm /dev/shm/held")
	ok(t, err)
	a.resize(t, c, &hearthv1.Resources{MemoryBytes: 32 * mebibyte})
	a.wantLimits(t, c, 1000, 0, 32*mebibyte)
	a.alive(t, c)
}

func TestNodeWarmClaimHasLimitsOfItsOwn(t *testing.T) {
	a := node(t)
	resp, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{
		Class: "web", Variables: map[string]string{"GREETING": "small"}, Resources: &hearthv1.Resources{CpuMillis: 300, MemoryBytes: 96 * mebibyte},
	}})
	ok(t, err)
	c := claimed(resp)
	defer a.release(t, c)
	if !c.Environment.Warm {
		t.Error("the claim was cold")
	}
	phases := ""
	for _, p := range resp.GetPhases() {
		phases += fmt.Sprintf("%s %s, ", p.GetName(), p.GetTook().AsDuration())
	}
	t.Log("took", resp.GetTook().AsDuration(), "of it", phases)
	holds(t, phases, "limits ")
	a.wantLimits(t, c, 300, 0, 96*mebibyte)
	a.alive(t, c)
}

func TestNodeAClassThatAsksForWhatTheNodeLacksIsRefused(t *testing.T) {
	a := node(t)
	var lim syscall.Rlimit
	ok(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim))
	if lim.Max < 1<<20 {
		a.refused(t, 3, []string{"resources.openFiles of 1048576", fmt.Sprint(lim.Max), "LimitNOFILE"}, "claim", "--class", "greedy")
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); errors.Is(err, os.ErrNotExist) {
		a.refused(t, 3, []string{"resources.memoryHigh", "the memory controller in cgroup v2"}, "claim", "--class", "marked")
		return
	}
	c := a.claim(t, "marked")
	defer a.release(t, c)
	if out, err := a.Hearthctl.Sh(c, "cat /sys/fs/cgroup/memory.high"); err != nil || strings.TrimSpace(out) != fmt.Sprint(48*mebibyte) {
		t.Errorf("mark of memory: %q, %v", out, err)
	}
}
