package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
)

func inPod() Host {
	h := testHost()
	h.Pod = Pod{Namespace: "hearth-system", Name: "hearth-controller-1", UID: "u", IP: "198.51.100.7"}
	return h
}

func TestAnEmptyKubernetesSectionHasAllDefaults(t *testing.T) {
	c, err := LoadController(write(t, "controller.yaml", "kubernetes: {}\n"), inPod())
	if err != nil {
		t.Fatal(err)
	}
	want := Kubernetes{
		Namespace: "hearth-system", AgentNamespace: "hearth-nodes", AgentAccount: "hearth-nodeagent", Lease: "hearth-controller", Service: "hearth-controller",
		Webhook: Webhook{Listen: ":7403", Configuration: "hearth-drain"},
		Hold:    Hold{Image: "hearth/pause:devel", Memory: "50%", CPU: "50%", PriorityClass: "hearth-hold"},
		Pod:     inPod().Pod,
	}
	if d := cmp.Diff(want, *c.Kubernetes); d != "" {
		t.Errorf("section (-want +got):\n%s", d)
	}
	names := []string{"hearth-controller", "hearth-controller.hearth-system", "hearth-controller.hearth-system.svc", "localhost", "127.0.0.1", "198.51.100.7"}
	if d := cmp.Diff(names, c.API.Names); d != "" || c.API.Metrics != ":7402" {
		t.Errorf("api.metrics = %s, api.names (-want +got):\n%s", c.API.Metrics, d)
	}
}

func TestWithoutItsSectionThereIsNoKubernetes(t *testing.T) {
	c, err := LoadController(write(t, "controller.yaml", "instance: blue\n"), inPod())
	if err != nil || c.Kubernetes != nil || c.API.Names[0] != "node-1" {
		t.Errorf("controller = %+v, %v", c, err)
	}
}

func TestWrongKubernetesSettingsAreAllNamed(t *testing.T) {
	_, err := LoadController(write(t, "controller.yaml", `
fleet: {fenceAfter: 1m, placeAfter: 30s}
kubernetes:
  kubeconfig: relative
  agentNamespace: Not_a_name
  webhook: {listen: nowhere}
`), inPod())
	for _, want := range []string{"fleet.placeAfter", "kubernetes.kubeconfig", "kubernetes.agentNamespace", "kubernetes.webhook.listen"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
	for _, share := range []string{"0", "0%", "101%", "-1Gi", "much", "5 %"} {
		if _, err := LoadController(write(t, "controller.yaml", "kubernetes: {hold: {memory: \""+share+"\"}}\n"), inPod()); err == nil {
			t.Errorf("memory %q is accepted", share)
		}
	}
}

func TestASharesAmount(t *testing.T) {
	for _, tc := range []struct {
		share       Share
		whole, want string
	}{
		{"50%", "16Gi", "8Gi"}, {"8Gi", "16Gi", "8Gi"}, {"50%", "7910m", "3955m"}, {"1500m", "8", "1500m"}, {"100%", "24589472Ki", "24013Mi"},
	} {
		got, err := tc.share.Of(resource.MustParse(tc.whole))
		want := resource.MustParse(tc.want)
		if err != nil || got.Cmp(want) != 0 {
			t.Errorf("%s of %s = %s, %v; want %s", tc.share, tc.whole, got.String(), err, tc.want)
		}
	}
}

func TestASharesParts(t *testing.T) {
	for _, tc := range []struct {
		share   Share
		percent int
		amount  uint64
	}{{"16%", 16, 0}, {"20Gi", 0, 20 << 30}, {"100k", 0, 100_000}, {"0", 0, 0}} {
		percent, amount, err := tc.share.Parts()
		if err != nil || percent != tc.percent || amount != tc.amount {
			t.Errorf("%s = %d%%, %d, %v", tc.share, percent, amount, err)
		}
	}
}
