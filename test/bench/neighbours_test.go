package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// noise is what one environment does to its neighbours, all at once: as many
// processes as it may have, all its memory again and again, the disk, the processor.
var noise = []string{
	`bomb() { bomb | bomb & }; while true; do bomb; sleep 0.1; done`,
	`while true; do head -c 1000000000 /dev/zero | tail -c 1000000000 >/dev/null; done`,
	`while true; do dd if=/dev/zero of=/workspace/fill bs=1M count=256; rm -f /workspace/fill; done`,
	`while true; do :; done`,
}

// BenchmarkNeighbours claims and runs a command, quiet and then beside an
// environment that does all of noise. The ratios are noisy by quiet.
func BenchmarkNeighbours(b *testing.B) {
	host.limit(b, poolSize+1) // the noisy one's place
	quietClaims, quietExecs := neighbours(b, "quiet")
	stop := makeNoise(b)
	time.Sleep(time.Second) // every script is at it
	agent, err := host.stage.PID("agent")
	if err != nil {
		b.Fatal(err)
	}
	begun, before := time.Now(), processorTime(b, agent)
	claims, execs := neighbours(b, "noisy")
	used := processorTime(b, agent) - before
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ms(quietClaims.percentile(99)), "quiet-claim-p99-ms")
	b.ReportMetric(ms(claims.percentile(99)), "claim-p99-ms")
	b.ReportMetric(ratio(claims, quietClaims), "claim-p99-x")
	b.ReportMetric(ms(quietExecs.percentile(99)), "quiet-exec-p99-ms")
	b.ReportMetric(ms(execs.percentile(99)), "exec-p99-ms")
	b.ReportMetric(ratio(execs, quietExecs), "exec-p99-x")
	b.ReportMetric(100*used.Seconds()/time.Since(begun).Seconds(), "agent-cpu-%")
	b.ReportMetric(mega(pss(b, agent)), "agent-MB")
	host.settle(b, stop())
}

func ratio(a, b sample) float64 { return float64(a.percentile(99)) / float64(b.percentile(99)) }

// neighbours claims b.N environments one after another on the node's socket, and
// runs a command in each.
func neighbours(b *testing.B, name string) (claims, execs sample) {
	b.Helper()
	g := &guest{}
	var ids []string
	defer func() {
		if b.Failed() {
			_ = host.release(ids)
		}
	}()
	for i := range b.N {
		word := fmt.Sprintf("%s-%s-%d-%d", b.Name(), name, i, time.Now().UnixNano())
		begun := time.Now()
		resp, err := host.node.Claim(context.Background(), &hearthv1.NodeClaimRequest{IdempotencyKey: word, Spec: spec(0), WarmOnly: true})
		if err != nil {
			b.Fatal(err)
		}
		took := time.Since(begun)
		begun = time.Now()
		if err := g.echo(&hearthv1.ClaimResponse{Environment: resp.GetEnvironment(), Access: resp.GetAccess()}, word); err != nil {
			b.Fatal(err)
		}
		if i > 0 { // the first opens the connections
			claims, execs = append(claims, took), append(execs, time.Since(begun))
		}
		if ids = append(ids, resp.GetEnvironment().GetId()); len(ids) == poolSize/2 {
			host.settle(b, ids...)
			ids = ids[:0]
		}
	}
	host.settle(b, ids...)
	return claims, execs
}

// makeNoise claims an environment that does all of noise until stop, which names it
// for its release.
func makeNoise(b *testing.B) (stop func() string) {
	b.Helper()
	var c stage.Claimed
	if err := host.stage.Hearthctl.Decode(&c, "claim", "--class", stage.ClassName); err != nil {
		b.Fatal(err)
	}
	var ends []func()
	for _, script := range noise {
		cmd := host.stage.Hearthctl.Command("exec", c.ID(), "--", "sh", "-c", script)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		ends = append(ends, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	return func() string {
		for _, end := range ends {
			end()
		}
		return c.ID()
	}
}
