package monitoring

import (
	"flag"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write "+OperatorFile+" anew from "+RulesFile)

const root = "../.."

func deploy() fs.FS { return os.DirFS(root + "/deploy") }

func rules(t *testing.T) Rules {
	t.Helper()
	r, err := ReadRules(deploy())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Alerts()) == 0 {
		t.Fatal("no alerts")
	}
	return r
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(root + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var metricRow = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([a-z]+) \\| (.*?) \\|")

// documented are the metrics of docs/metrics.md with their labels. A metric that
// agent and controller have may have different labels; both count.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, row := range metricRow.FindAllStringSubmatch(read(t, "docs/metrics.md"), -1) {
		labels := all[row[1]]
		for _, l := range strings.Split(row[3], ",") {
			if l = strings.Trim(strings.TrimSpace(l), "`"); l != "none" {
				labels = append(labels, l)
			}
		}
		if row[2] == "histogram" {
			labels = append(labels, "le")
		}
		all[row[1]] = labels
	}
	if len(all) < 20 {
		t.Fatalf("docs/metrics.md was not understood: %d metrics", len(all))
	}
	return all
}

// ofTarget are the labels that a scrape adds.
var ofTarget = []string{"job", "instance"}

func TestQueriesReadOnlyMetricsAndLabelsThatExist(t *testing.T) {
	queries, err := Queries(deploy())
	if err != nil {
		t.Fatal(err)
	}
	known := documented(t)
	for _, q := range queries {
		for _, s := range Selectors(q.Expr) {
			name := family(s.Metric, func(n string) bool { return known[n] != nil })
			labels, ok := known[name]
			if !ok {
				t.Errorf("%s reads %s, which docs/metrics.md does not have", q.Where, s.Metric)
				continue
			}
			for _, l := range s.Labels {
				if !slices.Contains(labels, l) && !slices.Contains(ofTarget, l) {
					t.Errorf("%s reads %s by label %s; it has %v", q.Where, s.Metric, l, labels)
				}
			}
		}
	}
	for _, name := range faultOnly {
		if known[name] == nil {
			t.Errorf("faultOnly has %s, which does not exist", name)
		}
	}
}

func TestMissingNamesTheQuery(t *testing.T) {
	queries := []Query{
		{"alert A", `sum(rate(hearth_a_seconds_bucket{class=~"x,y"}[5m])) / hearth_b > 0`},
		{"panel P", "hearth_slots_dead_total"},
	}
	got := Missing(queries, []string{"hearth_a_seconds_bucket", "hearth_c"})
	if diff := cmp.Diff([]string{"alert A reads hearth_b, which nothing exports"}, got); diff != "" {
		t.Error(diff)
	}
	want := []Selector{{Metric: "hearth_a_seconds_bucket", Labels: []string{"class"}}, {Metric: "hearth_b"}}
	if diff := cmp.Diff(want, Selectors(queries[0].Expr)); diff != "" {
		t.Error(diff)
	}
}

var (
	anchorChars = regexp.MustCompile(`[^a-z0-9_-]`)
	section     = regexp.MustCompile(`(?m)^### (Hearth\w+)$`)
)

func TestEveryAlertIsWellFormedAndHasItsPage(t *testing.T) {
	var sections []string
	for _, m := range section.FindAllStringSubmatch(read(t, "docs/runbook.md"), -1) {
		sections = append(sections, m[1])
	}
	var alerts []string
	for _, r := range rules(t).Alerts() {
		alerts = append(alerts, r.Alert)
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s has severity %q", r.Alert, r.Labels["severity"])
		}
		for _, a := range []string{"summary", "description"} {
			if r.Annotations[a] == "" {
				t.Errorf("%s has no %s", r.Alert, a)
			}
		}
		anchor := anchorChars.ReplaceAllString(strings.ToLower(r.Alert), "")
		if got, want := r.Annotations["runbook_url"], "docs/runbook.md#"+anchor; got != want {
			t.Errorf("%s has runbook_url %s, want %s", r.Alert, got, want)
		}
	}
	slices.Sort(alerts)
	slices.Sort(sections)
	if diff := cmp.Diff(alerts, sections); diff != "" {
		t.Errorf("alerts (-) and sections of docs/runbook.md (+) differ:\n%s", diff)
	}
}

// promtest is a file of `promtool test rules`.
type promtest struct {
	Tests []struct {
		Checks []struct {
			Alert string           `json:"alertname"`
			Fires []map[string]any `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	}
}

func TestEveryAlertIsTestedToFireAndNotToFire(t *testing.T) {
	files, err := fs.ReadDir(deploy(), TestsDir)
	if err != nil {
		t.Fatal(err)
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		var p promtest
		if err := yaml.Unmarshal([]byte(read(t, path.Join("deploy", TestsDir, f.Name()))), &p); err != nil {
			t.Fatalf("%s: %v", f.Name(), err)
		}
		for _, test := range p.Tests {
			for _, c := range test.Checks {
				if len(c.Fires) > 0 {
					fires[c.Alert] = true
				} else {
					silent[c.Alert] = true
				}
			}
		}
	}
	for _, r := range rules(t).Alerts() {
		if !fires[r.Alert] {
			t.Errorf("no test makes %s fire", r.Alert)
		}
		if !silent[r.Alert] {
			t.Errorf("no test keeps %s silent", r.Alert)
		}
	}
}

const operatorHead = `# Made from ../rules.yaml by: go test ./test/monitoring -update
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: hearth
  namespace: hearth-system
  labels:
    app.kubernetes.io/part-of: hearth
spec:
`

func TestTheOperatorsRulesAreTheSame(t *testing.T) {
	_, groups, found := strings.Cut(read(t, "deploy/"+RulesFile), "groups:\n")
	if !found {
		t.Fatal("the rules have no groups")
	}
	want := operatorHead + "  groups:\n"
	for line := range strings.Lines(groups) {
		if strings.TrimSpace(line) != "" {
			line = "  " + line
		}
		want += line
	}
	if *update {
		if err := os.WriteFile(root+"/deploy/"+OperatorFile, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, read(t, "deploy/"+OperatorFile)); diff != "" {
		t.Errorf("run go test ./test/monitoring -update:\n%s", diff)
	}
	var object struct{ Spec Rules }
	if err := yaml.Unmarshal([]byte(read(t, "deploy/"+OperatorFile)), &object); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rules(t), object.Spec); diff != "" {
		t.Error(diff)
	}
}
