//go:build e2e

package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Resize has 8 GiB to give.
func (n *fakeNode) Resize(_ context.Context, r *hearthv1.NodeResizeRequest) (*hearthv1.NodeResizeResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, c := range n.claims {
		if c.GetEnvironment().GetId() != r.GetEnvironment() {
			continue
		}
		if r.GetResources().GetMemoryBytes() > 8<<30 {
			return nil, fmt.Errorf("%w: 8 GiB are left", env.ErrExhausted)
		}
		c = proto.CloneOf(c)
		if c.Environment.Resources == nil {
			c.Environment.Resources = &hearthv1.Resources{CpuMillis: 1000, MemoryBytes: 1 << 30}
		}
		proto.Merge(c.Environment.Resources, r.GetResources())
		n.claims[key] = c
		return &hearthv1.NodeResizeResponse{Environment: c.GetEnvironment()}, nil
	}
	return nil, fmt.Errorf("%w: environment %s", env.ErrNotFound, r.GetEnvironment())
}

func TestAnObjectsLimitsAreFollowedWhileItLives(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	o := &v1alpha1.Environment{
		ObjectMeta: metav1.ObjectMeta{Namespace: team, Name: "mine"},
		Spec:       v1alpha1.EnvironmentSpec{Class: "small", Resources: amounts("500m", "2Gi", "")},
	}
	o, err := c.environments(team).Create(t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id := string(testSeal.idOf(o))
	eventually(t, "it runs", func() bool { return w.get(team, "mine").Status.Phase == "running" })
	if r := w.fakes["n1"].spec(id).GetResources(); r.GetCpuMillis() != 500 || r.GetMemoryBytes() != 2<<30 || r.CpuBurstMillis != nil {
		t.Errorf("claimed with %v", r)
	}
	set := func(patch string) error {
		_, err := c.environments(team).Patch(t.Context(), "mine", types.MergePatchType, []byte(`{"spec":{"resources":`+patch+`}}`), metav1.PatchOptions{})
		return err
	}
	inForce := func(want *v1alpha1.EnvironmentResources) func() bool {
		return func() bool {
			return proto.Equal(resourcesFrom(w.get(team, "mine").Status.Resources), resourcesFrom(want))
		}
	}
	if err := set(`{"memory":"4Gi","cpuBurst":"250m"}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change is in force", inForce(amounts("500m", "4Gi", "250m")))
	if err := set(`{"memory":"16Gi"}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an event says that it is too much", func() bool { return hasEvent(t, c, team, "mine", "ResizeRefused") })
	eventually(t, "the old limits hold", inForce(amounts("500m", "4Gi", "250m")))
	if err := set(`{"memory":"3Gi","cpuBurst":"0"}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "less is in force", func() bool {
		s := w.get(team, "mine").Status.Resources
		return s.Memory.String() == "3Gi" && s.CPUBurst == nil
	})
}

func TestTheSchemaRefusesLimitsOfAClaimAndHalfAnswers(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	w := newWorld(t, c, oneNode())
	resp, err := w.fleet.Claim(t.Context(), fleet.Principal{Tenant: team}, "sized", &hearthv1.ClaimSpec{Class: "small", Resources: &hearthv1.Resources{CpuMillis: 700}})
	if err != nil {
		t.Fatal(err)
	}
	id := resp.GetEnvironment().GetId()
	if got := w.fakes["n1"].spec(id).GetResources().GetCpuMillis(); got != 700 {
		t.Errorf("claimed with %dm", got)
	}
	_, err = c.environments(team).Patch(t.Context(), id, types.MergePatchType, []byte(`{"spec":{"resources":{"cpu":"2"}}}`), metav1.PatchOptions{})
	if err == nil || !strings.Contains(err.Error(), "are changed there") {
		t.Errorf("resizing the object of a claim: %v, want a refusal that names the API", err)
	}
	burst := amounts("", "", "500m").CPUBurst
	for name, r := range map[string]v1alpha1.Resources{
		"cpuBurst needs cpu":      {CPUBurst: burst},
		"memoryHigh needs memory": {MemoryHigh: amounts("", "1Gi", "").Memory},
		"spec.resources.io":       {IO: &v1alpha1.IO{}},
		"":                        {CPU: amounts("1", "", "").CPU, CPUBurst: burst, IO: &v1alpha1.IO{ReadBytes: amounts("", "1Mi", "").Memory}},
	} {
		class := &v1alpha1.EnvironmentClass{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "sizes-"},
			Spec:       v1alpha1.EnvironmentClassSpec{Image: "example.com/base:1", Resources: r},
		}
		_, err := c.classes.Create(t.Context(), class, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if (err == nil) != (name == "") || err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("class with %+v: %v, want %q", r, err, name)
		}
	}
}
