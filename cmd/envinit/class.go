package main

import (
	"strings"
	"time"

	"hearth/internal/guest/wire"
)

// Probing, unless the class says otherwise.
const (
	defaultProbeTimeout  = 30 * time.Second
	defaultProbeInterval = 50 * time.Millisecond
	leastProbeInterval   = 10 * time.Millisecond
	firstProbePause      = time.Millisecond
	probeAttempt         = 5 * time.Second // of one try
)

// checkClass refuses what the node should not have let through.
func checkClass(c *wire.Configure) error {
	if len(c.Services) > wire.MaxServices {
		return wire.Errorf(wire.CodeInvalid, "%d services, at most %d are possible", len(c.Services), wire.MaxServices)
	}
	if err := wire.CheckVariables(c.Variables); err != nil {
		return wire.Errorf(wire.CodeInvalid, "class variables: %v", err)
	}
	seen := map[string]bool{}
	for _, s := range c.Services {
		if err := checkService(s); err != nil {
			return err
		}
		if seen[s.Name] {
			return wire.Errorf(wire.CodeInvalid, "service %q is there twice", s.Name)
		}
		seen[s.Name] = true
	}
	return checkProbe(c.Probe)
}

func checkService(s wire.Service) error {
	switch {
	case !plainName(s.Name):
		return wire.Errorf(wire.CodeInvalid, "service name %.64q must be 1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit", s.Name)
	case len(s.Command) == 0 || s.Command[0] == "":
		return wire.Errorf(wire.CodeInvalid, "service %q has no command", s.Name)
	case s.Start != "" && s.Start != wire.StartAtBoot && s.Start != wire.StartAfterClaim:
		return wire.Errorf(wire.CodeInvalid, "service %q: start %.32q is neither %q nor %q", s.Name, s.Start, wire.StartAtBoot, wire.StartAfterClaim)
	case s.Restart != "" && s.Restart != wire.RestartAlways && s.Restart != wire.RestartNever:
		return wire.Errorf(wire.CodeInvalid, "service %q: restart %.32q is neither %q nor %q", s.Name, s.Restart, wire.RestartAlways, wire.RestartNever)
	}
	if err := wire.CheckVariables(s.Env); err != nil {
		return wire.Errorf(wire.CodeInvalid, "service %q: %v", s.Name, err)
	}
	return nil
}

// plainName keeps a service's log file in its directory.
func plainName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i, c := range []byte(s) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}

func checkProbe(p wire.Probe) error {
	kinds := 0
	for _, set := range []bool{len(p.Command) > 0, p.TCPPort != 0, p.HTTP != nil, p.File != nil} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return wire.Errorf(wire.CodeInvalid, "readiness has more than one of command, tcpPort, http and file")
	case p.HTTP != nil && p.HTTP.Port == 0:
		return wire.Errorf(wire.CodeInvalid, "readiness http has no port")
	case p.HTTP != nil && !plainPath(p.HTTP.Path):
		return wire.Errorf(wire.CodeInvalid, "readiness http path %.128q must begin with / and hold no space or control character", p.HTTP.Path)
	case p.File != nil && (!strings.HasPrefix(p.File.Path, "/") || strings.ContainsRune(p.File.Path, 0)):
		return wire.Errorf(wire.CodeInvalid, "readiness file %.128q is not an absolute path", p.File.Path)
	}
	return nil
}

func plainPath(path string) bool {
	if path == "" {
		return true // stands for /
	}
	return path[0] == '/' && strings.IndexFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f }) < 0
}

// timesOf returns how long to probe and how often.
func timesOf(p wire.Probe, limit time.Duration) (timeout, interval time.Duration) {
	timeout, interval = p.Timeout, p.Interval
	if timeout <= 0 {
		timeout = defaultProbeTimeout
	}
	if limit > 0 {
		timeout = min(timeout, limit)
	}
	if interval <= 0 {
		interval = defaultProbeInterval
	}
	return timeout, max(interval, leastProbeInterval)
}

// firstPause is that between the first two attempts; the next ones double, up to
// interval. Most services need a few milliseconds, which nobody should make a tenth of
// a second. A command is a process each time.
func firstPause(p wire.Probe, interval time.Duration) time.Duration {
	if len(p.Command) > 0 {
		return leastProbeInterval
	}
	return min(firstProbePause, interval)
}
