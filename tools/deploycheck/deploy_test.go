package deploycheck

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEveryBaseRenders(t *testing.T) {
	for _, base := range bases {
		t.Run("deploy/"+base, func(t *testing.T) { render(t, base) })
	}
}

func TestObjectsAreOursAndInOurNamespaces(t *testing.T) {
	generated := []string{"CustomResourceDefinition"}
	for _, o := range everything(t) {
		what := o.Kind + " " + o.Metadata.Name
		if n := o.Metadata.Namespace; n != "" && n != "hearth-system" && n != "hearth-nodes" {
			t.Errorf("%s is in namespace %s", what, n)
		}
		if o.Metadata.Labels["app.kubernetes.io/part-of"] != "hearth" && !slices.Contains(generated, o.Kind) {
			t.Errorf("%s has no label app.kubernetes.io/part-of=hearth", what)
		}
	}
}

// What the controller fills must come empty: applying it again must not take
// anything away.
func TestStateComesEmpty(t *testing.T) {
	want := []string{"ConfigMap/hearth-nodes/hearth-ca", "ConfigMap/hearth-system/hearth-ca", "Secret/hearth-system/hearth-ca", "Secret/hearth-system/hearth-controller"}
	var found []string
	for _, o := range render(t, "") {
		if name := o.Metadata.Name; o.Kind == "Secret" || o.Kind == "ConfigMap" && name == "hearth-ca" {
			found = append(found, o.Kind+"/"+o.Metadata.Namespace+"/"+name)
			if len(o.Data) > 0 || strings.Contains(o.text, "\nstringData:") {
				t.Errorf("%s %s has content", o.Kind, name)
			}
		}
	}
	slices.Sort(found)
	if !slices.Equal(found, want) {
		t.Errorf("got %v, want %v", found, want)
	}
}

var tagged = regexp.MustCompile(`^hearth/[a-z]+:devel$`)

func TestContainersSayWhatTheyAreAndNeed(t *testing.T) {
	found := pods(everything(t))
	if len(found) != 2 {
		t.Fatalf("pods of %v, want those of controller and agent", found)
	}
	for owner, pod := range found {
		if pod.PriorityClassName == "" || pod.TerminationGracePeriodSeconds == 0 {
			t.Errorf("%s has no priority class or no grace period", owner)
		}
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			if !tagged.MatchString(c.Image) {
				t.Errorf("%s has image %s; overlays replace hearth/…:devel", c.Name, c.Image)
			}
			if c.SecurityContext == nil {
				t.Errorf("%s has no securityContext", c.Name)
			}
			if c.Resources.Requests["cpu"] == "" || c.Resources.Requests["memory"] == "" {
				t.Errorf("%s requests %v", c.Name, c.Resources.Requests)
			}
			if c.StartupProbe == nil || c.ReadinessProbe == nil || c.LivenessProbe == nil {
				t.Errorf("%s has not all probes", c.Name)
			}
		}
	}
}

func TestTheControllerIsRestricted(t *testing.T) {
	pod := pods(render(t, ""))["hearth-controller"]
	if !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" || pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Errorf("pod %+v", pod.SecurityContext)
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		s := c.SecurityContext
		if s.Privileged || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem ||
			!slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || len(s.Capabilities.Add) > 0 {
			t.Errorf("%s: %+v", c.Name, s)
		}
	}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			t.Errorf("volume %s is of the host", v.Name)
		}
	}
}

func TestTwoAgentsCanBeOnANodeWhileOneHandsOver(t *testing.T) {
	for _, o := range render(t, "daemonset") {
		if o.Kind != "DaemonSet" {
			continue
		}
		if u := o.Spec.UpdateStrategy.RollingUpdate; u.MaxSurge != 1 || u.MaxUnavailable != 0 {
			t.Errorf("update strategy %+v", u)
		}
		for _, c := range o.Spec.Template.Spec.Containers {
			if len(c.Ports) > 0 {
				t.Errorf("%s declares ports %v: on the host's network they keep a second agent away", c.Name, c.Ports)
			}
		}
	}
}

const securityPage = "docs/security.md"

// listed are the backquoted first cells of the table whose head begins with word.
func listed(t *testing.T, word string) []string {
	t.Helper()
	text := chapter(t, document(t, securityPage), "### What the agent gets from its node")
	_, table, found := strings.Cut(text, "| "+word+" |")
	if !found {
		t.Fatalf("no table of %s", word)
	}
	table, _, _ = strings.Cut("| "+word+" |"+table, "\n\n")
	var names []string
	for _, cells := range rows(table) {
		if len(cells) < 2 || cells[1] == "" {
			t.Errorf("%s has no reason", cells[0])
		}
		names = append(names, strings.Trim(cells[0], "`"))
	}
	return names
}

func TestEveryHostPathHasItsReason(t *testing.T) {
	pod := pods(render(t, ""))["hearth-nodeagent"]
	byVolume := map[string]string{}
	var paths []string
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			byVolume[v.Name] = v.HostPath.Path
			paths = append(paths, v.HostPath.Path)
			if v.HostPath.Type == "" {
				t.Errorf("%s has no type: a path that is missing would be made up", v.HostPath.Path)
			}
		}
	}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			path, ofHost := byVolume[m.Name]
			if !ofHost {
				continue
			}
			if m.MountPath != path {
				t.Errorf("%s is %s inside; containerd is told paths, so they must be the same", path, m.MountPath)
			}
			if m.MountPropagation != "HostToContainer" {
				t.Errorf("%s has propagation %q", path, m.MountPropagation)
			}
		}
	}
	same(t, "host paths", paths, listed(t, "host path"))
}

