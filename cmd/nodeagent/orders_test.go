package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/env"
)

const baseManifest = `{"apiVersion":"hearth.run/v1alpha1","kind":"EnvironmentClass","metadata":{"name":"base"},"spec":{"image":"busybox:1"}}`

// ordersIn makes orders with a state directory and one for classes.
func ordersIn(t *testing.T, dir string, controller bool) (*orders, *durable.Dir) {
	t.Helper()
	state, err := durable.OpenDir(filepath.Join(dir, "state"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { state.Close() })
	cfg := config.DefaultAgent(config.Host{Name: "n", Executable: "/x/nodeagent", MemoryBytes: 8 << 30})
	cfg.ClassesDir = filepath.Join(dir, "classes")
	if controller {
		cfg.Controller = &config.ControllerLink{Kubernetes: &config.ControllerKube{}}
	}
	o, err := newOrders(cfg, state, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return o, state
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// names lists classes.
func names(classes []*env.Class) string {
	out := make([]string, len(classes))
	for i, c := range classes {
		out[i] = c.Name
	}
	return strings.Join(out, " ")
}

func TestClassesOfTheControllerWinOverTheDirectoryIfThereIsAController(t *testing.T) {
	dir := t.TempDir()
	local := strings.Replace(baseManifest, "base", "local", 1)
	kept := `{"revision":"7","manifests":[` + baseManifest + `]}`
	for _, step := range []struct {
		name       string
		controller bool
		prepare    func(state string)
		want       string
		revision   string
	}{
		{"nothing at all", true, func(string) {}, "", ""},
		{"the directory", true, func(string) { write(t, dir+"/classes/local.json", local) }, "local", ""},
		{"the controller's", true, func(state string) { write(t, state+"/classes.json", kept) }, "base", "7"},
		{"without a controller", false, func(string) {}, "local", ""},
		{"damaged", true, func(state string) { write(t, state+"/classes.json", kept[:50]) }, "local", ""},
		{"of a newer version", true, func(state string) { write(t, state+"/classes.json", strings.Replace(kept, "image", "picture", 1)) }, "local", ""},
	} {
		o, state := ordersIn(t, dir, step.controller)
		step.prepare(state.Path())
		classes, err := o.classes()
		if err != nil || names(classes) != step.want || o.ClassesRevision() != step.revision {
			t.Errorf("%s: classes %q of revision %q, %v; want %q of %q", step.name, names(classes), o.ClassesRevision(), err, step.want, step.revision)
		}
	}
	o, _ := ordersIn(t, t.TempDir(), false)
	if _, err := o.classes(); err == nil {
		t.Error("an agent alone started without its directory of classes")
	}
}

func TestAWrongClassRefusesTheWholeSetByName(t *testing.T) {
	o, state := ordersIn(t, t.TempDir(), true)
	wrong := strings.Replace(strings.Replace(baseManifest, "base", "odd", 1), "busybox:1", "no image", 1)
	err := o.SetClasses(t.Context(), "1", [][]byte{[]byte(baseManifest), []byte(wrong)})
	if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), `"odd"`) || !strings.Contains(err.Error(), "spec.image") {
		t.Errorf("set = %v", err)
	}
	if _, err := state.ReadFile(classesFile, maxClasses); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("a refused set was kept: %v", err)
	}
}

func TestABudgetIsKeptAndADamagedOneIsNamed(t *testing.T) {
	dir := t.TempDir()
	o, state := ordersIn(t, dir, true)
	if got := o.memory(); got != int64(o.cfg.Limits.Memory) {
		t.Errorf("memory without a budget = %d", got)
	}
	write(t, state.Path()+"/"+budgetFile, `{"memoryBytes":1234,"cpuMillis":500}`)
	o, _ = ordersIn(t, dir, true)
	if got := o.memory(); got != 1234 {
		t.Errorf("memory = %d, want the controller's", got)
	}
	write(t, state.Path()+"/"+budgetFile, `{`)
	if _, err := newOrders(o.cfg, state, o.log); !errors.Is(err, env.ErrCorrupt) || !strings.Contains(err.Error(), budgetFile) {
		t.Errorf("damaged = %v", err)
	}
	if err := o.SetBudget(t.Context(), 1<<63, 0); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("absurd budget = %v", err)
	}
}

func TestAfterAHandOverNothingIsWritten(t *testing.T) {
	o, state := ordersIn(t, t.TempDir(), true)
	o.close()
	for name, err := range map[string]error{
		"classes": o.SetClasses(t.Context(), "1", nil), "budget": o.SetBudget(t.Context(), 1<<30, 0),
	} {
		if !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("%s = %v, want ErrUnavailable", name, err)
		}
	}
	if err := o.reload(t.Context()); err != nil {
		t.Errorf("reload = %v", err)
	}
	if list, err := state.List(); err != nil || len(list) != 0 {
		t.Errorf("written: %v, %v", list, err)
	}
}

func TestEnvinitIsCopiedOnceUnderItsHash(t *testing.T) {
	dir := t.TempDir()
	copies, err := durable.OpenDir(filepath.Join(dir, "init"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer copies.Close()
	binary := filepath.Join(dir, "envinit")
	write(t, binary, "one")
	first, err := copyInit(copies, binary)
	if err != nil || !strings.HasPrefix(first, initPrefix) || len(first) != len(initPrefix)+64 {
		t.Fatalf("copy = %q, %v", first, err)
	}
	path := filepath.Join(copies.Path(), first)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Fatalf("copy: %v, %v", info, err)
	}
	if again, err := copyInit(copies, binary); err != nil || again != first {
		t.Errorf("again = %q, %v", again, err)
	}
	if now, err := os.Stat(path); err != nil || !os.SameFile(info, now) {
		t.Errorf("it was copied again: environments that mount it keep the old file")
	}
	write(t, path, "damaged")
	if again, err := copyInit(copies, binary); err != nil || again != first {
		t.Errorf("over a damaged one = %q, %v", again, err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "one" {
		t.Errorf("the damaged copy is %q, %v", b, err)
	}
	write(t, binary, "two")
	if second, err := copyInit(copies, binary); err != nil || second == first {
		t.Errorf("another binary = %q, %v", second, err)
	}
	if _, err := copyInit(copies, filepath.Join(dir, "none")); err == nil {
		t.Error("no binary was copied")
	}
}
