package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func snapshotRequest(id string) *hearthv1.NodeSnapshotRequest {
	return &hearthv1.NodeSnapshotRequest{Environment: id}
}

func TestOnceRunsACallOnceHoweverOftenItIsRepeated(t *testing.T) {
	m := newMemo()
	var ran atomic.Int32
	call := func() (*hearthv1.NodeSnapshotResponse, error) {
		n := ran.Add(1)
		time.Sleep(10 * time.Millisecond)
		return &hearthv1.NodeSnapshotResponse{Snapshot: &hearthv1.Snapshot{Id: fmt.Sprint(n)}}, nil
	}
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			got, err := once(t.Context(), m, "k", snapshotRequest("a"), call)
			if err != nil || got.GetSnapshot().GetId() != "1" {
				t.Errorf("once = %v, %v", got, err)
			}
		})
	}
	wait.Wait()
	if got := ran.Load(); got != 1 {
		t.Errorf("the call ran %d times", got)
	}
}

func TestOnceForgetsFailuresAndIgnoresEmptyKeys(t *testing.T) {
	m := newMemo()
	failing := errors.New("disk full")
	ran := 0
	call := func() (*hearthv1.NodeSnapshotResponse, error) {
		ran++
		if ran == 1 {
			return nil, failing
		}
		return &hearthv1.NodeSnapshotResponse{}, nil
	}
	if _, err := once(t.Context(), m, "k", snapshotRequest("a"), call); !errors.Is(err, failing) {
		t.Errorf("first try = %v", err)
	}
	if _, err := once(t.Context(), m, "k", snapshotRequest("a"), call); err != nil || ran != 2 {
		t.Errorf("second try = %v after %d runs", err, ran)
	}
	for range 2 {
		if _, err := once(t.Context(), m, "", snapshotRequest("a"), call); err != nil {
			t.Error(err)
		}
	}
	if ran != 4 {
		t.Errorf("%d runs, want 4: an empty key is never remembered", ran)
	}
}

func TestOnceRefusesAKeyThatCameWithAnotherRequest(t *testing.T) {
	m := newMemo()
	call := func() (*hearthv1.NodeSnapshotResponse, error) { return &hearthv1.NodeSnapshotResponse{}, nil }
	if _, err := once(t.Context(), m, "k", snapshotRequest("a"), call); err != nil {
		t.Fatal(err)
	}
	if _, err := once(t.Context(), m, "k", snapshotRequest("b"), call); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("another environment = %v, want ErrInvalid", err)
	}
	release := func() (*hearthv1.NodeReleaseResponse, error) { return &hearthv1.NodeReleaseResponse{}, nil }
	if _, err := once(t.Context(), m, "k", &hearthv1.NodeReleaseRequest{Environment: "a"}, release); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("another method = %v, want ErrInvalid", err)
	}
}

func TestOnceStopsWaitingWithItsContext(t *testing.T) {
	m := newMemo()
	m.begin("k", mustDigest(t, snapshotRequest("a"))) // never ends
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := once(ctx, m, "k", snapshotRequest("a"), func() (*hearthv1.NodeSnapshotResponse, error) {
		t.Error("ran beside the first")
		return nil, nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("once = %v", err)
	}
}

func mustDigest(t *testing.T, req *hearthv1.NodeSnapshotRequest) []byte {
	t.Helper()
	d, err := digestOf(req)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMemoStaysBounded(t *testing.T) {
	m := newMemo()
	for i := range memoSize + 100 {
		c, _ := m.begin(fmt.Sprint(i), nil)
		m.end(fmt.Sprint(i), c, &hearthv1.NodeSnapshotResponse{}, nil)
	}
	if got := len(m.calls); got > memoSize {
		t.Errorf("%d calls remembered, at most %d", got, memoSize)
	}
	if m.calls[fmt.Sprint(memoSize+99)] == nil {
		t.Error("the newest call was forgotten")
	}
}
