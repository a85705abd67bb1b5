package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// classOf is pure: manifest in, class or faults out.
func classOf(m *v1alpha1.EnvironmentClass) (env.Class, []fault) {
	spec := defaultClass(m.Spec)
	var l faultList
	validateMeta(&l, m)
	validateSpec(&l, spec)
	if len(l.faults) > 0 {
		return env.Class{}, l.faults
	}
	rev, err := revision(spec)
	if err != nil {
		return env.Class{}, []fault{{text: "compute revision: " + oneLine(err)}}
	}
	return env.Class{
		Name:      m.Name,
		Revision:  rev,
		Image:     spec.Image,
		Runtime:   spec.Runtime,
		Env:       spec.Env,
		Services:  servicesOf(spec.Services),
		Readiness: probeOf(spec.Readiness),
		Resources: resourcesOf(spec.Resources),
		Warm:      warmOf(spec.Warm),
		Egress: env.EgressPolicy{
			Mode:  env.EgressMode(spec.Egress.Mode),
			Allow: rulesOf(spec.Egress.Allow),
			Deny:  rulesOf(spec.Egress.Deny),
		},
		Detection: env.DetectionPolicy{Responses: responsesOf(spec.Detection.Responses)},
		Snapshot:  env.SnapshotPolicy{OnRelease: spec.Snapshot.OnRelease},
		Ports:     portsOf(spec.Ports),
		Mounts:    spec.Mounts,
		Hygiene:   hygieneOf(spec.Hygiene),
		Lifetime:  lifetimeOf(spec.Lifetime),

		Ephemeral:      spec.Durability == "ephemeral",
		RunOnPartition: spec.OnPartition == "run",
	}, nil
}

// defaultClass sets whatever a specification leaves empty, on a copy. It is the
// only place where a class's defaults are, and says what the CRD's do.
func defaultClass(in v1alpha1.EnvironmentClassSpec) v1alpha1.EnvironmentClassSpec {
	s := *in.DeepCopy()
	def(&s.Runtime, env.DefaultRuntime)
	for i := range s.Services {
		def(&s.Services[i].Dir, "/")
		def(&s.Services[i].Start, v1alpha1.StartWhen(env.StartAtBoot))
		def(&s.Services[i].Restart, v1alpha1.RestartPolicy(env.RestartAlways))
	}
	if r := s.Readiness; r != nil {
		def(&r.Timeout, &metav1.Duration{Duration: 30 * time.Second})
		def(&r.Interval, &metav1.Duration{Duration: 100 * time.Millisecond})
		if r.HTTP != nil {
			def(&r.HTTP.Path, "/")
		}
	}
	def(&s.Warm.CheckEvery, &metav1.Duration{Duration: 10 * time.Minute})
	def(&s.Warm.Wait, &metav1.Duration{Duration: 10 * time.Second})
	def(&s.Durability, "durable")
	def(&s.OnPartition, "fence")
	def(&s.Egress.Mode, v1alpha1.EgressMode(env.EgressInternet))
	for i := range s.Ports {
		def(&s.Ports[i].Protocol, v1alpha1.PortProtocol(env.PortTCP))
	}
	return s
}

// revision hashes the specification's canonical form: JSON with sorted map
// keys, quantities and durations in their shortest form.
func revision(spec v1alpha1.EnvironmentClassSpec) (string, error) {
	spec.Warm, spec.Mounts = v1alpha1.Warm{}, nil // no slot is made otherwise for them
	if spec.Runtime == env.DefaultRuntime {
		spec.Runtime = "" // as it was before there were others
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte("hearth.run/v1alpha1\n"), data...))
	return hex.EncodeToString(sum[:]), nil
}

func servicesOf(in []v1alpha1.Service) []env.Service {
	var out []env.Service
	for _, s := range in {
		out = append(out, env.Service{
			Name: s.Name, Command: s.Command, Dir: s.Dir, Env: s.Env,
			Start: env.StartWhen(s.Start), Restart: env.RestartPolicy(s.Restart),
		})
	}
	return out
}

func probeOf(r *v1alpha1.Readiness) env.Probe {
	if r == nil {
		return env.Probe{}
	}
	p := env.Probe{Command: r.Command, Timeout: duration(r.Timeout), Interval: duration(r.Interval)}
	if r.TCP != nil {
		p.TCPPort = uint16(r.TCP.Port)
	}
	if r.HTTP != nil {
		p.HTTP = &env.HTTPProbe{Port: uint16(r.HTTP.Port), Path: r.HTTP.Path}
	}
	if r.File != nil {
		p.File = &env.FileProbe{Path: r.File.Path, NonEmpty: r.File.NonEmpty}
	}
	return p
}

func rulesOf(in []v1alpha1.EgressRule) []env.EgressRule {
	var out []env.EgressRule
	for _, r := range in {
		rule := env.EgressRule{CIDR: netip.MustParsePrefix(r.CIDR)} // validated
		for _, p := range r.Ports {
			pr, _ := parsePortRange(p) // validated
			rule.Ports = append(rule.Ports, pr)
		}
		out = append(out, rule)
	}
	return out
}

// parsePortRange reads "443" or "8000-8100".
func parsePortRange(p v1alpha1.PortRange) (env.PortRange, bool) {
	first, last, isRange := strings.Cut(string(p), "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return env.PortRange{}, false
	}
	return env.PortRange{First: uint16(a), Last: uint16(b)}, true
}

func responsesOf(in map[v1alpha1.Severity]v1alpha1.Response) map[string]string {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[string(k)] = string(v)
	}
	return out
}

func lifetimeOf(l v1alpha1.Lifetime) env.Lifetime {
	return env.Lifetime{
		TimeToLive: duration(l.TimeToLive), MaxTimeToLive: duration(l.MaxTimeToLive), PauseWhenIdle: duration(l.PauseWhenIdle),
	}
}

func portsOf(in []v1alpha1.Port) []env.Port {
	var out []env.Port
	for _, p := range in {
		out = append(out, env.Port{Name: p.Name, Number: uint16(p.Port), Protocol: env.PortProtocol(p.Protocol)})
	}
	return out
}

func duration(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}
