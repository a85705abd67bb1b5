// Package obstest compares the metrics that a program registers with their
// documentation. It is imported by tests only.
package obstest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// prefix is that of our own metrics; those of the Go runtime are not ours.
const prefix = "hearth_"

var (
	// described reads prometheus.Desc's String, which is all that a Desc shows.
	described = regexp.MustCompile(`fqName: "([^"]*)", .*constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`)
	// row is a line of a table: | `name` | kind | `label`, `label` | meaning |
	row   = regexp.MustCompile("^\\| `(hearth_[a-z_]+)` \\| (counter|gauge|histogram) \\| ([^|]*) \\| [^|]+ \\|$")
	label = regexp.MustCompile("`([a-z]+)`")
)

// entry is what the document and the registry must agree on.
type entry struct {
	Kind   string // "" if the registry has no sample yet and so does not tell
	Labels string // sorted, joined by commas
}

// Documented fails the test unless the section of the Markdown file at path, a
// heading of the second level, lists exactly the metrics of reg that are ours,
// with their labels and kinds.
func Documented(t testing.TB, reg *prometheus.Registry, path, section string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	have := registered(t, reg)
	want := listed(t, string(text), section)
	for name, e := range have {
		if listed, ok := want[name]; ok && e.Kind == "" {
			e.Kind = listed.Kind
			have[name] = e
		}
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("%s, section %q: - is documented, + is registered:\n%s", path, section, diff)
	}
}

// registered asks the registry for its descriptors, and for the kinds of those
// metrics that have samples.
func registered(t testing.TB, reg *prometheus.Registry) map[string]entry {
	t.Helper()
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		reg.Describe(descs)
	}()
	out := map[string]entry{}
	for d := range descs {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			t.Errorf("unreadable descriptor %s", d)
			continue
		}
		if strings.HasPrefix(m[1], prefix) {
			out[m[1]] = entry{Labels: joined(append(names(m[2]), names(m[3])...))}
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		if e, ok := out[f.GetName()]; ok {
			e.Kind = strings.ToLower(f.GetType().String())
			out[f.GetName()] = e
		}
	}
	return out
}

// names takes the labels out of `a,b` or `a="x",b="y"`.
func names(list string) []string {
	var out []string
	for part := range strings.SplitSeq(list, ",") {
		name, _, _ := strings.Cut(part, "=")
		if name != "" {
			out = append(out, name)
		}
	}
	return out
}

// listed reads the rows of one section.
func listed(t testing.TB, text, section string) map[string]entry {
	t.Helper()
	out := map[string]entry{}
	here := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			here = heading == section
		}
		if !here || !strings.HasPrefix(line, "| `"+prefix) {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not a row of name, kind, labels and meaning: %s", line)
			continue
		}
		if _, twice := out[m[1]]; twice {
			t.Errorf("%s is listed twice", m[1])
		}
		var labels []string
		for _, l := range label.FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		out[m[1]] = entry{Kind: m[2], Labels: joined(labels)}
	}
	if len(out) == 0 {
		t.Errorf("no section %q with metrics", section)
	}
	return out
}

func joined(labels []string) string {
	slices.Sort(labels)
	return strings.Join(labels, ",")
}
