package config

import (
	"net/netip"
	"path"
	"regexp"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// Bounds of a class.
const (
	maxServices    = 64
	maxPorts       = 64
	maxMounts      = 64
	maxRules       = 1000
	maxRulePorts   = 64
	maxCommandArgs = 256
	maxEnvBytes    = 64 << 10
	maxSlots       = 1000
	minCPUMillis   = env.MinCPUMillis
	maxCPUMillis   = env.MaxCPUMillis
	minMemory      = env.MinMemoryBytes
	maxMemory      = env.MaxMemoryBytes
	minPIDs        = 16
	maxPIDs        = 1 << 22 // PID_MAX_LIMIT, include/linux/threads.h
	minWarmAge     = time.Minute
	minWarmCheck   = time.Second
	maxWarmWait    = 30 * time.Second // a controller gives a node a minute for a claim, a cold start included
	maxProbeTime   = time.Hour
	minProbePause  = 10 * time.Millisecond
	minTimeToLive  = time.Second
	maxTimeToLive  = 10 * 365 * 24 * time.Hour // as internal/warm has it
	minIdle        = 5 * time.Second
	maxPath        = 4095 // PATH_MAX less its end, include/uapi/linux/limits.h
)

func validateMeta(l *faultList, m *v1alpha1.EnvironmentClass) {
	if !isLabel(m.Name) {
		l.addf("metadata.name", "%.64q is not a class name: 1 to 63 characters of a-z, 0-9 and inner dashes", m.Name)
	}
	if m.Namespace != "" {
		l.addf("metadata.namespace", "classes have no namespace: remove it")
	}
}

func validateSpec(l *faultList, s v1alpha1.EnvironmentClassSpec) {
	checkImage(l, s.Image)
	checkRuntime(l, "spec.runtime", s.Runtime)
	checkEnv(l, "spec.env", s.Env)
	checkServices(l, s.Services)
	checkReadiness(l, s.Readiness)
	checkResources(l, s.Resources)
	checkWarm(l, s.Warm)
	checkEgress(l, s.Egress)
	for sev, resp := range s.Detection.Responses {
		at := "spec.detection.responses"
		l.oneOf(at, string(sev), string(env.SeverityLow), string(env.SeverityMedium), string(env.SeverityHigh), string(env.SeverityCritical))
		l.oneOf(at+"."+string(sev), string(resp), string(env.ResponseRecord), string(env.ResponseAlert), string(env.ResponseFreeze))
	}
	checkPorts(l, s.Ports)
	checkMounts(l, s.Mounts)
	checkHygiene(l, s.Hygiene)
	checkLifetime(l, s.Lifetime)
	l.oneOf("spec.durability", string(s.Durability), "durable", "ephemeral")
	l.oneOf("spec.onPartition", string(s.OnPartition), "fence", "run")
}

// imagePattern is the shape of an OCI reference: path of the distribution
// specification, with an optional registry, tag and digest.
func imagePattern() *regexp.Regexp {
	return regexp.MustCompile(`^([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$`)
}

func checkImage(l *faultList, image string) {
	switch {
	case image == "":
		l.addf("spec.image", "is missing: name an image, such as registry.example.com/agents/base:1.4")
	case len(image) > 512 || !imagePattern().MatchString(image):
		l.addf("spec.image", "%.128q is not an image reference such as registry.example.com/agents/base:1.4", image)
	}
}

func checkMounts(l *faultList, names []string) {
	if len(names) > maxMounts {
		l.addf("spec.mounts", "has %d names, at most %d are allowed", len(names), maxMounts)
	}
	seen := map[string]bool{}
	for i, name := range names {
		l.label(index("spec.mounts", i), name, seen)
	}
}

func checkRuntime(l *faultList, at, name string) {
	if !isLabel(name) {
		l.addf(at, "%.64q is not a runtime's name such as runc or crun: want 1 to 63 characters of a-z, 0-9 and inner dashes", name)
	}
}

// envName is POSIX's (XBD 8.1), with lower case allowed.
func isEnvName(s string) bool {
	if s == "" || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

func checkEnv(l *faultList, at string, vars map[string]string) {
	size := 0
	for name, value := range vars {
		size += len(name) + len(value) + 2
		if !isEnvName(name) {
			l.addf(at, "%.64q is not a variable's name: letters, digits and _, no digit first", name)
		}
		if strings.ContainsRune(value, 0) {
			l.addf(at+"."+name, "holds a zero byte")
		}
	}
	if size > maxEnvBytes {
		l.addf(at, "has %d bytes in all, at most %d are allowed", size, maxEnvBytes)
	}
}

func checkServices(l *faultList, services []v1alpha1.Service) {
	if len(services) > maxServices {
		l.addf("spec.services", "has %d services, at most %d are allowed", len(services), maxServices)
		return
	}
	seen := map[string]bool{}
	for i, s := range services {
		at := index("spec.services", i)
		l.label(at+".name", s.Name, seen)
		checkCommand(l, at+".command", s.Command)
		if !path.IsAbs(s.Dir) || strings.ContainsRune(s.Dir, 0) {
			l.addf(at+".dir", "%.128q is not an absolute path", s.Dir)
		}
		checkEnv(l, at+".env", s.Env)
		l.oneOf(at+".start", string(s.Start), string(env.StartAtBoot), string(env.StartAfterClaim))
		l.oneOf(at+".restart", string(s.Restart), string(env.RestartAlways), string(env.RestartNever))
	}
}

func (l *faultList) label(at, name string, seen map[string]bool) {
	switch {
	case !isLabel(name):
		l.addf(at, "%.64q: want 1 to 63 characters of a-z, 0-9 and inner dashes", name)
	case seen[name]:
		l.addf(at, "%s is there twice", name)
	}
	seen[name] = true
}

func checkCommand(l *faultList, at string, command []string) {
	if len(command) == 0 || command[0] == "" {
		l.addf(at, `is empty: name a program and its arguments, such as ["/bin/sh", "-c", "…"]`)
	}
	if len(command) > maxCommandArgs {
		l.addf(at, "has %d words, at most %d are allowed", len(command), maxCommandArgs)
	}
	for i, w := range command {
		if strings.ContainsRune(w, 0) {
			l.addf(index(at, i), "holds a zero byte")
		}
	}
}

func checkReadiness(l *faultList, r *v1alpha1.Readiness) {
	if r == nil {
		return
	}
	const at = "spec.readiness"
	kinds := 0
	if r.Command != nil {
		kinds++
		checkCommand(l, at+".command", r.Command)
	}
	if r.TCP != nil {
		kinds++
		checkPort(l, at+".tcp.port", r.TCP.Port)
	}
	if r.HTTP != nil {
		kinds++
		checkPort(l, at+".http.port", r.HTTP.Port)
		if !strings.HasPrefix(r.HTTP.Path, "/") || strings.ContainsAny(r.HTTP.Path, " \r\n\x00") {
			l.addf(at+".http.path", "%.128q is not a path such as /healthz", r.HTTP.Path)
		}
	}
	if r.File != nil {
		kinds++
		if p := r.File.Path; !path.IsAbs(p) || len(p) > maxPath || strings.ContainsRune(p, 0) {
			l.addf(at+".file.path", "%.128q is not an absolute path such as /run/ready", p)
		}
	}
	if kinds != 1 {
		l.addf(at, "has %d probes: want exactly one of command, tcp, http and file", kinds)
	}
	timeout, interval := r.Timeout.Duration, r.Interval.Duration
	if timeout <= 0 || timeout > maxProbeTime {
		l.addf(at+".timeout", "%s: want more than 0 and at most %s", timeout, maxProbeTime)
	}
	if interval < minProbePause || interval > maxProbeTime {
		l.addf(at+".interval", "%s: want %s to %s", interval, minProbePause, maxProbeTime)
	}
}

func checkCPU(l *faultList, at string, millis int64) {
	if millis < minCPUMillis || millis > maxCPUMillis {
		l.addf(at, "%dm: want %dm to %dm (thousandths of a CPU)", millis, minCPUMillis, maxCPUMillis)
	}
}

func checkMemory(l *faultList, at string, bytes int64) {
	if bytes < minMemory || bytes > maxMemory {
		l.addf(at, "%d bytes: want %dMi to %dTi", bytes, minMemory/mib, maxMemory>>40)
	}
}

func checkPIDs(l *faultList, at string, pids int64) {
	if pids < minPIDs || pids > maxPIDs {
		l.addf(at, "%d: want %d to %d", pids, minPIDs, maxPIDs)
	}
}

func checkWarm(l *faultList, w v1alpha1.Warm) {
	if w.Slots < 0 || w.Slots > maxSlots {
		l.addf("spec.warm.slots", "%d: want 0 to %d", w.Slots, maxSlots)
	}
	if w.Created < 0 || w.Created > maxSlots {
		l.addf("spec.warm.created", "%d: want 0 to %d", w.Created, maxSlots)
	}
	if w.MaxAge != nil && w.MaxAge.Duration < minWarmAge {
		l.addf("spec.warm.maxAge", "%s: want at least %s, or no maxAge at all", w.MaxAge.Duration, minWarmAge)
	}
	if d := w.CheckEvery.Duration; d != 0 && d < minWarmCheck {
		l.addf("spec.warm.checkEvery", "%s: want at least %s, or 0s for never", d, minWarmCheck)
	}
	if d := w.Wait.Duration; d < 0 || d > maxWarmWait {
		l.addf("spec.warm.wait", "%s: want at most %s, or 0s for not at all: callers and controllers do not wait for longer", d, maxWarmWait)
	}
	if w.RollEvery != nil && w.RollEvery.Duration < 0 {
		l.addf("spec.warm.rollEvery", "%s: want more than 0, or no rollEvery at all", w.RollEvery.Duration)
	}
}

func checkEgress(l *faultList, e v1alpha1.Egress) {
	const at = "spec.egress"
	l.oneOf(at+".mode", string(e.Mode), string(env.EgressInternet), string(env.EgressNone), string(env.EgressAllow))
	switch mode := env.EgressMode(e.Mode); {
	case mode == env.EgressAllow && len(e.Allow) == 0:
		l.addf(at+".allow", "mode allow without a rule allows nothing: add a rule or say mode none")
	case mode != env.EgressAllow && len(e.Allow) > 0:
		l.addf(at+".allow", "rules need mode allow, have mode %.64s", e.Mode)
	case mode == env.EgressNone && len(e.Deny) > 0:
		l.addf(at+".deny", "mode none refuses everything already: remove the rules")
	}
	checkRules(l, at+".allow", e.Allow)
	checkRules(l, at+".deny", e.Deny)
}

func checkRules(l *faultList, at string, rules []v1alpha1.EgressRule) {
	if len(rules) > maxRules {
		l.addf(at, "has %d rules, at most %d are allowed", len(rules), maxRules)
		return
	}
	for i, r := range rules {
		at := index(at, i)
		if p, err := netip.ParsePrefix(r.CIDR); err != nil {
			l.addf(at+".cidr", "%.64q is not an IPv4 prefix such as 192.0.2.0/24, or 192.0.2.7/32 for one address", r.CIDR)
		} else {
			l.prefix4(at+".cidr", p)
		}
		if len(r.Ports) > maxRulePorts {
			l.addf(at+".ports", "has %d entries, at most %d are allowed", len(r.Ports), maxRulePorts)
			continue
		}
		for j, p := range r.Ports {
			if _, ok := parsePortRange(p); !ok {
				l.addf(index(at+".ports", j), `%.64q is not a port or a rising range: "443", "8000-8100"`, p)
			}
		}
	}
}

func checkPorts(l *faultList, ports []v1alpha1.Port) {
	if len(ports) > maxPorts {
		l.addf("spec.ports", "has %d ports, at most %d are allowed", len(ports), maxPorts)
		return
	}
	seen, numbers := map[string]bool{}, map[int32]string{}
	for i, p := range ports {
		at := index("spec.ports", i)
		l.label(at+".name", p.Name, seen)
		checkPort(l, at+".port", p.Port)
		if other, ok := numbers[p.Port]; ok {
			l.addf(at+".port", "%d has the name %s already", p.Port, other)
		}
		numbers[p.Port] = p.Name
		l.oneOf(at+".protocol", string(p.Protocol), string(env.PortTCP), string(env.PortHTTP))
	}
}

func checkLifetime(l *faultList, in v1alpha1.Lifetime) {
	const at = "spec.lifetime"
	bound := func(name string, d *metav1.Duration, least time.Duration) {
		if d != nil && (d.Duration < least || d.Duration > maxTimeToLive) {
			l.addf(at+"."+name, "%s: want %s to %dh, or no %s at all", d.Duration, least, maxTimeToLive/time.Hour, name)
		}
	}
	bound("timeToLive", in.TimeToLive, minTimeToLive)
	bound("maxTimeToLive", in.MaxTimeToLive, minTimeToLive)
	bound("pauseWhenIdle", in.PauseWhenIdle, minIdle)
	if ttl, most := duration(in.TimeToLive), duration(in.MaxTimeToLive); most != 0 && ttl > most {
		l.addf(at+".timeToLive", "%s is longer than maxTimeToLive, %s: make it shorter, or maxTimeToLive longer", ttl, most)
	}
}

func checkPort(l *faultList, at string, port int32) {
	if port < 1 || port > 65535 {
		l.addf(at, "%d: want 1 to 65535", port)
	}
}
