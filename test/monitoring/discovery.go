package monitoring

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"

	"sigs.k8s.io/yaml"
)

// ScrapeFile is below deploy/.
const ScrapeFile = "prometheus/scrape.yaml"

// sdConfig is what our jobs say about discovery.
type sdConfig struct {
	Role       string `json:"role"`
	Namespaces struct {
		Names []string `json:"names"`
	} `json:"namespaces"`
}

type scrapeConfig struct {
	Jobs []map[string]any `json:"scrape_configs"`
}

// FileDiscovery returns the scrape configuration with each discovery of pods
// replaced by one from the files DIR/<namespace>.json, made by Targets. Debian's
// Prometheus knows no Kubernetes; the relabelling, which is the delicate part,
// stays as users apply it.
func FileDiscovery(scrape []byte, dir string) ([]byte, error) {
	var c scrapeConfig
	if err := yaml.UnmarshalStrict(scrape, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", ScrapeFile, err)
	}
	for _, job := range c.Jobs {
		raw, err := yaml.Marshal(job["kubernetes_sd_configs"])
		if err != nil {
			return nil, err
		}
		var sd []sdConfig
		if err := yaml.UnmarshalStrict(raw, &sd); err != nil {
			return nil, fmt.Errorf("%s: job %v: %w", ScrapeFile, job["job_name"], err)
		}
		var files []string
		for _, s := range sd {
			if s.Role != "pod" || len(s.Namespaces.Names) == 0 {
				return nil, fmt.Errorf("%s: job %v: want role pod in named namespaces", ScrapeFile, job["job_name"])
			}
			for _, n := range s.Namespaces.Names {
				files = append(files, dir+"/"+n+".json")
			}
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("%s: job %v discovers nothing", ScrapeFile, job["job_name"])
		}
		delete(job, "kubernetes_sd_configs")
		job["file_sd_configs"] = []any{map[string]any{"files": files, "refresh_interval": "1s"}}
	}
	return yaml.Marshal(c)
}

// Pod is what discovery knows of a pod.
type Pod struct {
	Name, Node, HostIP, PodIP, Phase string
	Labels, Annotations              map[string]string
	Ports                            map[string]int // declared ones of its containers, by name
}

// targetGroup is an element of a file that file_sd_configs names.
type targetGroup struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

var notInLabel = regexp.MustCompile(`[^a-zA-Z0-9_]`)

// Targets is the content of a discovery file: for each pod what Prometheus'
// discovery of role pod makes of it, a target for each declared port, or one
// without a port.
func Targets(pods []Pod) ([]byte, error) {
	groups := []targetGroup{}
	for _, p := range pods {
		labels := map[string]string{
			"__meta_kubernetes_pod_name": p.Name, "__meta_kubernetes_pod_node_name": p.Node, "__meta_kubernetes_pod_ip": p.PodIP,
			"__meta_kubernetes_pod_host_ip": p.HostIP, "__meta_kubernetes_pod_phase": p.Phase, "__meta_kubernetes_pod_container_init": "false",
		}
		for k, v := range p.Labels {
			labels["__meta_kubernetes_pod_label_"+notInLabel.ReplaceAllString(k, "_")] = v
		}
		for k, v := range p.Annotations {
			labels["__meta_kubernetes_pod_annotation_"+notInLabel.ReplaceAllString(k, "_")] = v
		}
		if len(p.Ports) == 0 {
			groups = append(groups, targetGroup{[]string{p.PodIP}, labels})
		}
		for _, name := range slices.Sorted(maps.Keys(p.Ports)) {
			with := maps.Clone(labels)
			with["__meta_kubernetes_pod_container_port_name"] = name
			groups = append(groups, targetGroup{[]string{net.JoinHostPort(p.PodIP, strconv.Itoa(p.Ports[name]))}, with})
		}
	}
	return json.Marshal(groups)
}
