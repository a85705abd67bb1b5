package config

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"hearth/internal/env"
)

const (
	maxInstance   = 31
	maxLinkPrefix = 5
	// maxIDRanges keeps every range below 2^31 and above the host's own users.
	maxIDRanges = 32000
	// maxNodeSlots is what the kernel maps of islands and sensors have room for. They
	// are pinned, so their size is no setting: it could not change under environments.
	maxNodeSlots = 4096
	// maxSocketPath is the size of sun_path less its end (unix(7)).
	maxSocketPath = 107
)

func (a Agent) validate() []fault {
	var l faultList
	l.instance("instance", a.Instance)
	l.dnsName("node", a.Node)
	for _, p := range []struct{ key, path string }{
		{"stateDir", a.StateDir}, {"runDir", a.RunDir}, {"classesDir", a.ClassesDir},
		{"initPath", a.InitPath}, {"api.socket", a.API.Socket}, {"snapshots.dir", a.Snapshots.Dir},
	} {
		l.absPath(p.key, p.path)
	}
	if a.StateDir == a.RunDir {
		l.addf("runDir", "is stateDir too: the one outlives reboots, the other must not")
	}
	if len(a.API.Socket) > maxSocketPath {
		l.addf("api.socket", "has %d characters, a Unix socket's path may have %d: choose a shorter runDir", len(a.API.Socket), maxSocketPath)
	}
	a.Containerd.validate(&l)
	if a.Cgroup.Root != "" {
		l.absPath("cgroup.root", a.Cgroup.Root)
	}
	if a.Cgroup.Root == "/" {
		l.addf("cgroup.root", "must not be the root of all cgroups: the agent limits and deletes its own tree")
	}
	a.Network.validate(&l)
	a.IDs.validate(&l)
	a.Limits.validate(&l, a.IDs)
	a.Defaults.validate(&l, a.Limits)
	for _, p := range []struct {
		key     string
		percent int
	}{
		{"cpuPressure", a.Refill.CPUPressure}, {"memoryPressure", a.Refill.MemoryPressure}, {"ioPressure", a.Refill.IOPressure},
	} {
		if p.percent < 1 || p.percent > 100 {
			l.addf("refill."+p.key, "%d: want 1 to 100 percent", p.percent)
		}
	}
	a.Claims.validate(&l)
	l.listen("api.listen", a.API.Listen)
	l.hostPort("api.advertise", a.API.Advertise)
	l.listen("api.metrics", a.API.Metrics)
	if a.Controller != nil {
		a.Controller.validate(&l)
	}
	if a.Detection.RulesDir != "" {
		l.absPath("detection.rulesDir", a.Detection.RulesDir)
	}
	if a.Detection.EventsFile != "" {
		l.absPath("detection.eventsFile", a.Detection.EventsFile)
	}
	a.validateMounts(&l)
	a.Log.validate(&l)
	a.Tracing.validate(&l)
	return l.faults
}

// validateMounts keeps what the agent relies on away from environments.
func (a Agent) validateMounts(l *faultList) {
	own := []string{a.StateDir, a.RunDir, a.Snapshots.Dir, "/proc", "/sys", "/dev", "/run"}
	for name, m := range a.Mounts {
		at := "mounts." + name
		if !isLabel(name) {
			l.addf(at, "%.64q is not a name: want 1 to 63 characters of a-z, 0-9 and inner dashes", name)
		}
		l.absPath(at+".path", m.Path)
		for _, dir := range own {
			if overlaps(m.Path, dir) {
				l.addf(at+".path", "%.128q overlaps %s, which is the node's own: choose another directory", m.Path, dir)
				break
			}
		}
	}
}

