package config

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"hearth/internal/env"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func testHost() Host {
	return Host{
		Name: "node-1", Executable: "/usr/local/bin/nodeagent", MemoryBytes: 16 << 30,
		Resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.53")},
	}
}

// TestDefaultFilesAreTheDocumentation keeps testdata/defaults equal to the code,
// and proves that each file means what an empty one does.
func TestDefaultFilesAreTheDocumentation(t *testing.T) {
	for name, value := range map[string]any{
		"nodeagent.yaml":  DefaultAgent(testHost()),
		"controller.yaml": DefaultController(testHost()),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "defaults", name)
			got, err := yaml.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("defaults differ from %s (go test -update rewrites it):\n%s", path, d)
			}
		})
	}
	a, err := LoadAgent("testdata/defaults/nodeagent.yaml", testHost())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultAgent(testHost()), a, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b Resolver) bool { return a == b })); d != "" {
		t.Errorf("the default file is not the default:\n%s", d)
	}
	c, err := LoadController("testdata/defaults/controller.yaml", testHost())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultController(testHost()), c); d != "" {
		t.Errorf("the default file is not the default:\n%s", d)
	}
}

func TestExplicitKeysWinOverDefaults(t *testing.T) {
	a, err := LoadAgent(write(t, "nodeagent.yaml", `
instance: blue
containerd: {binDir: /opt/hearth/bin}
network:
  resolvers: []
  refused: [203.0.113.0/24]
limits: {slots: 10, memory: 2Gi}
api: {listen: "127.0.0.1:17401"}
controller: {address: "ctl:7400", joinTokenFile: /etc/hearth/token}
`), testHost())
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]any{
		"state":      {a.StateDir, "/var/lib/blue"},
		"socket":     {a.API.Socket, "/run/blue/node.sock"},
		"namespace":  {a.Containerd.Namespace, "blue"},
		"address":    {a.Containerd.Address, ""},
		"runtime":    {a.Containerd.Runtime, "/opt/hearth/bin/runc"},
		"cgroup":     {a.Cgroup.Root, ""},
		"links":      {a.Network.LinkPrefix == DefaultAgent(testHost()).Network.LinkPrefix, false},
		"resolvers":  {len(a.Network.Resolvers), 0},
		"memory":     {int64(a.Limits.Memory), int64(2 << 30)},
		"advertise":  {a.API.Advertise, "node-1:17401"},
		"controller": {a.Controller.Address, "ctl:7400"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s = %v, want %v", what, pair[0], pair[1])
		}
	}
}

