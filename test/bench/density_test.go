package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
)

const (
	density     = 200
	densityRest = 30 * time.Second // over which the agent's processor time is taken
)

// BenchmarkDensity200 has 200 idle environments on the node, and says what they cost
// beside what they do: MB/slot is the proportional memory (PSS) of each one's init
// and of its share of a shim, and what the agent has grown since it had a hundred
// ready slots, and agent-MB the agent's own. An operation is nothing.
func BenchmarkDensity200(b *testing.B) {
	host.limit(b, density)
	agent, err := host.stage.PID("agent")
	if err != nil {
		b.Fatal(err)
	}
	alone := pss(b, agent)
	var ids []string
	var inits []int
	for len(ids) < density {
		host.settle(b)
		for range poolSize {
			resp, err := host.node.Claim(context.Background(), &hearthv1.NodeClaimRequest{Spec: spec(0), WarmOnly: true})
			if err != nil {
				b.Fatal(err)
			}
			ids, inits = append(ids, resp.GetEnvironment().GetId()), append(inits, int(resp.GetEnvironment().GetPid()))
		}
	}
	time.Sleep(densityRest / 2)
	before := processorTime(b, agent)
	time.Sleep(densityRest)
	used := processorTime(b, agent) - before
	shims := shimsOf(b, inits)
	var init, shim int64
	for _, pid := range inits {
		init += pss(b, pid)
	}
	for pid := range shims {
		shim += pss(b, pid)
	}
	now := pss(b, agent)
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(mega(init+shim+max(now-alone, 0))/density, "MB/slot")
	b.ReportMetric(mega(now), "agent-MB")
	b.ReportMetric(100*used.Seconds()/densityRest.Seconds(), "agent-cpu-%")
	fmt.Fprintf(os.Stderr, "bench: of a slot: init %.2f MB, shims %.2f MB (%d shims), agent %.2f MB\n",
		mega(init)/density, mega(shim)/density, len(shims), mega(max(now-alone, 0))/density)
	host.settle(b, ids...)
}

func mega(bytes int64) float64 { return float64(bytes) / 1e6 }

// pss is a process's proportional set size in bytes: what it shares is divided
// among those that share it (Documentation/filesystems/proc.rst).
func pss(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == "Pss:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatalf("no Pss of process %d", pid)
	return 0
}

// stat are the fields of a process's stat behind its name, from the state on.
func stat(b *testing.B, pid int) []string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}

// processorTime is what a process has used, to a hundredth of a second (USER_HZ).
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	fields := stat(b, pid)
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// shimsOf are the processes that keep containers with these inits: their parents.
func shimsOf(b *testing.B, inits []int) map[int]bool {
	b.Helper()
	shims := map[int]bool{}
	for _, pid := range inits {
		parent, err := strconv.Atoi(stat(b, pid)[1])
		if err != nil {
			b.Fatal(err)
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", parent)); err != nil || filepath.Base(exe) != "containerd-shim-runc-v2" {
			b.Fatalf("the parent of init %d is %s: %v", pid, exe, err)
		}
		shims[parent] = true
	}
	return shims
}
