package main

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/fleet"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// BenchmarkControllerClaim is a whole claim through the controller, TLS, store
// and mutual TLS to a node that does nothing; BenchmarkNodeClaim is the same
// claim sent to that node at once. Their difference is what the controller costs.
func BenchmarkControllerClaim(b *testing.B) {
	c := startControl(b, b.TempDir(), "127.0.0.1:0", fleet.Config{}, nil)
	startNode(b, c, &fakeNode{name: "n1", ready: 1 << 30})
	api := c.client("a")
	i := 0
	measure(b, func() error {
		i++
		_, err := api.Claim(context.Background(), claimOf(fmt.Sprint(i)))
		return err
	})
}

func BenchmarkNodeClaim(b *testing.B) {
	c := startControl(b, b.TempDir(), "127.0.0.1:0", fleet.Config{}, nil)
	startNode(b, c, &fakeNode{name: "n1", ready: 1 << 30})
	h := rpc.TLSClient(c.source.ClientConfig(pki.Node(testInstance, "n1")))
	defer h.CloseIdleConnections()
	node := hearthv1connect.NewNodeServiceClient(h, "https://"+c.fleet.Nodes()[0].Address, rpc.ClientOptions()...)
	i := 0
	measure(b, func() error {
		i++
		_, err := node.Claim(context.Background(), &hearthv1.NodeClaimRequest{IdempotencyKey: fmt.Sprint(i), Environment: fmt.Sprint(i), Generation: 1, Spec: claimOf("").GetSpec()})
		return err
	})
}

func measure(b *testing.B, call func() error) {
	b.Helper()
	var took []time.Duration
	for b.Loop() {
		begun := time.Now()
		if err := call(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[min(len(took)*p/100, len(took)-1)].Microseconds()) / 1000 }
	b.ReportMetric(at(50), "p50-ms")
	b.ReportMetric(at(99), "p99-ms")
}