func TestAnEmptyFileIsAllDefaults(t *testing.T) {
	for _, content := range []string{"", "# nothing\n", "---\n# nothing\n"} {
		if _, err := LoadAgent(write(t, "nodeagent.yaml", content), testHost()); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestBadAgentFilesNameLineKeyAndMend(t *testing.T) {
	for name, tc := range map[string]struct {
		content string
		want    []string // each must be in the error
	}{
		"unknown key":           {"instnce: x\n", []string{":1:", "instnce: unknown key: did you mean instance?"}},
		"unknown key below":     {"limits:\n  slots: 3\n  memroy: 1Gi\n", []string{":3:", "limits.memroy", "did you mean memory?"}},
		"wrong case":            {"Instance: x\n", []string{"did you mean instance?"}},
		"unknown far":           {"ids:\n  zzzzzz: 3\n", []string{"known here are base, count"}},
		"duplicate key":         {"node: a\nnode: b\n", []string{":2:", "node: key is given twice, first in line 1"}},
		"number for text":       {"instance: 12\n", []string{":1:", `want text, have the number 12: write "12" in quotes`}},
		"yes for text":          {"node: yes\n", []string{"want text", "in quotes"}},
		"text for number":       {"limits: {slots: many}\n", []string{"limits.slots: want a whole number, have \"many\""}},
		"a mount of the state":  {"mounts: {all: {path: /var/lib}}\n", []string{"mounts.all.path", "overlaps /var/lib/hearth"}},
		"a mount of the root":   {"mounts: {all: {path: /}}\n", []string{"mounts.all.path", "the node's own"}},
		"a mount within":        {"mounts: {all: {path: /var/lib/hearth/snapshots}}\n", []string{"overlaps /var/lib/hearth"}},
		"a mount of proc":       {"mounts: {all: {path: /proc/sys}}\n", []string{"overlaps /proc"}},
		"a relative mount":      {"mounts: {all: {path: srv}}\n", []string{"mounts.all.path"}},
		"a mount's bad name":    {"mounts: {A_b: {path: /srv}}\n", []string{"mounts.A_b", "is not a name"}},
		"slots beyond the maps": {"limits: {slots: 5000}\nids: {count: 8000}\n", []string{"limits.slots", "at most 4096"}},
		"negative count":        {"ids: {count: -1}\n", []string{"not negative"}},
		"list for keys":         {"limits: [1]\n", []string{"limits: want keys and values, have a list"}},
		"keys for list":         {"network: {refused: {a: b}}\n", []string{"network.refused: want a list, have keys and values"}},
		"no value":              {"instance:\n", []string{"instance: has no value"}},
		"alias":                 {"instance: &a x\nnode: *a\n", []string{"anchors and aliases are not supported"}},
		"merge":                 {"limits: {<<: {slots: 1}}\n", []string{"limits: a key must be a plain word"}},
		"not a mapping":         {"- a\n", []string{"want keys and values, have a list"}},
		"syntax":                {"instance: x\n  node: y\n", []string{":2:", "mapping values are not allowed"}},
		"tab":                   {"limits:\n\tslots: 1\n", []string{":2:"}},
		"two documents":         {"instance: x\n---\ninstance: y\n", []string{":2:", "second document"}},
		"after end":             {"instance: x\n...\ninstance: y\n", []string{"end marker"}},
		"bad quantity":          {"limits: {memory: lots}\n", []string{"limits.memory", "not a quantity"}},
		"negative memory":       {"limits: {memory: -1Gi}\n", []string{"not a size"}},
		"bad prefix":            {"network: {pool: 10.0.0.0}\n", []string{"network.pool"}},
		"host bits":             {"network: {pool: 10.1.2.3/8}\n", []string{"write 10.0.0.0/8"}},
		"v6 pool":               {"network: {pool: \"fd00::/64\"}\n", []string{"not an IPv4 prefix"}},
		"huge pool":             {"network: {pool: 0.0.0.0/0}\n", []string{"want /8 to /30"}},
		"bad instance":          {"instance: ../etc\n", []string{"instance: \"../etc\""}},
		"relative path":         {"stateDir: var/lib\n", []string{"stateDir", "not an absolute path"}},
		"dotted path":           {"stateDir: /var/../etc\n", []string{"stateDir", "without . and .."}},
		"root cgroup":           {"cgroup: {root: /}\n", []string{"must not be the root"}},
		"both containerds":      {"containerd: {address: /run/c.sock, binDir: /opt}\n", []string{"exclude each other"}},
		"runc's path twice":     {"containerd: {runtimes: {runc: /opt/runc}}\n", []string{"containerd.runtimes.runc", "its path is containerd.runtime"}},
		"runtime's name":        {"containerd: {runtimes: {My_Run: crun}}\n", []string{"My_Run", "not a runtime's name"}},
		"runtime's path":        {"containerd: {runtimes: {crun: bin/crun}}\n", []string{"containerd.runtimes.crun", "not an absolute path"}},
		"other snapshotter":     {"containerd: {snapshotter: zfs}\n", []string{"overlayfs is the only"}},
		"ids overlap":           {"ids: {base: 4294901760}\n", []string{"beyond 2^31"}},
		"ids unaligned":         {"ids: {base: 1000000}\n", []string{"multiple of 65536"}},
		"more slots than ids":   {"limits: {slots: 10}\nids: {count: 5}\n", []string{"raise it"}},
		"listen without port":   {"api: {listen: localhost}\n", []string{"api.listen"}},
		"advertise no host":     {"api: {advertise: \":7401\"}\n", []string{"api.advertise", "not host:port"}},
		"half a controller":     {"controller: {address: \"c:7400\"}\n", []string{"controller.joinTokenFile: is missing"}},
		"log level":             {"log: {level: loud}\n", []string{"want debug, info, warn or error"}},
		"long socket":           {"runDir: /" + strings.Repeat("x", 110) + "\n", []string{"shorter runDir"}},
		"bad resolver":          {"network: {resolvers: [dns.example]}\n", []string{"network.resolvers[0]"}},
		"all faults together":   {"log: {level: loud}\nstateDir: x\ncgroup: {root: z}\n", []string{"log.level", "stateDir", "cgroup.root"}},
		"unknown keys together": {"aaa: 1\nbbb: 2\n", []string{"aaa", "bbb"}},
		"link prefix":           {"network: {linkPrefix: toolong}\n", []string{"1 to 5 letters"}},
		"zero byte":             {"stateDir: \"/a\\0b\"\n", []string{"stateDir"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, "nodeagent.yaml", tc.content)
			_, err := LoadAgent(path, testHost())
			if !errors.Is(err, env.ErrInvalid) {
				t.Fatalf("error = %v, want ErrInvalid", err)
			}
			for _, w := range append(tc.want, path) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error lacks %q:\n%v", w, err)
				}
			}
		})
	}
}

func TestFilesThatAreNotConfigurationAreRefusedByName(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadAgent(dir, testHost()); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := LoadAgent(filepath.Join(dir, "none"), testHost()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	big := write(t, "big.yaml", strings.Repeat("#", maxFileBytes+1))
	if _, err := LoadAgent(big, testHost()); !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), big) {
		t.Errorf("a huge file: %v", err)
	}
}

func TestControllerFaultsAreNamed(t *testing.T) {
	_, err := LoadController(write(t, "controller.yaml", "fleet: {heartbeat: 1h, lostAfter: 1s}\napi: {names: [\"bad name\"]}\n"), testHost())
	for _, w := range []string{"fleet.heartbeat", "fleet.lostAfter", "api.names[0]"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error lacks %q: %v", w, err)
		}
	}
}

func TestManyFaultsAreCounted(t *testing.T) {
	var b strings.Builder
	for i := range maxFaults + 5 {
		b.WriteString("k" + strings.Repeat("z", i+10) + ": 1\n")
	}
	_, err := LoadAgent(write(t, "nodeagent.yaml", b.String()), testHost())
	if err == nil || !strings.Contains(err.Error(), "and 5 more faults") {
		t.Errorf("error = %v", err)
	}
}

func TestMeminfoAndResolvConfAreRead(t *testing.T) {
	n, err := memTotal(strings.NewReader("MemFree: 1 kB\nMemTotal:       24689824 kB\n"))
	if err != nil || n != 24689824<<10 {
		t.Errorf("memTotal = %d, %v", n, err)
	}
	if _, err := memTotal(strings.NewReader("nothing\n")); err == nil {
		t.Error("memTotal of nothing succeeded")
	}
	got := nameServers(strings.NewReader("search x\nnameserver fe80::1\nnameserver 192.0.2.1\n#nameserver 192.0.2.9\nnameserver 192.0.2.2 # two\n"))
	if want := "[192.0.2.1 192.0.2.2]"; cmp.Diff(want, fmt.Sprint(got)) != "" {
		t.Errorf("nameServers = %v", got)
	}
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
