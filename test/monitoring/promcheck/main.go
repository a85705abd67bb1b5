// Promcheck holds alerts, scrape configuration and dashboard against a real
// promtool: what users apply is parsed by what reads it, and every alert's tests
// are run.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"hearth/test/monitoring"
)

func main() {
	promtool := flag.String("promtool", "promtool", "the program")
	deploy := flag.String("deploy", "deploy", "directory of the manifests")
	flag.Parse()
	if err := run(*promtool, *deploy); err != nil {
		fmt.Fprintln(os.Stderr, "promcheck:", err)
		os.Exit(1)
	}
}

func run(promtool, deploy string) error {
	tool := func(args ...string) error {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("promtool %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	queries, err := monitoring.Queries(os.DirFS(deploy))
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "promcheck")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	records, err := asRules(queries)
	if err != nil {
		return err
	}
	dashboard := filepath.Join(scratch, "dashboard.yaml")
	if err := os.WriteFile(dashboard, records, 0o600); err != nil {
		return err
	}
	tests, err := filepath.Glob(filepath.Join(deploy, monitoring.TestsDir, "*.yaml"))
	if err != nil || len(tests) == 0 {
		return fmt.Errorf("no tests in %s: %w", monitoring.TestsDir, err)
	}
	shipped, err := os.ReadFile(filepath.Join(deploy, monitoring.ScrapeFile))
	if err != nil {
		return err
	}
	config, err := monitoring.FileDiscovery(shipped, scratch)
	if err != nil {
		return err
	}
	scrape := filepath.Join(scratch, "scrape.yaml")
	if err := os.WriteFile(scrape, config, 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"check", "config", "--syntax-only", scrape},
		{"check", "rules", "--lint-fatal", filepath.Join(deploy, monitoring.RulesFile)},
		{"check", "rules", dashboard},
		append([]string{"test", "rules"}, tests...),
	} {
		if err := tool(args...); err != nil {
			return err
		}
	}
	fmt.Printf("alerts: ok, %d queries, %d files of tests\n", len(queries), len(tests))
	return nil
}

// variables of Grafana, as it would fill them in.
var variables = strings.NewReplacer("$__rate_interval", "5m", "$node", ".*", "$class", ".*")

// asRules makes a rule file of the dashboard's queries, since promtool parses
// expressions nowhere else. Variables' definitions are Grafana's own language.
func asRules(queries []monitoring.Query) ([]byte, error) {
	type record struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []record
	for _, q := range queries {
		if strings.HasPrefix(q.Where, "panel ") {
			rules = append(rules, record{fmt.Sprintf("panel:query:%d", len(rules)), variables.Replace(q.Expr)})
		}
	}
	return yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
}
