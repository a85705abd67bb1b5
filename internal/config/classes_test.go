package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

const minimal = "apiVersion: hearth.run/v1alpha1\nkind: EnvironmentClass\nmetadata: {name: base}\nspec: {image: \"example.com/base:1\"}\n"

// spec is a manifest with the lines given below spec.
func spec(lines string) string {
	return "apiVersion: hearth.run/v1alpha1\nkind: EnvironmentClass\nmetadata: {name: base}\nspec:\n  image: example.com/base:1\n" + lines
}

func TestAFullManifestBecomesAClass(t *testing.T) {
	classes, err := LoadClasses("testdata/classes")
	if err != nil {
		t.Fatal(err)
	}
	if len(classes) != 2 || classes[0].Name != "base" || classes[1].Name != "full" {
		t.Fatalf("classes = %+v", classes)
	}
	got := classes[1]
	if len(got.Revision) != 64 {
		t.Errorf("revision = %q", got.Revision)
	}
	got.Revision = ""
	want := env.Class{
		Name:    "full",
		Image:   "registry.example.com/agents/python:3.13",
		Runtime: "crun",
		Env:     map[string]string{"LANG": "C.UTF-8"},
		Services: []env.Service{
			{Name: "db", Command: []string{"/usr/bin/postgres", "-D", "/data"}, Dir: "/data", Start: env.StartAtBoot, Restart: env.RestartAlways},
			{Name: "web", Command: []string{"/app/serve"}, Dir: "/", Env: map[string]string{"PORT": "8080"}, Start: env.StartAfterClaim, Restart: env.RestartNever},
		},
		Readiness: env.Probe{HTTP: &env.HTTPProbe{Port: 8080, Path: "/healthz"}, Timeout: time.Minute, Interval: 100 * time.Millisecond},
		Resources: env.Resources{
			CPUMillis: 1500, CPUBurstMillis: 1000, CPUWeight: 300, MemoryBytes: 2 << 30, MemoryHighBytes: 1800 << 20, SwapBytes: 512 << 20, PIDs: 512,
			IO: env.IOLimits{ReadBytes: 100 << 20, WriteBytes: 50 << 20, ReadOps: 2000, WriteOps: 1000}, DiskBytes: 20 << 30, OpenFiles: 4096,
		},
		Warm: env.WarmPolicy{Slots: 4, Created: 2, MaxAge: 24 * time.Hour, Wait: 20 * time.Second, CheckEvery: 15 * time.Minute, RollEvery: 30 * time.Second, Deflate: true},
		Egress: env.EgressPolicy{
			Mode: env.EgressAllow,
			Allow: []env.EgressRule{
				{CIDR: netip.MustParsePrefix("198.51.100.0/24"), Ports: []env.PortRange{{First: 443, Last: 443}, {First: 8000, Last: 8100}}},
				{CIDR: netip.MustParsePrefix("203.0.113.7/32")},
			},
			Deny: []env.EgressRule{{CIDR: netip.MustParsePrefix("198.51.100.66/32")}},
		},
		Detection: env.DetectionPolicy{Responses: map[string]string{"high": "freeze", "low": "record"}},
		Snapshot:  env.SnapshotPolicy{OnRelease: true},
		Hygiene:   env.HygienePolicy{Keep: []env.Trait{env.TraitSSHHostKeys, env.TraitHosts}},
		Ports:     []env.Port{{Name: "web", Number: 8080, Protocol: env.PortHTTP}, {Name: "db", Number: 5432, Protocol: env.PortTCP}},
		Lifetime:  env.Lifetime{TimeToLive: 2 * time.Hour, MaxTimeToLive: 24 * time.Hour, PauseWhenIdle: 10 * time.Minute},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("class differs:\n%s", d)
	}
}

func TestRevisionFollowsTheMeaningOfASpecification(t *testing.T) {
	rev := func(manifest string) string {
		t.Helper()
		c, faults := decodeClass(splitDocuments([]byte(manifest))[0])
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		return c.Revision
	}
	base := rev(spec("  resources: {cpu: 1}\n  egress: {mode: internet}\n"))
	for what, same := range map[string]string{
		"another spelling":    spec("  resources: {cpu: 1000m}\n"),
		"a default spelled":   spec("  egress:\n    mode: internet\n  resources:\n    cpu: \"1\"\n"),
		"the warm policy":     spec("  resources: {cpu: 1}\n  warm: {slots: 9}\n"),
		"what may be mounted": spec("  resources: {cpu: 1}\n  mounts: [data]\n"),
		"the default runtime": spec("  resources: {cpu: 1}\n  runtime: runc\n"),
		"labels":              strings.Replace(spec("  resources: {cpu: 1}\n"), "{name: base}", "{name: base, labels: {a: b}}", 1),
	} {
		if rev(same) != base {
			t.Errorf("%s changed the revision", what)
		}
	}
	for what, other := range map[string]string{
		"cpu":     spec("  resources: {cpu: 2}\n"),
		"env":     spec("  resources: {cpu: 1}\n  env: {A: b}\n"),
		"egress":  spec("  resources: {cpu: 1}\n  egress: {mode: none}\n"),
		"runtime": spec("  resources: {cpu: 1}\n  runtime: crun\n"),
	} {
		if rev(other) == base {
			t.Errorf("another %s left the revision as it was", what)
		}
	}
}

