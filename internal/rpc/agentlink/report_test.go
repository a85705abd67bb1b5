package agentlink

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
)

// books are a node's inventory, which the test changes.
type books struct {
	envs  []*hearthv1.Environment
	ready atomic.Uint32
}

func (b *books) Stock() *hearthv1.Heartbeat {
	return &hearthv1.Heartbeat{Pools: []*hearthv1.Pool{{Class: "small", Ready: b.ready.Load()}}}
}

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

// What changes often is told soon, and not often.
func TestChangesOfThePoolsAreToldAtOnceAndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, change := &books{}, make(chan struct{}, 1)
		l, err := New(slog.New(slog.DiscardHandler), Config{
			Instance: instance, Node: "n1", Advertise: "127.0.0.1:1", Hosts: []string{"127.0.0.1"}, Finder: &place{}, Token: always(podToken),
			Changed: change,
		}, openDir(t), b)
		ok(t, err)
		begun := time.Now()
		var mu sync.Mutex // guards the two
		var told []time.Duration
		var last *hearthv1.ReportRequest
		ready := func() uint32 {
			mu.Lock()
			defer mu.Unlock()
			return last.GetHeartbeat().GetPools()[0].GetReady()
		}
		x := &exchange{
			send: func(r *hearthv1.ReportRequest) error {
				mu.Lock()
				defer mu.Unlock()
				last = r
				told = append(told, time.Since(begun))
				return nil
			},
			receive: func() (*hearthv1.ReportResponse, error) {
				return &hearthv1.ReportResponse{Sequence: last.GetSequence(), Interval: durationpb.New(time.Hour)}, nil
			},
			cut: func() {},
		}
		passed := make(chan error, 1)
		go func() { passed <- l.pass(t.Context(), x, 10*time.Second) }()
		time.Sleep(time.Second)
		for range 100 { // a burst of 300 ms
			b.ready.Add(1)
			select {
			case change <- struct{}{}:
			default:
			}
			time.Sleep(3 * time.Millisecond)
		}
		if got := ready(); got < 80 {
			t.Errorf("during the burst the controller was told of %d slots of 100", got)
		}
		time.Sleep(100 * time.Millisecond)
		if got := ready(); got != 100 {
			t.Errorf("after the burst the controller was told of %d slots, not 100", got)
		}
		if err := <-passed; err != nil {
			t.Error(err)
		}
		if len(told) < 5 || len(told) > 8 || told[0] != time.Second+changeAfter {
			t.Errorf("told at %v", told)
		}
		for i := 1; i < len(told); i++ {
			if told[i]-told[i-1] < changeEvery {
				t.Errorf("told twice within %s", told[i]-told[i-1])
			}
		}
	})
}
