package kube

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
)

func TestAnObjectsMountsAreClaimed(t *testing.T) {
	spec, err := specOf(&v1alpha1.Environment{Spec: v1alpha1.EnvironmentSpec{
		Class: "c", Mounts: []v1alpha1.Mount{{Name: "datasets", Directory: "images", Path: "/data", ReadOnly: true}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []*hearthv1.Mount{{Name: "datasets", Directory: "images", Path: "/data", ReadOnly: true}}
	if diff := cmp.Diff(want, spec.GetMounts(), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
