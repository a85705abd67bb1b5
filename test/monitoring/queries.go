package monitoring

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Files below deploy/.
const (
	RulesFile     = "prometheus/rules.yaml"
	OperatorFile  = "prometheus/operator/prometheusrule.yaml"
	TestsDir      = "prometheus/tests"
	DashboardFile = "grafana/hearth.json"
)

// Rules is a Prometheus rule file.
type Rules struct {
	Groups []Group `json:"groups"`
}

// Group is evaluated together.
type Group struct {
	Name  string `json:"name"`
	Rules []Rule `json:"rules"`
}

// Rule is one alert.
type Rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// Query is an expression and where it stands.
type Query struct {
	Where string // "alert HearthAgentDown", "panel Claims a second"
	Expr  string
}

// ReadRules reads deploy/prometheus/rules.yaml; deploy is that directory.
func ReadRules(deploy fs.FS) (Rules, error) {
	var r Rules
	b, err := fs.ReadFile(deploy, RulesFile)
	if err != nil {
		return r, err
	}
	if err := yaml.UnmarshalStrict(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", RulesFile, err)
	}
	return r, nil
}

// Alerts are the rules of all groups, in order.
func (r Rules) Alerts() []Rule {
	var all []Rule
	for _, g := range r.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// dashboard is what matters here of Grafana's model.
type dashboard struct {
	Templating struct {
		List []struct {
			Name, Definition string
		}
	}
	Panels []struct {
		Title   string
		Targets []struct{ Expr string }
	}
}

// Queries are those of all alerts, and of all panels and variables of the
// dashboard.
func Queries(deploy fs.FS) ([]Query, error) {
	rules, err := ReadRules(deploy)
	if err != nil {
		return nil, err
	}
	var all []Query
	for _, r := range rules.Alerts() {
		all = append(all, Query{"alert " + r.Alert, r.Expr})
	}
	b, err := fs.ReadFile(deploy, DashboardFile)
	if err != nil {
		return nil, err
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", DashboardFile, err)
	}
	for _, v := range d.Templating.List {
		if v.Definition != "" {
			all = append(all, Query{"variable " + v.Name, v.Definition})
		}
	}
	for _, p := range d.Panels {
		for _, t := range p.Targets {
			all = append(all, Query{"panel " + p.Title, t.Expr})
		}
	}
	return all, nil
}

// Selector is a metric's name as it stands in an expression, with the labels
// that its matchers name.
type Selector struct {
	Metric string
	Labels []string
}

var (
	selector = regexp.MustCompile(`\b(hearth_[a-z0-9_]+)(?:\{([^}]*)\})?`)
	// Label values may hold commas, so a matcher is found by its operator.
	matcher = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"`)
)

// Selectors finds the metrics of ours that an expression reads.
func Selectors(expr string) []Selector {
	var found []Selector
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		s := Selector{Metric: m[1]}
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			s.Labels = append(s.Labels, l[1])
		}
		found = append(found, s)
	}
	return found
}

// Missing names each query that reads a metric which is not among exported, the
// names of the series that there are (a histogram's end in _bucket, _sum and
// _count). Names in faultOnly may be missing: nothing makes a series of theirs
// until something goes wrong.
func Missing(queries []Query, exported []string) []string {
	var faults []string
	for _, q := range queries {
		for _, s := range Selectors(q.Expr) {
			if !slices.Contains(exported, s.Metric) && !slices.Contains(faultOnly, s.Metric) {
				faults = append(faults, fmt.Sprintf("%s reads %s, which nothing exports", q.Where, s.Metric))
			}
		}
	}
	return slices.Compact(faults)
}

// faultOnly are counters by label whose first series comes with the first fault
// of its kind, so a healthy cluster does not have them.
var faultOnly = []string{
	"hearth_slot_prepare_failures_total",
	"hearth_slots_dead_total",
}

// family is a series' metric: a histogram has three series of one metric.
func family(series string, known func(string) bool) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if name, cut := strings.CutSuffix(series, suffix); cut && known(name) {
			return name
		}
	}
	return series
}
