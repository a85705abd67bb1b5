package kube

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/api/v1alpha1"
	"hearth/internal/config"
	"hearth/internal/fleet"
)

var hold = config.Hold{Image: "pause", Memory: "50%", CPU: "2", PriorityClass: "hearth-hold"}

func node(edit func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceMemory: resource.MustParse("16Gi"), corev1.ResourceCPU: resource.MustParse("7910m"),
	}}}
	if edit != nil {
		edit(n)
	}
	return n
}

func TestWishesAreReadFromTheNode(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*corev1.Node)
		want fleet.NodeWish
	}{
		"an ordinary node":        {nil, fleet.NodeWish{}},
		"a cordoned one":          {func(n *corev1.Node) { n.Spec.Unschedulable = true }, fleet.NodeWish{Cordoned: true}},
		"one that is given up":    {taint("ToBeDeletedByClusterAutoscaler"), fleet.NodeWish{Cordoned: true, Drain: true, Reason: "the node has the taint ToBeDeletedByClusterAutoscaler"}},
		"one that is disrupted":   {taint("karpenter.sh/disrupted"), fleet.NodeWish{Cordoned: true, Drain: true, Reason: "the node has the taint karpenter.sh/disrupted"}},
		"one with another taint":  {taint("example.com/gpu"), fleet.NodeWish{}},
		"one that is left out":    {func(n *corev1.Node) { n.Labels = map[string]string{labelExclude: ""} }, fleet.NodeWish{Cordoned: true, Reason: "it has the label hearth.run/exclude"}},
		"a candidate for removal": {taint("DeletionCandidateOfClusterAutoscaler"), fleet.NodeWish{}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, wishOf(node(tc.edit))); d != "" {
				t.Errorf("wish (-want +got):\n%s", d)
			}
		})
	}
}

func taint(key string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: key, Effect: corev1.TaintEffectNoSchedule}} }
}

func TestABudgetIsTheLabelsOrAShare(t *testing.T) {
	for name, tc := range map[string]struct {
		labels map[string]string
		want   string
		wrong  string
	}{
		"a share":          {nil, "memory 8Gi, cpu 2", ""},
		"labels":           {map[string]string{labelMemory: "3Gi", labelCPU: "1500m"}, "memory 3Gi, cpu 1500m", ""},
		"one label":        {map[string]string{labelMemory: "3Gi"}, "memory 3Gi, cpu 2", ""},
		"a label of sorts": {map[string]string{labelMemory: "much"}, "memory 8Gi, cpu 2", "hearth.run/memory=much is not an amount"},
		"less than none":   {map[string]string{labelCPU: "-1"}, "memory 8Gi, cpu 2", "hearth.run/cpu=-1"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := budgetOf(node(func(n *corev1.Node) { n.Labels = tc.labels }), hold)
			if b.String() != tc.want {
				t.Errorf("budget = %s, want %s", b, tc.want)
			}
			if (err != nil) != (tc.wrong != "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("error = %v, want %q", err, tc.wrong)
			}
		})
	}
}

