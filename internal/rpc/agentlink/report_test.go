package agentlink

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
)

// books are a node's inventory, which the test changes.
type books struct{ envs []*hearthv1.Environment }

func (b *books) Stock() *hearthv1.Heartbeat { return &hearthv1.Heartbeat{} }

func (b *books) Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error) {
	return &hearthv1.InventoryResponse{Environments: b.envs}, nil
}

func TestWhatANodeDoesByItselfIsReportedAtTheNextHeartbeat(t *testing.T) {
	b := &books{}
	l, err := New(slog.New(slog.DiscardHandler), Config{
		Instance: instance, Node: "n1", Advertise: "127.0.0.1:1", Hosts: []string{"127.0.0.1"}, Finder: &place{}, Token: always(podToken),
	}, openDir(t), b)
	ok(t, err)
	var sent *hearthv1.ReportRequest
	x := &exchange{
		send: func(r *hearthv1.ReportRequest) error { sent = r; return nil },
		receive: func() (*hearthv1.ReportResponse, error) {
			return &hearthv1.ReportResponse{Sequence: sent.GetSequence(), Interval: durationpb.New(time.Second)}, nil
		},
		cut: func() {},
	}
	beat := 0
	full := func() bool {
		t.Helper()
		_, err := l.beat(t.Context(), x, beat)
		ok(t, err)
		beat++
		return sent.GetInventory() != nil
	}
	for _, step := range []struct {
		what string
		do   func()
		want bool
	}{
		{"the first one", func() {}, true},
		{"nothing", func() {}, false},
		{"a claim, which the controller made", func() { b.envs = []*hearthv1.Environment{{Id: "e-1", Generation: 1}} }, false},
		{"it sleeps", func() { b.envs[0].Reason = "idle" }, true},
		{"it sleeps on", func() {}, false},
		{"it woke", func() { b.envs[0].Reason = "" }, true},
		{"its time came", func() { b.envs[0].Reason = "expired" }, true},
		{"it is forgotten", func() { b.envs = nil }, true},
		{"nothing more", func() {}, false},
	} {
		step.do()
		if got := full(); got != step.want {
			t.Errorf("%s: inventory %t, want %t", step.what, got, step.want)
		}
	}
}
