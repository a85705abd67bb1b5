package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/api/v1alpha1"
	"hearth/internal/env"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const storedClass = `{"apiVersion":"hearth.run/v1alpha1","kind":"EnvironmentClass",
"metadata":{"name":"base","uid":"x","creationTimestamp":"2026-01-01T00:00:00Z","managedFields":[{"manager":"kubectl","fieldsV1":{"f:spec":{}}}]},
"spec":{"image":"busybox:1","durability":"ephemeral","warm":{"slots":2}},"status":{"ready":1}}`

func TestAStoredManifestIsTheClassThatItsFileIs(t *testing.T) {
	got, err := DecodeClass([]byte(storedClass))
	if err != nil {
		t.Fatal(err)
	}
	want, err := ClassOf(&v1alpha1.EnvironmentClass{
		ObjectMeta: metav1.ObjectMeta{Name: "base"},
		Spec:       v1alpha1.EnvironmentClassSpec{Image: "busybox:1", Durability: "ephemeral", Warm: v1alpha1.Warm{Slots: 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("class (-want +got):\n%s", diff)
	}
}

func TestAWrongStoredManifestIsRefusedByName(t *testing.T) {
	for name, words := range map[string][]string{
		`{`:  {"manifest"},
		`{}`: {"kind EnvironmentClass"},
		strings.Replace(storedClass, "busybox:1", "not an image", 1):     {`"base"`, "spec.image"},
		strings.Replace(storedClass, `"warm"`, `"wram"`, 1):              {`"base"`, "wram", "warm"},
		strings.Replace(storedClass, `"ephemeral"`, `"forever"`, 1):      {`"base"`, "durability"},
		strings.Replace(storedClass, `"name":"base"`, `"name":"B A"`, 1): {"metadata.name"},
	} {
		_, err := DecodeClass([]byte(name))
		if !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%.60s: %v, want ErrInvalid", name, err)
			continue
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%.60s: the error lacks %q: %v", name, w, err)
			}
		}
	}
}

func FuzzDecodeClass(f *testing.F) {
	f.Add([]byte(storedClass))
	f.Add([]byte(`{"spec":{"a":1,"a":2}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := DecodeClass(data); err == nil && (c.Name == "" || c.Revision == "" || c.Image == "") {
			t.Errorf("accepted a class without name, revision or image: %+v", c)
		}
	})
}
