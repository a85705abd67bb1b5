package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
)

// BenchmarkClaimWarm is a claim on the node's socket, as its client sees it, one
// after another while nothing else works on the node. The policy is one that the node
// has seen before, as most are.
func BenchmarkClaimWarm(b *testing.B) {
	host.limit(b, poolSize)
	claimWarm(b, poolSize, 0, func(int) *hearthv1.ClaimSpec { return spec(0) })
}

// BenchmarkClaimWarmNewPolicy has a policy of its own in every claim, which is
// compiled and written into the kernel meanwhile.
func BenchmarkClaimWarmNewPolicy(b *testing.B) {
	host.limit(b, poolSize)
	claimWarm(b, poolSize, 0, func(i int) *hearthv1.ClaimSpec { return spec(i + 1) })
}

// BenchmarkClaimWarmIdle has a fifth of a second between two claims: processors
// sleep by then, and nothing of the last claim is in their caches.
func BenchmarkClaimWarmIdle(b *testing.B) {
	host.limit(b, poolSize)
	claimWarm(b, poolSize, idle, func(int) *hearthv1.ClaimSpec { return spec(0) })
}

// BenchmarkClaimWarmRefill has the node prepare slots all the time: it is claimed
// from faster than a slot is made.
func BenchmarkClaimWarmRefill(b *testing.B) {
	host.limit(b, refillSlots)
	claimWarm(b, poolSize/2, 20*time.Millisecond, func(int) *hearthv1.ClaimSpec { return spec(0) })
}

// idle is a pause after which everything is cold.
const idle = 200 * time.Millisecond

func claimWarm(b *testing.B, most int, pause time.Duration, spec func(int) *hearthv1.ClaimSpec) {
	b.Helper()
	var seen, node sample
	phases := map[string]sample{}
	var order []string
	host.rounds(b, most, func(i int) string {
		req := &hearthv1.NodeClaimRequest{
			IdempotencyKey: fmt.Sprintf("%s-%d-%d", b.Name(), i, time.Now().UnixNano()), Spec: spec(i), WarmOnly: true,
		}
		time.Sleep(pause)
		begun := time.Now()
		resp, err := host.node.Claim(context.Background(), req)
		took := time.Since(begun)
		if err != nil {
			b.Fatal(err)
		}
		seen, node = append(seen, took), append(node, resp.GetTook().AsDuration())
		for _, p := range resp.GetPhases() {
			if phases[p.GetName()] == nil {
				order = append(order, p.GetName())
			}
			phases[p.GetName()] = append(phases[p.GetName()], p.GetTook().AsDuration())
		}
		return resp.GetEnvironment().GetId()
	})
	seen.report(b)
	b.ReportMetric(ms(node.percentile(50)), "node-p50-ms")
	b.ReportMetric(ms(node.percentile(99)), "node-p99-ms")
	for _, name := range order {
		s := phases[name]
		fmt.Fprintf(os.Stderr, "bench: %s phase %s p50 %.3f ms p99 %.3f ms\n", b.Name(), name, ms(s.percentile(50)), ms(s.percentile(99)))
	}
}

// BenchmarkNodeCall is the floor of a claim's round trip: a call that asks for
// next to nothing, on the same connection, as long after the one before.
func BenchmarkNodeCall(b *testing.B) {
	var all sample
	for b.Loop() {
		b.StopTimer()
		time.Sleep(idle)
		b.StartTimer()
		begun := time.Now()
		_, err := host.node.List(context.Background(), &hearthv1.NodeListRequest{})
		all = append(all, time.Since(begun))
		if err != nil {
			b.Fatal(err)
		}
	}
	all.report(b)
}

// BenchmarkClaimFirstExec is a claim through the controller, by TLS and an API
// key, up to the first byte that a command in the environment prints.
func BenchmarkClaimFirstExec(b *testing.B) {
	host.limit(b, poolSize)
	var all, claims sample
	g := &guest{}
	host.rounds(b, poolSize, func(i int) string {
		f := g.firstExec(fmt.Sprintf("%s-%d", b.Name(), i))
		if f.err != nil {
			b.Fatal(f.err)
		}
		if i > 0 { // the first opens the connections, which a backend keeps
			all, claims = append(all, f.took), append(claims, f.claimed)
		}
		return f.id
	})
	all.report(b)
	b.ReportMetric(ms(claims.percentile(50)), "claim-p50-ms")
}