func TestHoldPodsFollowTheNode(t *testing.T) {
	n := node(nil)
	want, err := budgetOf(n, hold)
	if err != nil {
		t.Fatal(err)
	}
	pod := func(occupied bool, edit func(*corev1.Pod)) *corev1.Pod {
		p := holdPod("hearth-nodes", n, hold, want, occupied)
		if edit != nil {
			edit(p)
		}
		return p
	}
	failed := func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }
	now := metav1.Now()
	for name, tc := range map[string]struct {
		s    holdState
		want holdAction
	}{
		"a node with an agent gets one":              {holdState{reports: true}, holdCreate},
		"one that is cordoned and idle does not":     {holdState{reports: true, closed: true}, holdKeep},
		"one that is cordoned and occupied does":     {holdState{reports: true, closed: true, occupied: true}, holdCreate},
		"one without an agent does not":              {holdState{}, holdKeep},
		"one that is right stays":                    {holdState{reports: true, pod: pod(false, nil)}, holdKeep},
		"one that is cordoned stays":                 {holdState{reports: true, closed: true, pod: pod(false, nil)}, holdKeep},
		"one that becomes occupied is marked":        {holdState{reports: true, occupied: true, pod: pod(false, nil)}, holdMark},
		"one that becomes idle is marked":            {holdState{reports: true, pod: pod(true, nil)}, holdMark},
		"one whose mark was taken away is marked":    {holdState{reports: true, occupied: true, pod: pod(true, func(p *corev1.Pod) { p.Labels = nil })}, holdMark},
		"one whose annotation was is, too":           {holdState{reports: true, occupied: true, pod: pod(true, func(p *corev1.Pod) { delete(p.Annotations, annotationKarpenter) })}, holdMark},
		"one that failed is deleted":                 {holdState{reports: true, occupied: true, pod: pod(true, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })}, holdDelete},
		"one on its way out is left":                 {holdState{reports: true, occupied: true, pod: pod(true, func(p *corev1.Pod) { p.DeletionTimestamp = &now })}, holdKeep},
		"one whose eviction is waited for goes":      {holdState{reports: true, closed: true, draining: true, pod: pod(true, nil)}, holdDelete},
		"not before the last environment has":        {holdState{reports: true, closed: true, draining: true, occupied: true, pod: pod(true, nil)}, holdKeep},
		"one without an agent goes":                  {holdState{pod: pod(false, nil)}, holdDelete},
		"not as long as environments are said here":  {holdState{occupied: true, pod: pod(true, nil)}, holdKeep},
		"but not as fast as a kubelet can refuse it": {holdState{reports: true, young: true, pod: pod(false, failed)}, holdKeep},
		"unless its end is waited for":               {holdState{reports: true, closed: true, draining: true, young: true, pod: pod(false, failed)}, holdDelete},
		"another budget resizes": {holdState{reports: true, pod: pod(false, func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
		})}, holdResize},
	} {
		t.Run(name, func(t *testing.T) {
			tc.s.node, tc.s.want = n, want
			if got := planHold(tc.s); got != tc.want {
				t.Errorf("action = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestHoldPodNamesAreShortAndDiffer(t *testing.T) {
	long := strings.Repeat("a", 100)
	a, b := holdPodName(long+"1"), holdPodName(long+"2")
	if len(a) > 63 || a == b || holdPodName("n1") != "hearth-hold-n1" {
		t.Errorf("names: %s, %s, %s", a, b, holdPodName("n1"))
	}
}

func TestARejectedClassStaysAsItWas(t *testing.T) {
	class := func(image string, damage func(*v1alpha1.EnvironmentClass)) *v1alpha1.EnvironmentClass {
		o := &v1alpha1.EnvironmentClass{ObjectMeta: metav1.ObjectMeta{Name: "web", Generation: 7}, Spec: v1alpha1.EnvironmentClassSpec{
			Image: image, Egress: v1alpha1.Egress{Mode: "allow", Allow: []v1alpha1.EgressRule{{CIDR: "192.0.2.0/24"}}},
		}}
		if damage != nil {
			damage(o)
		}
		return o
	}
	wrong := func(o *v1alpha1.EnvironmentClass) { o.Spec.Egress.Allow[0].CIDR = "192.0.2.1/24" }
	first := judgeClass(class("x:1", nil), nil)
	if first.rejected != "" || first.manifest == nil {
		t.Fatalf("verdict = %+v", first)
	}
	kept := func(text string) func(*v1alpha1.EnvironmentClass) {
		return func(o *v1alpha1.EnvironmentClass) {
			wrong(o)
			o.Annotations = map[string]string{annotationInForce: text}
		}
	}
	for name, tc := range map[string]struct {
		o      *v1alpha1.EnvironmentClass
		before []byte
		want   string // is in the manifest in force; empty is none
	}{
		"by what this controller knows":   {class("x:2", wrong), first.manifest, "x:1"},
		"by what an earlier one wrote":    {class("x:2", kept(string(first.manifest))), nil, "x:1"},
		"not by what somebody damaged":    {class("x:2", kept(`{"metadata":{"name":"web"},"spec":{}}`)), nil, ""},
		"not by what is another class's":  {class("x:2", kept(strings.Replace(string(first.manifest), `"web"`, `"other"`, 1))), nil, ""},
		"not if it never was another one": {class("x:2", wrong), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := judgeClass(tc.o, tc.before)
			if v.rejected == "" || (v.manifest != nil) != (tc.want != "") || !strings.Contains(string(v.manifest), tc.want) {
				t.Errorf("verdict = %s, rejected %q", v.manifest, v.rejected)
			}
		})
	}
	if revisionOf([][]byte{first.manifest}) == revisionOf(nil) || revisionOf([][]byte{[]byte("ab")}) == revisionOf([][]byte{[]byte("a"), []byte("b")}) {
		t.Error("two sets have one revision")
	}
}
