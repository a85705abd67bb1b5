package bench

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
)

const (
	// baseVar names another build's nodeagent. It must understand this one's journal,
	// and this one its.
	baseVar = "HEARTH_BENCH_BASE"
	// turn is how many claims one build answers before it is the other's turn, of which
	// the first few, on a process that has just started, do not count.
	turn     = poolSize / 2
	starting = 4
)

// BenchmarkBuilds compares this tree's agent with another build's by warm claims on the
// node's socket. Both take turns on one stage: the hours of a machine differ by more
// than builds do, so that two runs one after the other say nothing. An operation is a
// turn of each.
func BenchmarkBuilds(b *testing.B) {
	base := os.Getenv(baseVar)
	if base == "" {
		b.Skipf("%s names no other nodeagent: make bench-builds BASE=PATH", baseVar)
	}
	host.limit(b, poolSize)
	b.Cleanup(func() {
		host.stage.Agent = ""
		if err := host.stage.Limit(poolSize); err != nil {
			b.Error(err)
		}
	})
	builds := []*build{{name: "base", agent: base}, {name: "this"}}
	for round := 0; b.Loop(); round++ {
		var ids []string
		for i := range builds {
			ids = append(ids, builds[(i+round)%len(builds)].claim(b)...)
		}
		host.settle(b, ids...)
	}
	b.ReportMetric(0, "ns/op")
	for _, v := range builds {
		for _, p := range []int{50, 99} {
			b.ReportMetric(ms(v.seen.percentile(p)), fmt.Sprintf("%s-p%d-ms", v.name, p))
			b.ReportMetric(ms(v.node.percentile(p)), fmt.Sprintf("%s-node-p%d-ms", v.name, p))
		}
	}
	b.ReportMetric(float64(builds[1].seen.percentile(50))/float64(builds[0].seen.percentile(50)), "p50-ratio")
	b.ReportMetric(float64(len(builds[1].seen)), "claims")
}

// build is one of those that are compared.
type build struct {
	name, agent string // agent is "" for this tree's
	seen, node  sample
}

// claim is one turn. It returns what lives then.
func (v *build) claim(b *testing.B) (ids []string) {
	b.Helper()
	host.stage.Agent = v.agent
	if err := host.stage.Limit(poolSize); err != nil { // starts the agent anew
		b.Fatal(err)
	}
	time.Sleep(heard)
	for i := range turn {
		req := &hearthv1.NodeClaimRequest{
			IdempotencyKey: fmt.Sprintf("%s-%d-%d", v.name, i, time.Now().UnixNano()), Spec: spec(0), WarmOnly: true,
		}
		begun := time.Now()
		resp, err := host.node.Claim(context.Background(), req)
		took := time.Since(begun)
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, resp.GetEnvironment().GetId())
		if i >= starting {
			v.seen, v.node = append(v.seen, took), append(v.node, resp.GetTook().AsDuration())
		}
	}
	return ids
}
