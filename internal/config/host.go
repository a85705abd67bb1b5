package config

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Host is what defaults derive from the machine, so that they stay a pure
// function of it.
type Host struct {
	Name        string // of the machine, or of the node that it is in the cluster
	Address     string // at which others reach it; empty if nobody said
	Executable  string // absolute path of the running binary
	MemoryBytes int64
	// Pod is the one that the process runs in; empty outside of Kubernetes.
	Pod Pod
	// Resolvers are the IPv4 name servers of resolv.conf(5), at most three.
	Resolvers []netip.Addr
}

// Pod is what a pod is told about itself.
type Pod struct {
	Namespace, Name, UID string
	IP                   string
}

// ThisHost asks the machine.
func ThisHost() (Host, error) {
	name, err := os.Hostname()
	if err != nil {
		return Host{}, fmt.Errorf("read the host's name: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return Host{}, fmt.Errorf("find the running binary: %w", err)
	}
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return Host{}, fmt.Errorf("read the host's memory: %w", err)
	}
	defer f.Close()
	mem, err := memTotal(f)
	if err != nil {
		return Host{}, err
	}
	return Host{Name: strings.ToLower(name), Executable: exe, MemoryBytes: mem, Resolvers: hostResolvers()}, nil
}

// hostResolvers is empty on a host that has no resolv.conf.
func hostResolvers() []netip.Addr {
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	defer f.Close()
	return nameServers(f)
}

// maxResolvers is MAXNS of resolv.h.
const maxResolvers = 3

// nameServers reads the form of resolv.conf(5) and skips what is not IPv4.
func nameServers(r io.Reader) []netip.Addr {
	var out []netip.Addr
	for s := bufio.NewScanner(r); s.Scan() && len(out) < maxResolvers; {
		words := strings.Fields(s.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil && a.Is4() {
			out = append(out, a)
		}
	}
	return out
}

// memTotal finds MemTotal in the form of proc_meminfo(5).
func memTotal(r io.Reader) (int64, error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		rest, ok := strings.CutPrefix(s.Text(), "MemTotal:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the host's memory: parse %q: %w", s.Text(), err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("read the host's memory: no MemTotal in /proc/meminfo")
}
