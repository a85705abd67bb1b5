package nodeapi

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/warm"
)

// As they were asked for they are claimed, shown, and claimed again at the next node.
func TestMountsTravelAsTheyAre(t *testing.T) {
	asked := []*hearthv1.Mount{
		{Name: "datasets", Directory: "images/2026", Path: "/data", ReadOnly: true},
		{Name: "homes", Path: "/home/agent"},
	}
	want := []env.Mount{
		{Name: "datasets", Directory: "images/2026", Path: "/data", ReadOnly: true},
		{Name: "homes", Path: "/home/agent"},
	}
	c, err := claimOf(&hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: "c", Mounts: asked}})
	if diff := cmp.Diff(want, c.Mounts); diff != "" || err != nil {
		t.Errorf("claim: %v (-want +got):\n%s", err, diff)
	}
	if diff := cmp.Diff(asked, specOf(c).GetMounts(), protocmp.Transform()); diff != "" {
		t.Errorf("for the next node (-want +got):\n%s", diff)
	}
	s := New(Info{Node: "n"}, nil, nil, nil, nil, &heard{})
	if diff := cmp.Diff(asked, s.environment(warm.Environment{ID: "e-1", Mounts: want}).GetMounts(), protocmp.Transform()); diff != "" {
		t.Errorf("shown (-want +got):\n%s", diff)
	}
}
