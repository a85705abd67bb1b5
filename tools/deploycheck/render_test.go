package deploycheck

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const root = "../.."

// bases are what a platform engineer may apply, each alone.
var bases = []string{
	"", "namespaces", "crds", "access", "controller", "daemonset", "prometheus", "prometheus/operator", "grafana",
}

// render does what `kubectl apply -k deploy/BASE` sends.
func render(t *testing.T, base string) []object {
	t.Helper()
	k := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	resources, err := k.Run(filesys.MakeFsOnDisk(), root+"/deploy/"+base)
	if err != nil {
		t.Fatalf("deploy/%s: %v", base, err)
	}
	var all []object
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		var o object
		if err := yaml.Unmarshal(text, &o); err != nil {
			t.Fatalf("deploy/%s: %v", base, err)
		}
		o.text = string(text)
		all = append(all, o)
	}
	if len(all) == 0 {
		t.Fatalf("deploy/%s has nothing", base)
	}
	return all
}

// everything is what the install and both ways of monitoring apply.
func everything(t *testing.T) []object {
	t.Helper()
	return slices.Concat(render(t, ""), render(t, "prometheus"), render(t, "prometheus/operator"), render(t, "grafana"))
}

// object is what is looked at of a manifest.
type object struct {
	text     string
	Kind     string
	Metadata struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Rules    []rule
	RoleRef  reference   `json:"roleRef"`
	Subjects []reference `json:"subjects"`
	Spec     struct {
		Replicas       int
		UpdateStrategy struct {
			RollingUpdate struct{ MaxSurge, MaxUnavailable int }
		} `json:"updateStrategy"`
		Template struct{ Spec podSpec }
	}
	Data map[string]string
	Type string
}

type reference struct{ Kind, Name, Namespace string }

type rule struct {
	APIGroups       []string `json:"apiGroups"`
	Resources       []string `json:"resources"`
	ResourceNames   []string `json:"resourceNames"`
	NonResourceURLs []string `json:"nonResourceURLs"`
	Verbs           []string `json:"verbs"`
}

type podSpec struct {
	HostNetwork                   bool        `json:"hostNetwork"`
	HostPID                       bool        `json:"hostPID"`
	HostIPC                       bool        `json:"hostIPC"`
	PriorityClassName             string      `json:"priorityClassName"`
	TerminationGracePeriodSeconds int         `json:"terminationGracePeriodSeconds"`
	InitContainers                []container `json:"initContainers"`
	Containers                    []container `json:"containers"`
	SecurityContext               security    `json:"securityContext"`
	Volumes                       []struct {
		Name     string
		HostPath *struct{ Path, Type string } `json:"hostPath"`
	}
}

type container struct {
	Name, Image     string
	Ports           []any
	Resources       struct{ Requests, Limits map[string]string }
	SecurityContext *security `json:"securityContext"`
	VolumeMounts    []struct {
		Name, MountPath, MountPropagation string
		ReadOnly                          bool
	} `json:"volumeMounts"`
	StartupProbe, ReadinessProbe, LivenessProbe any
}

type security struct {
	Privileged               bool
	AllowPrivilegeEscalation *bool `json:"allowPrivilegeEscalation"`
	RunAsNonRoot             bool  `json:"runAsNonRoot"`
	ReadOnlyRootFilesystem   bool  `json:"readOnlyRootFilesystem"`
	SeccompProfile           struct{ Type string }
	Capabilities             struct{ Add, Drop []string }
}

// pods are the pod templates of all, by the name of what owns them.
func pods(all []object) map[string]podSpec {
	found := map[string]podSpec{}
	for _, o := range all {
		if len(o.Spec.Template.Spec.Containers) > 0 {
			found[o.Metadata.Name] = o.Spec.Template.Spec
		}
	}
	return found
}

func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(root + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// chapter is a document's text under a heading, to the next one of its rank.
func chapter(t *testing.T, text, heading string) string {
	t.Helper()
	rank, _, _ := strings.Cut(heading, " ")
	_, after, found := strings.Cut(text, heading+"\n")
	if !found {
		t.Fatalf("no heading %q", heading)
	}
	for _, end := range []string{"\n" + rank + " ", "\n## "} {
		after, _, _ = strings.Cut(after, end)
	}
	return after
}

// rows are the cells of the tables in text, without heads.
func rows(text string) [][]string {
	var all [][]string
	head := true
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			head = true
			continue
		}
		if strings.HasPrefix(line, "|---") {
			head = false
			continue
		}
		if head {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		all = append(all, cells)
	}
	return all
}
