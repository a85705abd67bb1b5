//go:build e2e

package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// Extend counts from now, and allows a day.
func (n *fakeNode) Extend(_ context.Context, r *hearthv1.NodeExtendRequest) (*hearthv1.NodeExtendResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, c := range n.claims {
		if c.GetEnvironment().GetId() != r.GetEnvironment() {
			continue
		}
		ttl := r.GetTimeToLive()
		if ttl.AsDuration() > 24*time.Hour {
			return nil, fmt.Errorf("%w: class small allows 24h0m0s", env.ErrInvalid)
		}
		c = proto.CloneOf(c)
		c.Environment.TimeToLive, c.Environment.ExpiresAt = ttl, timestamppb.New(time.Now().Add(ttl.AsDuration()).Truncate(time.Second))
		n.claims[key] = c
		return &hearthv1.NodeExtendResponse{Environment: c.GetEnvironment()}, nil
	}
	return nil, fmt.Errorf("%w: environment %s", env.ErrNotFound, r.GetEnvironment())
}

func TestAnObjectsTimeToLiveIsFollowedAndItsEndDeletesIt(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	o := &v1alpha1.Environment{
		ObjectMeta: metav1.ObjectMeta{Namespace: team, Name: "mine"},
		Spec:       v1alpha1.EnvironmentSpec{Class: "small", TimeToLive: &metav1.Duration{Duration: 2 * time.Hour}},
	}
	o, err := c.environments(team).Create(t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id := string(testSeal.idOf(o))
	eventually(t, "it runs", func() bool { return w.get(team, "mine").Status.Phase == "running" })
	if got := w.fakes["n1"].spec(id).GetTimeToLive().AsDuration(); got != 2*time.Hour {
		t.Errorf("claimed for %s", got)
	}
	set := func(ttl time.Duration) {
		t.Helper()
		patch := fmt.Sprintf(`{"spec":{"timeToLive":"%s"}}`, ttl)
		if _, err := c.environments(team).Patch(t.Context(), "mine", "application/merge-patch+json", []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	set(3 * time.Hour)
	eventually(t, "the change is in force", func() bool {
		s := w.get(team, "mine").Status
		return s.TimeToLive != nil && s.TimeToLive.Duration == 3*time.Hour && s.ExpiresAt != nil
	})
	set(100 * time.Hour)
	eventually(t, "an event says that it is too long", func() bool { return hasEvent(t, c, team, "mine", "ExtendRefused") })

	inv := &hearthv1.InventoryResponse{Node: "n1", Pools: []*hearthv1.Pool{{Class: "small", Want: 1, Ready: 1}}, Environments: []*hearthv1.Environment{{
		Id: id, Generation: 1, Class: "small", Phase: hearthv1.Phase_PHASE_RELEASED, Reason: "expired", Message: "its time to live ended",
		TimeToLive: durationpb.New(3 * time.Hour),
	}}}
	if _, err := w.sessions["n1"].Inventory(inv); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the object is gone", func() bool { return w.get(team, "mine") == nil })
	eventually(t, "an event says why", func() bool { return hasEvent(t, c, team, "mine", "Expired") })
	if w.fakes["n1"].wasReleased(id) {
		t.Error("the node was asked to release what it had released")
	}
}

func TestTheSchemaRefusesTimesThatCannotBe(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	length := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	for name, l := range map[string]v1alpha1.Lifetime{
		"at least 1s": {TimeToLive: length(time.Millisecond)},
		"timeToLive is longer than maxTimeToLive": {TimeToLive: length(2 * time.Hour), MaxTimeToLive: length(time.Hour)},
		"at least 5s": {PauseWhenIdle: length(time.Second)},
		"":            {TimeToLive: length(time.Hour), MaxTimeToLive: length(time.Hour), PauseWhenIdle: length(5 * time.Second)},
	} {
		class := &v1alpha1.EnvironmentClass{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "lives-"},
			Spec:       v1alpha1.EnvironmentClassSpec{Image: "example.com/base:1", Lifetime: l},
		}
		_, err := c.classes.Create(t.Context(), class, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if (err == nil) != (name == "") || err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("class with %+v: %v, want %q", l, err, name)
		}
	}
	o := &v1alpha1.Environment{
		ObjectMeta: metav1.ObjectMeta{Namespace: team, Name: "short"},
		Spec:       v1alpha1.EnvironmentSpec{Class: "small", TimeToLive: length(time.Millisecond)},
	}
	if _, err := c.environments(team).Create(t.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err == nil || !strings.Contains(err.Error(), "at least 1s") {
		t.Errorf("environment of a millisecond: %v", err)
	}
}
