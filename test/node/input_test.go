package node

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func TestNodeUnknownClassNamesThoseThatThereAre(t *testing.T) {
	a := node(t)
	a.refused(t, 1, []string{`"nonesuch"`, "bare", "web"}, "claim", "--class", "nonesuch")
}

func TestNodeMissingImageNamesItAndTheMend(t *testing.T) {
	a := node(t)
	a.refused(t, 1, []string{`"not-imported:1"`, "class nowhere", "nodeagent image import"}, "claim", "--class", "nowhere")
	// Its registry has no route here.
	a.refused(t, 4, []string{`"198.51.100.2:5000/none/such:1"`, "class unpulled"}, "claim", "--class", "unpulled")
}

func TestNodeBadImageArchiveIsRefused(t *testing.T) {
	a := node(t)
	for name, content := range map[string]string{
		"text.tar": "this is no archive\n", "empty.tar": "", "zeros.tar": strings.Repeat("\x00", 10240),
		"half.tar": string(half(t, a.Image())),
	} {
		a.write(t, name, content)
		out, code := a.nodeagent("image", "import", a.Path(name))
		if code != 2 {
			t.Errorf("import of %s: exit %d, want 2", name, code)
		}
		holds(t, out, name)
	}
	out, code := a.nodeagent("image", "import", a.Path("none.tar"))
	if code == 0 {
		t.Error("import of a file that is not there: exit 0")
	}
	holds(t, out, "none.tar")
}

// half is the first half of a file.
func half(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return b[:len(b)/2]
}

func TestNodeUnknownKeysAreNamedWithFileLineAndNearest(t *testing.T) {
	a := node(t)
	good, err := os.ReadFile(a.Path("nodeagent.yaml"))
	ok(t, err)
	a.write(t, "misspelt.yaml", string(good)+"limit: {slots: 3}\n")
	line := strings.Count(string(good), "\n") + 1
	out, code := run2(a.Program("nodeagent"), "run", "--config", a.Path("misspelt.yaml"))
	if code != 2 {
		t.Errorf("exit %d, want 2", code)
	}
	holds(t, out, sprintf("misspelt.yaml:%d:", line), "limit: unknown key", "did you mean limits?")

	a.write(t, "elsewhere/broken.yaml", manifest("broken", "  image: x:1\n  resources: {memroy: 1Gi}\n"))
	a.write(t, "elsewhere.yaml", strings.Replace(string(good), "/classes\n", "/elsewhere\n", 1))
	out, code = run2(a.Program("nodeagent"), "run", "--config", a.Path("elsewhere.yaml"))
	if code != 2 {
		t.Errorf("exit %d, want 2", code)
	}
	holds(t, out, "broken.yaml:7:", "spec.resources.memroy: unknown key", "did you mean memory?")
}

func run2(name string, args ...string) (string, int) {
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestNodeSecondAgentOnTheSameStateIsRefused(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web")
	defer a.release(t, c)
	pid, err := a.PID("agent")
	ok(t, err)
	out, code := a.nodeagent("run")
	if code != 3 {
		t.Errorf("exit %d, want 3", code)
	}
	holds(t, out, a.Path("state")+"/agent.lock", sprintf("process %d", pid), "stop it")
	a.alive(t, c)
}

func TestNodeCleanupRefusesWhileAnAgentRuns(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web")
	defer a.release(t, c)
	for _, args := range [][]string{{"cleanup"}, {"cleanup", "--all"}} {
		out, code := a.nodeagent(args...)
		if code != 3 {
			t.Errorf("%v: exit %d, want 3", args, code)
		}
		holds(t, out, "stop the agent first", "agent.lock")
	}
	a.alive(t, c)
}

func TestNodeOversizedRequestsAreRefused(t *testing.T) {
	a := node(t)
	claim := func(spec *hearthv1.ClaimSpec) error {
		spec.Class = "web"
		_, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: spec})
		return err
	}
	large := strings.Repeat("x", 64<<10)
	fails(t, claim(&hearthv1.ClaimSpec{Variables: map[string]string{"A": large}}), env.ErrInvalid, "variables of", "at most 65536")
	fails(t, claim(&hearthv1.ClaimSpec{Metadata: []byte(`"` + large + `"`)}), env.ErrInvalid, "metadata of", "at most 65536")
	fails(t, claim(&hearthv1.ClaimSpec{Metadata: []byte(`{`)}), env.ErrInvalid, "metadata is not JSON")
	fails(t, claim(&hearthv1.ClaimSpec{Hostname: strings.Repeat("h", 64)}), env.ErrInvalid, "hostname")
	fails(t, claim(&hearthv1.ClaimSpec{Hostname: "../../etc"}), env.ErrInvalid, "hostname")
	fails(t, claim(&hearthv1.ClaimSpec{Variables: map[string]string{"A=B": "x"}}), env.ErrInvalid, "variable name")
	fails(t, claim(&hearthv1.ClaimSpec{Variables: map[string]string{"A": strings.Repeat("x", 5<<20)}}), env.ErrExhausted, "4194304")
	a.refused(t, 2, []string{"65536"}, "claim", "--class", "web", "--metadata", "@"+a.Image())

	// What is just allowed arrives whole.
	value := strings.Repeat("v", 60<<10)
	c := a.claimSpec(t, &hearthv1.ClaimSpec{Class: "web", Variables: map[string]string{"A": value}})
	out, err := a.Hearthctl.Sh(c, `printf %s "$A" | wc -c`)
	if err != nil || strings.TrimSpace(out) != sprintf("%d", len(value)) {
		t.Errorf("the variable arrives with %q bytes, want %d: %v", out, len(value), err)
	}
	a.release(t, c)
}

func TestNodePreflightExitsWithWhatItFound(t *testing.T) {
	a := node(t)
	type row struct {
		State, Feature, Mend string
		Required             bool
	}
	check := func(want int, args ...string) []row {
		t.Helper()
		cmd := exec.Command(a.Program("nodeagent"), append([]string{"preflight", "-o", "json"}, args...)...)
		out, err := cmd.Output()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("preflight %v: exit %d, want %d: %s", args, got, want, out)
		}
		var report struct{ Rows []row }
		ok(t, json.Unmarshal(out, &report))
		missing := 0
		for _, r := range report.Rows {
			if r.State != "ok" && r.Mend == "" {
				t.Errorf("row %s is %s and has no mend", r.Feature, r.State)
			}
			if r.State == "missing" && r.Required {
				missing++
			}
		}
		if (missing > 0) != (want == 3) || len(report.Rows) < 10 {
			t.Errorf("preflight %v: %d rows, %d required ones missing, exit %d", args, len(report.Rows), missing, want)
		}
		return report.Rows
	}
	free := newAgent(t, a.Beside("hearthfree"), 7431, nil, "")
	defer os.RemoveAll(free.Dir())
	check(0, "--config", free.Path("nodeagent.yaml"))
	good, err := os.ReadFile(free.Path("nodeagent.yaml"))
	ok(t, err)
	free.write(t, "none.yaml", strings.Replace(string(good), a.RuntimeDir(), "/nonexistent/bin", 1))
	rows := check(3, "--config", free.Path("none.yaml"))
	for _, r := range rows {
		if strings.Contains(strings.ToLower(r.Feature), "runc") && r.State == "ok" {
			t.Errorf("row %s is ok without a runc", r.Feature)
		}
	}
}
