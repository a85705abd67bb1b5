package monitoring

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFileDiscoveryKeepsEverythingButTheSource(t *testing.T) {
	out, err := FileDiscovery([]byte(read(t, "deploy/"+ScrapeFile)), "/d")
	if err != nil {
		t.Fatal(err)
	}
	text := string(out)
	for _, want := range []string{"/d/hearth-nodes.json", "/d/hearth-system.json", "job_name: hearth-nodeagent", "job_name: hearth-controller", "relabel_configs"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "kubernetes_sd_configs") {
		t.Error("discovery from Kubernetes is still there")
	}
	for name, bad := range map[string]string{
		"no discovery": "scrape_configs: [{job_name: a}]",
		"everywhere":   "scrape_configs: [{job_name: a, kubernetes_sd_configs: [{role: pod}]}]",
		"nodes":        "scrape_configs: [{job_name: a, kubernetes_sd_configs: [{role: node, namespaces: {names: [a]}}]}]",
	} {
		if _, err := FileDiscovery([]byte(bad), "/d"); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestTargetsAreThoseOfPodDiscovery(t *testing.T) {
	out, err := Targets([]Pod{
		{Name: "a", Node: "n", HostIP: "192.0.2.1", PodIP: "192.0.2.1", Phase: "Running", Labels: map[string]string{"app.kubernetes.io/name": "x"}},
		{Name: "b", PodIP: "192.0.2.9", Ports: map[string]int{"metrics": 7402, "api": 7400}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var groups []targetGroup
	if err := json.Unmarshal(out, &groups); err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, g := range groups {
		targets = append(targets, strings.Join(g.Targets, ",")+" "+g.Labels["__meta_kubernetes_pod_container_port_name"])
	}
	if diff := cmp.Diff([]string{"192.0.2.1 ", "192.0.2.9:7400 api", "192.0.2.9:7402 metrics"}, targets); diff != "" {
		t.Error(diff)
	}
	if groups[0].Labels["__meta_kubernetes_pod_label_app_kubernetes_io_name"] != "x" {
		t.Errorf("labels %v", groups[0].Labels)
	}
}