func TestBadManifestsNameLineKeyAndMend(t *testing.T) {
	for name, tc := range map[string]struct {
		manifest string
		want     []string
	}{
		"unknown key":           {spec("  resources:\n    memroy: 1Gi\n"), []string{":7:", "spec.resources.memroy: unknown key: did you mean memory?"}},
		"duplicate key":         {spec("  image: x\n"), []string{":6:", "spec.image: key is given twice, first in line 5"}},
		"other kind":            {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", []string{":1:", `want apiVersion hearth.run/v1alpha1 and kind EnvironmentClass, have "v1" and "Pod"`}},
		"no kind":               {"spec: {image: x}\n", []string{"want apiVersion"}},
		"no image":              {"apiVersion: hearth.run/v1alpha1\nkind: EnvironmentClass\nmetadata: {name: a}\nspec: {}\n", []string{"spec.image: is missing"}},
		"no name":               {"apiVersion: hearth.run/v1alpha1\nkind: EnvironmentClass\nspec: {image: x}\n", []string{"metadata.name"}},
		"bad name":              {strings.Replace(minimal, "name: base", "name: Base_1", 1), []string{":3:", "metadata.name", "not a class name"}},
		"namespace":             {strings.Replace(minimal, "name: base", "name: base, namespace: x", 1), []string{"classes have no namespace"}},
		"bad runtime":           {spec("  runtime: io.containerd.runsc.v1\n"), []string{":6:", "spec.runtime", "not a runtime's name such as runc or crun"}},
		"bad image":             {strings.Replace(minimal, "example.com/base:1", "Not An Image", 1), []string{":4:", "not an image reference"}},
		"bad variable":          {spec("  env: {1A: x}\n"), []string{"spec.env", "not a variable's name"}},
		"number variable":       {spec("  env: {A: 1}\n"), []string{"spec.env.A: want text, have the number 1"}},
		"service without":       {spec("  services:\n  - name: a\n"), []string{"spec.services[0].command: is empty"}},
		"service twice":         {spec("  services:\n  - {name: a, command: [x]}\n  - {name: a, command: [x]}\n"), []string{":8:", "a is there twice"}},
		"bad start":             {spec("  services:\n  - {name: a, command: [x], start: later}\n"), []string{"want boot or afterClaim"}},
		"relative dir":          {spec("  services:\n  - {name: a, command: [x], dir: y/z}\n"), []string{"not an absolute path"}},
		"two probes":            {spec("  readiness: {command: [x], tcp: {port: 1}}\n"), []string{"exactly one of"}},
		"no probe":              {spec("  readiness: {timeout: 5s}\n"), []string{"exactly one of"}},
		"file and command":      {spec("  readiness: {command: [x], file: {path: /x}}\n"), []string{"exactly one of"}},
		"relative file":         {spec("  readiness: {file: {path: run/ready}}\n"), []string{"spec.readiness.file.path", "not an absolute path"}},
		"bad port":              {spec("  readiness: {tcp: {port: 70000}}\n"), []string{"spec.readiness.tcp.port: 70000: want 1 to 65535"}},
		"bad duration":          {spec("  readiness: {tcp: {port: 1}, timeout: soon}\n"), []string{"spec.readiness.timeout"}},
		"negative interval":     {spec("  readiness: {tcp: {port: 1}, interval: -1s}\n"), []string{"spec.readiness.interval"}},
		"tiny memory":           {spec("  resources: {memory: 1Mi}\n"), []string{"spec.resources.memory", "want 16Mi"}},
		"no cpu":                {spec("  resources: {cpu: 0}\n"), []string{"spec.resources.cpu"}},
		"bad quantity":          {spec("  resources: {memory: plenty}\n"), []string{"spec.resources.memory"}},
		"burst without cpu":     {spec("  resources: {cpuBurst: 1}\n"), []string{"spec.resources.cpuBurst: needs spec.resources.cpu"}},
		"burst above cpu":       {spec("  resources: {cpu: 500m, cpuBurst: 501m}\n"), []string{"spec.resources.cpuBurst: 501m: want 1m to what cpu is, 500m"}},
		"mark without memory":   {spec("  resources: {memoryHigh: 1Gi}\n"), []string{"spec.resources.memoryHigh: needs spec.resources.memory"}},
		"mark above memory":     {spec("  resources: {memory: 1Gi, memoryHigh: 2Gi}\n"), []string{"spec.resources.memoryHigh"}},
		"negative swap":         {spec("  resources: {swap: -1}\n"), []string{"spec.resources.swap: -1: want 0"}},
		"heavy weight":          {spec("  resources: {cpuWeight: 10001}\n"), []string{"spec.resources.cpuWeight: 10001: want 1 to 10000"}},
		"little disk":           {spec("  resources: {disk: 1Mi}\n"), []string{"spec.resources.disk: 1Mi: want 16Mi"}},
		"few files":             {spec("  resources: {openFiles: 3}\n"), []string{"spec.resources.openFiles: 3: want 64"}},
		"empty io":              {spec("  resources: {io: {}}\n"), []string{"spec.resources.io: is empty"}},
		"slow io":               {spec("  resources: {io: {writeBytes: 1}}\n"), []string{"spec.resources.io.writeBytes: 1 a second: want 64Ki"}},
		"no reads":              {spec("  resources: {io: {readOps: 0}}\n"), []string{"spec.resources.io.readOps: 0 a second: want 1"}},
		"few pids":              {spec("  resources: {pids: 1}\n"), []string{"spec.resources.pids"}},
		"negative slots":        {spec("  warm: {slots: -1}\n"), []string{"spec.warm.slots"}},
		"mount that is no name": {spec("  mounts: [\"/srv\"]\n"), []string{"spec.mounts[0]"}},
		"mount twice":           {spec("  mounts: [data, data]\n"), []string{"spec.mounts[1]", "is there twice"}},
		"unknown trait":         {spec("  hygiene: {keep: [face]}\n"), []string{"spec.hygiene.keep[0]", "want hostname, hosts, machineId, sshHostKeys or randomSeed"}},
		"trait twice":           {spec("  hygiene: {keep: [hosts, hosts]}\n"), []string{"is there twice"}},
		"short check":           {spec("  warm: {checkEvery: 1ms}\n"), []string{"spec.warm.checkEvery", "0s for never"}},
		"too patient":           {spec("  warm: {wait: 31s}\n"), []string{"spec.warm.wait", "at most 30s"}},
		"negative wait":         {spec("  warm: {wait: -1s}\n"), []string{"spec.warm.wait"}},
		"negative created":      {spec("  warm: {created: -1}\n"), []string{"spec.warm.created"}},
		"negative roll":         {spec("  warm: {rollEvery: -1s}\n"), []string{"spec.warm.rollEvery"}},
		"short age":             {spec("  warm: {maxAge: 1s}\n"), []string{"spec.warm.maxAge"}},
		"bad mode":              {spec("  egress: {mode: all}\n"), []string{"want internet, none or allow"}},
		"allow without rules":   {spec("  egress: {mode: allow}\n"), []string{"allows nothing"}},
		"rules without allow":   {spec("  egress: {allow: [{cidr: 192.0.2.0/24}]}\n"), []string{"rules need mode allow"}},
		"deny with none":        {spec("  egress: {mode: none, deny: [{cidr: 192.0.2.0/24}]}\n"), []string{"refuses everything already"}},
		"cidr bits":             {spec("  egress: {deny: [{cidr: 192.0.2.1/24}]}\n"), []string{"write 192.0.2.0/24, or 192.0.2.1/32"}},
		"cidr v6":               {spec("  egress: {deny: [{cidr: \"2001:db8::/32\"}]}\n"), []string{"not an IPv4 prefix"}},
		"cidr address":          {spec("  egress: {deny: [{cidr: 192.0.2.1}]}\n"), []string{"192.0.2.7/32 for one address"}},
		"ports number":          {spec("  egress: {deny: [{cidr: 192.0.2.0/24, ports: [443]}]}\n"), []string{"spec.egress.deny[0].ports[0]", `write "443" in quotes`}},
		"ports falling":         {spec("  egress: {deny: [{cidr: 192.0.2.0/24, ports: [\"9-8\"]}]}\n"), []string{"rising range"}},
		"ports zero":            {spec("  egress: {deny: [{cidr: 192.0.2.0/24, ports: [\"0\"]}]}\n"), []string{"rising range"}},
		"ports sign":            {spec("  egress: {deny: [{cidr: 192.0.2.0/24, ports: [\"+5\"]}]}\n"), []string{"rising range"}},
		"bad severity":          {spec("  detection: {responses: {worst: freeze}}\n"), []string{"want low, medium, high or critical"}},
		"bad response":          {spec("  detection: {responses: {high: explode}}\n"), []string{"want record, alert or freeze"}},
		"no life":               {spec("  lifetime: {timeToLive: 0s}\n"), []string{"spec.lifetime.timeToLive: 0s: want 1s", "or no timeToLive at all"}},
		"beyond its bound":      {spec("  lifetime: {timeToLive: 2h, maxTimeToLive: 1h}\n"), []string{"spec.lifetime.timeToLive: 2h0m0s is longer than maxTimeToLive, 1h0m0s"}},
		"an age":                {spec("  lifetime: {maxTimeToLive: 100000h}\n"), []string{"spec.lifetime.maxTimeToLive"}},
		"restless":              {spec("  lifetime: {pauseWhenIdle: 1s}\n"), []string{"spec.lifetime.pauseWhenIdle: 1s: want 5s"}},
		"port name twice":       {spec("  ports: [{name: a, port: 1}, {name: a, port: 2}]\n"), []string{"is there twice"}},
		"port number twice":     {spec("  ports: [{name: a, port: 1}, {name: b, port: 1}]\n"), []string{"has the name a already"}},
		"port protocol":         {spec("  ports: [{name: a, port: 1, protocol: udp}]\n"), []string{"want tcp or http"}},
		"port fraction":         {spec("  ports: [{name: a, port: 1.5}]\n"), []string{"want a whole number"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "c.yaml"), []byte(tc.manifest), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadClasses(dir)
			if !errors.Is(err, env.ErrInvalid) {
				t.Fatalf("error = %v, want ErrInvalid", err)
			}
			for _, w := range append(tc.want, filepath.Join(dir, "c.yaml")) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error lacks %q:\n%v", w, err)
				}
			}
		})
	}
}

