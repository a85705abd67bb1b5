package cluster

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testOptions(t *testing.T) Options {
	t.Helper()
	o, err := Defaults(t.TempDir(), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestHierarchiesAreReadFromMountinfo(t *testing.T) {
	for line, want := range map[string]hierarchy{
		"31 24 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu":                            {"/sys/fs/cgroup/cpu", "cgroup", "cpu"},
		"32 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct":            {"/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"},
		"33 24 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/a,name=systemd": {"/sys/fs/cgroup/systemd", "cgroup", "none,name=systemd"},
		"34 24 0:29 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup2 rw,nsdelegate":      {"/sys/fs/cgroup/unified", "cgroup2", ""},
		"35 24 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755":                                      {},
		"36 24 0:31 / /srv/cgroup rw - ext4 /dev/vda rw":                                                {},
		"": {},
	} {
		got, ok := parseHierarchy(line)
		if got != want || ok != (want != hierarchy{}) {
			t.Errorf("parseHierarchy(%q) = %+v, %v; want %+v", line, got, ok, want)
		}
	}
}

func TestTwoNodesShareNoAddressAndNoDirectory(t *testing.T) {
	o := testOptions(t)
	a, b := o.nodes()[0], o.nodes()[1]
	if a.IP() == b.IP() || a.dir == b.dir {
		t.Errorf("nodes share an address or a directory: %+v %+v", a, b)
	}
	pods := netip.MustParsePrefix(podRange)
	ra, rb := netip.MustParsePrefix(a.PodCIDR()), netip.MustParsePrefix(b.PodCIDR())
	if ra.Overlaps(rb) || !pods.Overlaps(ra) || !pods.Overlaps(rb) || ra.Bits() < pods.Bits() {
		t.Errorf("pod ranges %v and %v are not two parts of %v", ra, rb, pods)
	}
}

// One configuration for both nodes: they may differ in names and addresses only.
func TestBothNodesHaveTheSameSettings(t *testing.T) {
	o := testOptions(t)
	files, err := o.files()
	if err != nil {
		t.Fatal(err)
	}
	a, b := o.nodes()[0], o.nodes()[1]
	same := strings.NewReplacer(b.dir, a.dir, b.Name, a.Name, b.IP(), a.IP(), b.PodCIDR(), a.PodCIDR())
	for path, content := range files {
		rest, ok := strings.CutPrefix(path, b.dir)
		if !ok {
			continue
		}
		// The client of the API is the same address on both.
		want := strings.ReplaceAll(files[a.dir+rest], b.IP(), a.IP())
		if diff := cmp.Diff(want, same.Replace(content)); diff != "" && !strings.HasSuffix(rest, "/hosts") {
			t.Errorf("%s (-node1 +node2):\n%s", rest, diff)
		}
	}
}

func TestEveryComponentHasItsProgram(t *testing.T) {
	o := testOptions(t)
	known := map[string]bool{}
	for _, p := range o.programs() {
		known[p] = true
	}
	seen := map[string]bool{}
	for _, c := range o.components() {
		if !known[c.argv[0]] {
			t.Errorf("%s runs %s, which is not checked for before a start", c.name, c.argv[0])
		}
		if seen[c.name] {
			t.Errorf("two components are called %s", c.name)
		}
		seen[c.name] = true
	}
}

func TestOptionsOutliveTheProcessThatStarted(t *testing.T) {
	o := testOptions(t)
	o.Nodes = 1
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := o.save(); err != nil {
		t.Fatal(err)
	}
	got, err := loadOptions(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(o, got); diff != "" {
		t.Errorf("options (-saved +loaded):\n%s", diff)
	}
}

func TestARecordOfAnotherStartTimeIsNotAlive(t *testing.T) {
	_, start, err := stat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !(record{os.Getpid(), start}).alive() {
		t.Error("this process is not alive")
	}
	other := record{os.Getpid(), start + 1}
	if other.alive() {
		t.Error("a pid that was reused passes for the process that had it before")
	}
	// Signalling it must reach nobody: SIGKILL would end this test.
	if err := other.signal(os.Kill); err != nil {
		t.Error(err)
	}
}

func TestStopOfAnotherDirectorysClusterTouchesNothing(t *testing.T) {
	o := testOptions(t)
	if err := os.MkdirAll(o.path("run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := (&Cluster{o}).Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(o.Dir); !os.IsNotExist(err) {
		t.Errorf("the directory of a cluster that never got the machine is left: %v", err)
	}
}

func TestMissingDirectoriesAreListedOutermostFirst(t *testing.T) {
	root := t.TempDir()
	want := []string{filepath.Join(root, "a"), filepath.Join(root, "a/b")}
	if diff := cmp.Diff(want, missing(filepath.Join(root, "a/b"))); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if got := missing(root); got != nil {
		t.Errorf("missing(%s) = %v, but it exists", root, got)
	}
}

func TestServicesHaveTheNamesOfTheSpecification(t *testing.T) {
	var services serviceList
	var slices sliceList
	decode(t, `{"items":[
	  {"metadata":{"name":"web","namespace":"a"},"spec":{"clusterIP":"203.0.113.7"}},
	  {"metadata":{"name":"db","namespace":"a"},"spec":{"clusterIP":"None"}},
	  {"metadata":{"name":"out","namespace":"a"},"spec":{"type":"ExternalName"}}]}`, &services)
	decode(t, `{"items":[
	  {"metadata":{"name":"db-1","namespace":"a","labels":{"kubernetes.io/service-name":"db"}},"endpoints":[
	    {"addresses":["198.51.100.2"],"hostname":"db-0","conditions":{"ready":true}},
	    {"addresses":["198.51.100.3"],"conditions":{"ready":false}}]},
	  {"metadata":{"name":"web-1","namespace":"a","labels":{"kubernetes.io/service-name":"web"}},"endpoints":[
	    {"addresses":["198.51.100.4"],"conditions":{}}]}]}`, &slices)
	want := map[string][]netip.Addr{
		"web.a.svc.cluster.local":     {netip.MustParseAddr("203.0.113.7")},
		"db.a.svc.cluster.local":      {netip.MustParseAddr("198.51.100.2")},
		"db-0.db.a.svc.cluster.local": {netip.MustParseAddr("198.51.100.2")},
		"out.a.svc.cluster.local":     nil,
	}
	equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, serviceNames(services, slices), equal); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

func TestTheInternetKnowsNamesOfAddresses(t *testing.T) {
	for name, want := range map[string]string{
		"ip-10-0-0-1.test": "10.0.0.1", "ip-10-0-0.test": PublicAddresses[2], "example.com": PublicAddresses[2],
	} {
		addrs, rcode := internetName(name)
		if rcode != rcodeOK || len(addrs) != 1 || addrs[0].String() != want {
			t.Errorf("%s: %v, rcode %d; want %s", name, addrs, rcode, want)
		}
	}
	if addrs, rcode := internetName("x.nowhere.test"); rcode != rcodeNoName || addrs != nil {
		t.Errorf("x.nowhere.test: %v, rcode %d", addrs, rcode)
	}
}

// query asks for the address of "a.test".
var query = []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01")

func TestAnAnswerRepeatsTheQuestion(t *testing.T) {
	got := respond(query, func(name string) ([]netip.Addr, byte) {
		if name != "a.test" {
			t.Errorf("asked for %q", name)
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, rcodeOK
	})
	want := "\x12\x34\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01" +
		"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\xc0\x00\x02\x01"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add(query)
	f.Add(query[:14])
	f.Fuzz(func(_ *testing.T, msg []byte) {
		respond(msg, func(string) ([]netip.Addr, byte) { return nil, rcodeNoName })
	})
}

func TestCertificatesAreMadeForEveryIdentity(t *testing.T) {
	o := testOptions(t)
	if err := o.writePKI(time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, id := range o.identities() {
		for _, end := range []string{".crt", ".key"} {
			if _, err := os.Stat(o.path("pki/" + id.file + end)); err != nil {
				t.Error(err)
			}
		}
	}
}