func TestEveryPrivilegeHasItsReason(t *testing.T) {
	pod := pods(render(t, ""))["hearth-nodeagent"]
	var privileges []string
	for _, c := range pod.Containers {
		if c.SecurityContext.Privileged {
			privileges = append(privileges, "privileged")
		}
		privileges = append(privileges, c.SecurityContext.Capabilities.Add...)
	}
	same(t, "privileges", privileges, listed(t, "privilege"))
}

// same compares what the manifests have with what the page lists, as sets.
func same(t *testing.T, what string, have, page []string) {
	t.Helper()
	have, page = slices.Sorted(slices.Values(have)), slices.Sorted(slices.Values(page))
	for _, h := range slices.Compact(have) {
		if !slices.Contains(page, h) {
			t.Errorf("%s: %s has no row in %s", what, h, securityPage)
		}
	}
	for _, p := range page {
		if !slices.Contains(have, p) {
			t.Errorf("%s: %s is in %s and in no manifest", what, p, securityPage)
		}
	}
}

func TestEveryRightHasItsReason(t *testing.T) {
	var rights []string
	for _, o := range everything(t) {
		if o.Kind != "Role" && o.Kind != "ClusterRole" {
			continue
		}
		where := "cluster"
		if o.Kind == "Role" {
			where = o.Metadata.Namespace
		}
		for _, r := range o.Rules {
			checkRule(t, o.Metadata.Name, r)
			for _, what := range whats(r) {
				rights = append(rights, fmt.Sprintf("%s | %s | %s | %s", o.Metadata.Name, where, what, strings.Join(r.Verbs, ", ")))
			}
		}
	}
	var page []string
	for _, cells := range rows(chapter(t, document(t, securityPage), "### Rights of the Kubernetes API")) {
		if len(cells) != 5 || cells[4] == "" {
			t.Errorf("row %v has no reason", cells)
			continue
		}
		page = append(page, fmt.Sprintf("%s | %s | %s | %s", strings.Trim(cells[0], "`"), cells[1], cells[2], cells[3]))
	}
	same(t, "rights", rights, page)
}

// A role is worth what it is bound to: everybody may read the authority's
// certificate, and nobody but our own accounts gets anything else from us.
func TestRolesAreBoundToOurAccountsAlone(t *testing.T) {
	all := everything(t)
	roles := map[string]bool{}
	for _, o := range all {
		if o.Kind == "Role" || o.Kind == "ClusterRole" {
			roles[o.Kind+"/"+o.Metadata.Namespace+"/"+o.Metadata.Name] = true
		}
	}
	everybody := reference{Kind: "Group", Name: "system:authenticated"}
	found := 0
	for _, o := range all {
		if o.Kind != "RoleBinding" && o.Kind != "ClusterRoleBinding" {
			continue
		}
		found++
		what, in := o.Kind+" "+o.Metadata.Namespace+"/"+o.Metadata.Name, o.Metadata.Namespace
		if o.RoleRef.Kind == "ClusterRole" {
			in = ""
		}
		if !roles[o.RoleRef.Kind+"/"+in+"/"+o.RoleRef.Name] {
			t.Errorf("%s is of %s %s, which is none of ours", what, o.RoleRef.Kind, o.RoleRef.Name)
		}
		if len(o.Subjects) == 0 {
			t.Errorf("%s is for nobody", what)
		}
		for _, s := range o.Subjects {
			ours := s.Kind == "ServiceAccount" && (s.Namespace == "hearth-system" || s.Namespace == "hearth-nodes")
			if !ours && (o.Kind != "RoleBinding" || o.RoleRef.Name != "hearth-ca-reader" || s != everybody) {
				t.Errorf("%s gives %s to %+v", what, o.RoleRef.Name, s)
			}
		}
	}
	if found < 4 {
		t.Errorf("only %d bindings were found", found)
	}
}

// whats are a rule's objects as the page writes them.
func whats(r rule) []string {
	if len(r.NonResourceURLs) > 0 {
		return []string{quoted(r.NonResourceURLs)}
	}
	var all []string
	for _, resource := range r.Resources {
		what := quoted([]string{resource})
		if len(r.ResourceNames) > 0 {
			what += " names " + quoted(r.ResourceNames)
		}
		all = append(all, what)
	}
	return all
}

func quoted(words []string) string { return "`" + strings.Join(words, "` `") + "`" }

// checkRule refuses what no role of ours may have.
func checkRule(t *testing.T, role string, r rule) {
	t.Helper()
	for _, word := range slices.Concat(r.APIGroups, r.Resources, r.Verbs, r.NonResourceURLs) {
		if strings.Contains(word, "*") {
			t.Errorf("%s has a wildcard: %+v", role, r)
		}
	}
	for _, verb := range []string{"escalate", "bind", "impersonate"} {
		if slices.Contains(r.Verbs, verb) {
			t.Errorf("%s may %s", role, verb)
		}
	}
	if slices.Contains(r.Resources, "secrets") && (len(r.ResourceNames) == 0 || slices.Contains(r.Verbs, "list") || slices.Contains(r.Verbs, "watch")) {
		t.Errorf("%s may read secrets that are not its own: %+v", role, r)
	}
	for _, resource := range []string{
		"serviceaccounts/token", "pods/exec", "pods/attach", "pods/portforward", "nodes/proxy", "pods/ephemeralcontainers", "pods/binding",
	} {
		if slices.Contains(r.Resources, resource) {
			t.Errorf("%s has %s", role, resource)
		}
	}
}