// BenchmarkClaimBurst100 is a hundred claims at once on a pool of a hundred, through
// the controller, each up to its first output. An operation is one of them. What
// agent, controller and client have used of the processors is told beside: where all
// of them are busy, a burst takes what its parts take.
func BenchmarkClaimBurst100(b *testing.B) {
	host.limit(b, poolSize)
	var all sample
	g := &guest{}
	first := g.firstExec(b.Name()) // opens the connections, which a backend keeps
	if first.err != nil {
		b.Fatal(first.err)
	}
	host.settle(b, first.id)
	used := map[string]time.Duration{}
	for round := 0; len(all) < b.N; round++ {
		var ids []string
		before := host.processorTimes(b)
		burst := g.burst(fmt.Sprintf("%s-%d", b.Name(), round))
		for who, now := range host.processorTimes(b) {
			used[who] += now - before[who]
		}
		var failed error
		for _, f := range burst {
			all, failed = append(all, f.took), errors.Join(failed, f.err)
			if f.id != "" {
				ids = append(ids, f.id)
			}
		}
		b.StopTimer()
		host.settle(b, ids...)
		if failed != nil {
			b.Fatal(failed)
		}
		b.StartTimer()
	}
	all.report(b)
	for who, d := range used {
		b.ReportMetric(ms(d)/float64(len(all)), who+"-cpu-ms")
	}
}

// firstExec is one environment from its claim to its first output.
type firstExec struct {
	id            string
	claimed, took time.Duration
	err           error
}

// burst claims as many environments at once as the pool has.
func (g *guest) burst(name string) []firstExec {
	var (
		out   = make([]firstExec, poolSize)
		start = make(chan struct{})
		all   sync.WaitGroup
	)
	for i := range out {
		all.Go(func() {
			<-start
			out[i] = g.firstExec(fmt.Sprintf("%s-%d", name, i))
		})
	}
	close(start)
	all.Wait()
	return out
}

// firstExec claims, runs echo and returns when its output is here.
func (g *guest) firstExec(name string) (f firstExec) {
	word := fmt.Sprintf("word-%s-%d", name, time.Now().UnixNano())
	req := &hearthv1.ClaimRequest{IdempotencyKey: word, Spec: spec(0)}
	begun := time.Now()
	resp, err := host.controller.Claim(context.Background(), req)
	f.claimed = time.Since(begun)
	if err == nil && !resp.GetEnvironment().GetWarm() {
		err = errCold
	}
	if err == nil {
		err = g.echo(resp, word)
	}
	f.id, f.took, f.err = resp.GetEnvironment().GetId(), time.Since(begun), err
	return f
}

// guest keeps the connection to the node's Guest API.
type guest struct {
	once sync.Once
	http *http.Client
}

// echo runs a command and returns when its first output is here.
func (g *guest) echo(c *hearthv1.ClaimResponse, word string) error {
	access := c.GetAccess()
	g.once.Do(func() { g.http = host.tls(access.GetCaPem()) })
	h := &http.Client{Transport: bearer{g.http.Transport, map[string]string{
		"Authorization":      "Bearer " + access.GetToken(),
		"Hearth-Environment": c.GetEnvironment().GetId(),
	}}}
	api := hearthv1connect.NewGuestServiceClient(h, "https://"+access.GetAddress(), rpc.ClientOptions()...)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := api.Exec(ctx)
	if err != nil {
		return err
	}
	start := &hearthv1.ExecStart{Command: []string{"echo", word}}
	if err := stream.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Start{Start: start}}); err != nil {
		return err
	}
	return firstOutput(stream, word)
}

func firstOutput(stream *connect.BidiStreamForClientSimple[hearthv1.ExecRequest, hearthv1.ExecResponse], word string) error {
	for {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		switch m := m.GetMessage().(type) {
		case *hearthv1.ExecResponse_Stdout:
			if !bytes.Equal(m.Stdout, []byte(word+"\n")) {
				return fmt.Errorf("echo printed %q", m.Stdout)
			}
			return nil
		case *hearthv1.ExecResponse_Exit:
			return errors.New("echo ended without output")
		}
	}
}
