package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
)

// BenchmarkClaimWarm is a claim on the node's socket, as its client sees it. The
// policy is one that the node has seen before, as most are.
func BenchmarkClaimWarm(b *testing.B) {
	claimWarm(b, func(int) *hearthv1.ClaimSpec { return spec(0) })
}

// BenchmarkClaimWarmNewPolicy has a policy of its own in every claim, which is
// compiled and written into the kernel meanwhile.
func BenchmarkClaimWarmNewPolicy(b *testing.B) {
	claimWarm(b, func(i int) *hearthv1.ClaimSpec { return spec(i + 1) })
}

func claimWarm(b *testing.B, spec func(int) *hearthv1.ClaimSpec) {
	b.Helper()
	var seen, node sample
	phases := map[string]sample{}
	var order []string
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		req := &hearthv1.NodeClaimRequest{
			IdempotencyKey: fmt.Sprintf("%s-%d", b.Name(), i), Spec: spec(i), WarmOnly: true,
		}
		b.StartTimer()
		begun := time.Now()
		resp, err := host.node.Claim(context.Background(), req)
		took := time.Since(begun)
		b.StopTimer()
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
		host.release(b, resp.GetEnvironment().GetId())
		b.StartTimer()
	}
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
	const pause = 200 * time.Millisecond
	var all sample
	for b.Loop() {
		b.StopTimer()
		time.Sleep(pause)
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
	var all, claims sample
	g := guest{}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		word := fmt.Sprintf("word-%d-%d", i, time.Now().UnixNano())
		req := &hearthv1.ClaimRequest{IdempotencyKey: fmt.Sprintf("%s-%s", b.Name(), word), Spec: spec(0)}
		b.StartTimer()
		begun := time.Now()
		resp, err := host.controller.Claim(context.Background(), req)
		claimed := time.Since(begun)
		if err == nil && !resp.GetEnvironment().GetWarm() {
			err = errCold
		}
		if err == nil {
			err = g.echo(resp, word)
		}
		took := time.Since(begun)
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if i > 0 { // the first opens the connections, which a backend keeps
			all, claims = append(all, took), append(claims, claimed)
		}
		host.release(b, resp.GetEnvironment().GetId())
		b.StartTimer()
	}
	all.report(b)
	b.ReportMetric(ms(claims.percentile(50)), "claim-p50-ms")
}

// guest keeps the connection to the node's Guest API.
type guest struct{ http *http.Client }

// echo runs a command and returns when its first output is here.
func (g *guest) echo(c *hearthv1.ClaimResponse, word string) error {
	access := c.GetAccess()
	if g.http == nil {
		g.http = host.tls(access.GetCaPem())
	}
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