func TestADirectoryIsReadAsAWhole(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	second := strings.Replace(minimal, "name: base", "name: second", 1)
	put("a.yaml", "# two\n---\n"+minimal+"---\n"+second+"---\n# end\n")
	put("c.json", `{"apiVersion":"hearth.run/v1alpha1","kind":"EnvironmentClass","metadata":{"name":"third"},"spec":{"image":"example.com/x:1"}}`)
	put("README.md", "not read")
	put(".hidden.yaml", "not: read")
	classes, err := LoadClasses(dir)
	if err != nil || len(classes) != 3 {
		t.Fatalf("classes = %v, %v", classes, err)
	}
	put("b.yaml", "---\n"+minimal)
	put("d.yaml", "---\nkind: Pod\n")
	_, err = LoadClasses(dir)
	for _, w := range []string{"b.yaml:1: invalid: class base is defined already in " + dir + "/a.yaml:2", "d.yaml:1"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error lacks %q: %v", w, err)
		}
	}
	if _, err := LoadClasses(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "classesDir") {
		t.Errorf("no directory: %v", err)
	}
}

func TestNodeDefaultsFillOnlyWhatAClassLeaves(t *testing.T) {
	d := Resources{CPU: 1000, Memory: 1 << 30, PIDs: 100}
	got := d.Complete(env.Resources{CPUMillis: 250})
	if want := (env.Resources{CPUMillis: 250, MemoryBytes: 1 << 30, PIDs: 100}); got != want {
		t.Errorf("resources = %+v, want %+v", got, want)
	}
}

// FuzzLoader feeds both decoders anything at all: they answer with faults or a
// valid value, and what a class says survives its own checks.
func FuzzLoader(f *testing.F) {
	for _, name := range []string{"testdata/classes/full.yaml", "testdata/classes/base.yaml", "testdata/defaults/nodeagent.yaml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &x [*x]\n"))
	f.Add([]byte("---\n--- {a: b}\n...\n---\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("%YAML 1.1\n---\nspec: !!binary aGk=\n"))
	f.Add([]byte(spec("  warm: {slots: 1e3}\n")))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range splitDocuments(data) {
			if c, faults := decodeClass(d); len(faults) == 0 && (!isLabel(c.Name) || len(c.Revision) != 64 || c.Image == "") {
				t.Errorf("class %+v without faults", c)
			}
			var a Agent
			if faults := decode(d, &a); len(faults) > 0 {
				if err := wrapFaults("f", faults); !errors.Is(err, env.ErrInvalid) {
					t.Errorf("faults %v made %v", faults, err)
				}
				continue
			}
			_ = defaultAgent(a, testHost()).validate()
		}
	})
}
