package archtest

import (
	"slices"
	"strings"
)

// module is the path that every package of ours begins with.
const module = "hearth"

// layer is a set of packages and what it may import of ours. Packages are
// named relative to the module; a name covers its subpackages too, unless a
// longer name covers them.
type layer struct {
	packages []string
	// imports are the packages of ours that this layer may use, besides a
	// package's own subtree.
	imports []string
	// stdOnly allows nothing but the standard library.
	stdOnly bool
}

var (
	mechanics = []string{"internal/config", "internal/lifecycle", "internal/durable", "internal/obs"}
	domain    = []string{
		"internal/warm", "internal/cgroups", "internal/netpol", "internal/detect", "internal/disk", "internal/snapshot",
		"internal/placement", "internal/forecast",
	}
	adapters = []string{"internal/ctrd", "internal/kube", "internal/guest", "internal/preflight", "internal/systemd"}

	// below is what each layer stands on, from the bottom up.
	belowMechanics = []string{"internal/env", "api"}
	belowDomain    = slices.Concat(belowMechanics, mechanics, []string{"bpf"})
	belowAdapters  = slices.Concat(belowDomain, domain, []string{"internal/fleet"})
	belowCommands  = slices.Concat(belowAdapters, adapters, []string{"internal/rpc"})
)

// layers is the import table, lowest first. Domain packages do not import each
// other: what they exchange is in internal/env, and they meet in cmd.
var layers = []layer{
	{packages: []string{"internal/env", "internal/guest/wire"}, stdOnly: true},
	{packages: []string{"api", "bpf"}, imports: []string{"internal/env"}},
	{packages: mechanics, imports: belowMechanics},
	{packages: domain, imports: belowDomain},
	{packages: []string{"internal/fleet"}, imports: slices.Concat(belowDomain, []string{"internal/placement", "internal/forecast"})},
	{packages: adapters, imports: belowAdapters},
	// The Guest API serves what guest speaks to envinit.
	{packages: []string{"internal/rpc"}, imports: slices.Concat(belowAdapters, []string{"internal/guest"})},
	// envinit runs inside the hostile domain and speaks the wire format only.
	{packages: []string{"cmd/envinit"}, imports: []string{"internal/guest/wire", "internal/env"}},
	{packages: []string{"cmd"}, imports: belowCommands},
	{packages: []string{"internal/kerneltest"}, imports: []string{"internal/env", "bpf"}},
	{packages: []string{"internal/archtest"}, imports: []string{}},
	// Demo, node tests, benchmarks and journeys play on one stage, the journeys in
	// a cluster.
	{packages: []string{"test"}, imports: slices.Concat(belowCommands, []string{"cmd", "test/stage", "test/cluster", "test/monitoring", "test/monitoring"})},
}

// isTestSupport tells packages that only tests, and each other, may import: as
// in the standard library, their names end in "test".
func isTestSupport(pkg string) bool { return strings.HasSuffix(pkg, "test") }

// fence keeps a library inside the packages that were made to hold it.
type fence struct {
	// library is an import path; it covers what is below it.
	library string
	inside  []string
}

var fences = []fence{
	{"github.com/cilium/ebpf", []string{
		"bpf", "internal/netpol", "internal/detect", "internal/disk", "internal/preflight", "internal/kerneltest",
		// The hints of written files, one file.
		"internal/snapshot/dirty_linux.go",
	}},
	{"github.com/vishvananda/netlink", []string{"internal/netpol", "internal/kerneltest"}},
	{"github.com/vishvananda/netns", []string{"internal/netpol", "internal/kerneltest"}},
	{"github.com/mdlayher/netlink", []string{"internal/netpol", "internal/kerneltest"}},
	{"github.com/google/nftables", []string{"internal/netpol", "internal/kerneltest"}},
	{"github.com/containerd", []string{"internal/ctrd"}},
	{"github.com/opencontainers", []string{"internal/ctrd"}},
	{"github.com/coreos/go-systemd", []string{"internal/systemd"}},
	{"github.com/godbus/dbus", []string{"internal/systemd"}},
	{"k8s.io/client-go", []string{"internal/kube", "test/e2e"}},
	{"k8s.io/api", []string{"internal/kube", "test/e2e"}},
	{"k8s.io/apimachinery", []string{"internal/kube", "internal/config", "api/v1alpha1", "test/e2e"}},
	{"github.com/go-jose/go-jose", []string{"internal/kube"}},
	{"github.com/klauspost/compress", []string{"internal/snapshot", "internal/detect"}},
	{"github.com/miekg/dns", []string{"internal/netpol"}},
	{"cel.dev/cel-go", []string{"internal/detect"}},
	{"github.com/google/cel-go", []string{"internal/detect"}},
	{"github.com/spf13/cobra", []string{"cmd"}},
	{"go.opentelemetry.io", []string{"internal/obs"}},
}

// linuxOnly libraries may be imported only by files whose names say so.
var linuxOnly = []string{"golang.org/x/sys/unix"}

// forbiddenNames are of packages that say nothing about what is in them.
var forbiddenNames = []string{"pkg", "util", "utils", "common", "helper", "helpers", "misc", "shared", "lib"}

// maxLines is the most that a file of ours may have. Generated files are free.
const maxLines = 500