// overlaps reports whether one of two clean paths is the other or lies below it.
func overlaps(a, b string) bool {
	a, b = strings.TrimSuffix(a, "/")+"/", strings.TrimSuffix(b, "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

func (c ControllerLink) validate(l *faultList) {
	k := c.Kubernetes
	if k == nil {
		l.hostPort("controller.address", c.Address)
		l.absPath("controller.joinTokenFile", c.JoinTokenFile)
		return
	}
	if c.Address != "" || c.JoinTokenFile != "" {
		l.addf("controller", "kubernetes (the cluster's controller, by the agent's service account) excludes address and joinTokenFile: remove one or the other")
	}
	l.dnsName("controller.kubernetes.namespace", k.Namespace)
	l.dnsName("controller.kubernetes.lease", k.Lease)
	l.absPath("controller.kubernetes.tokenFile", k.TokenFile)
}

// maxSlotsPerShim bounds what dies with one shim.
const maxSlotsPerShim = 64

func (c Containerd) validate(l *faultList) {
	switch {
	case c.BinDir != "" && c.Address != "":
		l.addf("containerd", "address (a containerd that runs already) and binDir (one of the agent's own) exclude each other: remove one")
	case c.BinDir != "":
		l.absPath("containerd.binDir", c.BinDir)
	default:
		l.absPath("containerd.address", c.Address)
	}
	if c.Runtime != "" {
		l.absPath("containerd.runtime", c.Runtime)
	}
	for name, program := range c.Runtimes {
		at := "containerd.runtimes." + name
		checkRuntime(l, at, name)
		switch {
		case name == env.DefaultRuntime:
			l.addf(at, "is always there: its path is containerd.runtime")
		case strings.Contains(program, "/"):
			l.absPath(at, program)
		case program == "" || strings.ContainsRune(program, 0):
			l.addf(at, "%.64q is no program: give its name or its absolute path", program)
		}
	}
	// containerd's identifiers (pkg/identifiers): the instance's form is narrower.
	l.instance("containerd.namespace", c.Namespace)
	if c.Snapshotter != "overlayfs" {
		l.addf("containerd.snapshotter", "%.64q is not supported: overlayfs is the only snapshotter whose layers Hearth can shift and capture", c.Snapshotter)
	}
	if c.SlotsPerShim < 1 || c.SlotsPerShim > maxSlotsPerShim {
		l.addf("containerd.slotsPerShim", "%d: want 1 to %d", c.SlotsPerShim, maxSlotsPerShim)
	}
}

func (n Network) validate(l *faultList) {
	l.prefix4("network.pool", n.Pool)
	if n.Pool.IsValid() && (n.Pool.Bits() < 8 || n.Pool.Bits() > 30) {
		l.addf("network.pool", "%s has an address for too many or too few islands: want /8 to /30", n.Pool)
	}
	if p := n.LinkPrefix; len(p) > maxLinkPrefix || !isLabel(p) || strings.Contains(p, "-") || p[0] < 'a' {
		l.addf("network.linkPrefix", "%.64q: want 1 to %d letters a-z and digits, a letter first", p, maxLinkPrefix)
	}
	for i, r := range n.Resolvers {
		if !r.Addr().Is4() || r.Addr().IsUnspecified() || r.Addr().IsMulticast() {
			l.addf(index("network.resolvers", i), "%s is not the IPv4 address of a server", r.Addr())
		}
	}
	for i, p := range n.Refused {
		l.prefix4(index("network.refused", i), p)
	}
}

func (i IDs) validate(l *faultList) {
	if i.Count > maxIDRanges {
		l.addf("ids.count", "%d ranges of %d ids do not fit below 2^31: at most %d", i.Count, env.IDRangeSize, maxIDRanges)
		return
	}
	switch end := uint64(i.Base) + uint64(i.Count)*env.IDRangeSize; {
	case i.Base%env.IDRangeSize != 0:
		l.addf("ids.base", "%d is not a multiple of %d", i.Base, env.IDRangeSize)
	case i.Base < env.IDRangeSize:
		l.addf("ids.base", "%d overlaps the host's own users: want at least %d", i.Base, env.IDRangeSize)
	case end > idRangesEnd:
		l.addf("ids.base", "the ranges end at %d, beyond 2^31: lower base or count", end)
	}
}

func (m Limits) validate(l *faultList, ids IDs) {
	if m.Slots < 0 {
		l.addf("limits.slots", "%d is negative", m.Slots)
	}
	if m.Slots > maxNodeSlots {
		l.addf("limits.slots", "%d is more than a node has room for: at most %d", m.Slots, maxNodeSlots)
	}
	if m.Slots > int(ids.Count) {
		l.addf("limits.slots", "%d slots need as many id ranges, and ids.count is %d: raise it", m.Slots, ids.Count)
	}
	if m.Memory < 64*mib {
		l.addf("limits.memory", "%d bytes is less than any environment needs: want at least 64Mi", m.Memory)
	}
	if m.PIDs < minPIDs {
		l.addf("limits.pids", "%d is less than any environment needs: want at least %d", m.PIDs, minPIDs)
	}
}

func (d Resources) validate(l *faultList, m Limits) {
	checkCPU(l, "defaults.cpu", int64(d.CPU))
	checkMemory(l, "defaults.memory", int64(d.Memory))
	checkPIDs(l, "defaults.pids", d.PIDs)
	if d.Memory > m.Memory {
		l.addf("defaults.memory", "is more than limits.memory: no environment with the default would fit")
	}
	if d.PIDs > m.PIDs {
		l.addf("defaults.pids", "is more than limits.pids: no environment with the default would fit")
	}
}

func (t Tracing) validate(l *faultList) {
	if t.Endpoint != "" {
		if u, err := url.Parse(t.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			l.addf("tracing.endpoint", "%.128q is not a URL such as http://collector.monitoring:4318", t.Endpoint)
		}
	}
	if t.Sample < 0 || t.Sample > 1 {
		l.addf("tracing.sample", "%g: want a share above 0, at most 1; an empty tracing.endpoint traces nothing", t.Sample)
	}
}

func (g Log) validate(l *faultList) {
	l.oneOf("log.level", g.Level, "debug", "info", "warn", "error")
	l.oneOf("log.format", g.Format, "text", "json")
}

func (c Controller) validate() []fault {
	var l faultList
	l.instance("instance", c.Instance)
	l.absPath("stateDir", c.StateDir)
	l.absPath("keysFile", c.KeysFile)
	l.absPath("joinTokenFile", c.JoinTokenFile)
	l.listen("api.listen", c.API.Listen)
	l.listen("api.metrics", c.API.Metrics)
	for i, n := range c.API.Names {
		if _, err := netip.ParseAddr(n); err != nil {
			l.dnsName(index("api.names", i), n)
		}
	}
	h, lost := c.Fleet.Heartbeat.Duration, c.Fleet.LostAfter.Duration
	if h < 100*time.Millisecond || h > time.Minute {
		l.addf("fleet.heartbeat", "%s: want 100ms to 1m", h)
	}
	if lost < 2*h {
		l.addf("fleet.lostAfter", "%s: want at least two heartbeats, %s", lost, 2*h)
	}
	fence, place := c.Fleet.FenceAfter.Duration, c.Fleet.PlaceAfter.Duration
	if fence > 0 && fence < lost {
		l.addf("fleet.fenceAfter", "%s: want at least fleet.lostAfter, %s, or a negative time for never", fence, lost)
	}
	if place <= fence || place < lost {
		l.addf("fleet.placeAfter", "%s: want more than fleet.fenceAfter, %s, so that a node has stopped what is given up here", place, fence)
	}
	if c.Kubernetes != nil {
		c.Kubernetes.validate(&l)
	}
	c.Log.validate(&l)
	c.Tracing.validate(&l)
	return l.faults
}

func (k Kubernetes) validate(l *faultList) {
	if k.Kubeconfig != "" {
		l.absPath("kubernetes.kubeconfig", k.Kubeconfig)
	}
	for _, n := range []struct{ key, name string }{
		{"kubernetes.namespace", k.Namespace}, {"kubernetes.agentNamespace", k.AgentNamespace}, {"kubernetes.agentAccount", k.AgentAccount},
		{"kubernetes.lease", k.Lease}, {"kubernetes.service", k.Service}, {"kubernetes.webhook.configuration", k.Webhook.Configuration},
		{"kubernetes.hold.priorityClass", k.Hold.PriorityClass},
	} {
		l.dnsName(n.key, n.name)
	}
	l.listen("kubernetes.webhook.listen", k.Webhook.Listen)
	for _, s := range []struct {
		key   string
		value Share
	}{{"kubernetes.hold.memory", k.Hold.Memory}, {"kubernetes.hold.cpu", k.Hold.CPU}} {
		if percent, amount, err := s.value.Parts(); err == nil && percent == 0 && amount == 0 {
			l.addf(s.key, "is 0: environments would have nothing; taint the node or label it hearth.run/exclude instead")
		}
	}
	if k.Hold.Image == "" {
		l.addf("kubernetes.hold.image", "is missing: give an image that does nothing, for ever")
	}
}

// instance checks a name that becomes part of paths, links and namespaces.
func (l *faultList) instance(key, s string) {
	if len(s) > maxInstance || !isLabel(s) {
		l.addf(key, "%.64q: want 1 to %d characters of a-z, 0-9 and inner dashes", s, maxInstance)
	}
}

func (l *faultList) dnsName(key, s string) {
	ok := len(s) > 0 && len(s) <= 253
	for part := range strings.SplitSeq(s, ".") {
		ok = ok && isLabel(part)
	}
	if !ok {
		l.addf(key, "%.64q is not a host name (RFC 1123): a-z, 0-9, inner dashes, dots between", s)
	}
}

func (l *faultList) absPath(key, s string) {
	switch {
	case s == "":
		l.addf(key, "is missing: give an absolute path")
	case !filepath.IsAbs(s) || filepath.Clean(s) != s || strings.ContainsRune(s, 0):
		l.addf(key, "%.128q is not an absolute path without . and ..", s)
	}
}

func (l *faultList) prefix4(key string, p netip.Prefix) {
	switch {
	case !p.Addr().Is4():
		l.addf(key, "%s is not an IPv4 prefix such as 192.0.2.0/24", p)
	case p.Masked() != p:
		l.addf(key, "%s has bits behind its prefix: write %s, or %s/32 for one address", p, p.Masked(), p.Addr())
	}
}

// listen checks an address to listen on: the host may be empty.
func (l *faultList) listen(key, s string) {
	if _, port, err := net.SplitHostPort(s); err != nil || !isPort(port, true) {
		l.addf(key, "%.128q is not an address to listen on such as :7401 or 127.0.0.1:7402", s)
	}
}

func (l *faultList) hostPort(key, s string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || !isPort(port, false) {
		l.addf(key, "%.128q is not host:port", s)
	}
}

func (l *faultList) oneOf(key, s string, allowed ...string) {
	if !slices.Contains(allowed, s) {
		l.addf(key, "%.64q: want %s", s, alternatives(allowed))
	}
}

func alternatives(words []string) string {
	n := len(words) - 1
	return strings.Join(words[:n], ", ") + " or " + words[n]
}

func isPort(s string, zero bool) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && (n > 0 || zero)
}

// isLabel is RFC 1123's label, in lower case.
func isLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }
