package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/internal/env"
)

// idRangesEnd is where the default id ranges end: user and group ids from 2^31
// on are negative to programs that keep them in an int.
const idRangesEnd = 1 << 31

const mib = 1 << 20

// defaultAgent sets whatever a leaves empty. It is the only place where the
// agent's defaults are.
func defaultAgent(a Agent, host Host) Agent {
	def(&a.Instance, "hearth")
	def(&a.Node, host.Name)
	def(&a.StateDir, filepath.Join("/var/lib", a.Instance))
	def(&a.RunDir, filepath.Join("/run", a.Instance))
	def(&a.ClassesDir, "/etc/hearth/classes")
	def(&a.InitPath, filepath.Join(filepath.Dir(host.Executable), "envinit"))
	if a.Containerd.BinDir == "" {
		def(&a.Containerd.Address, "/run/containerd/containerd.sock")
	} else {
		def(&a.Containerd.Runtime, filepath.Join(a.Containerd.BinDir, "runc"))
	}
	if len(a.Containerd.Runtimes) == 0 {
		a.Containerd.Runtimes = map[string]string{"crun": "crun"}
	}
	def(&a.Containerd.Namespace, a.Instance)
	def(&a.Containerd.Snapshotter, "overlayfs")
	def(&a.Containerd.SlotsPerShim, 8)
	def(&a.Network.Pool, netip.MustParsePrefix("100.96.0.0/12"))
	def(&a.Network.LinkPrefix, linkPrefix(a.Instance))
	if a.Network.Resolvers == nil {
		for _, r := range host.Resolvers {
			a.Network.Resolvers = append(a.Network.Resolvers, Resolver{netip.AddrPortFrom(r, 53)})
		}
	}
	if a.Network.Refused == nil {
		a.Network.Refused = []netip.Prefix{}
	}
	def(&a.IDs.Count, 4096)
	def(&a.IDs.Base, idRangesEnd-min(a.IDs.Count, maxIDRanges)*env.IDRangeSize)
	def(&a.Limits.Slots, 256)
	def(&a.Limits.Memory, Bytes(max(host.MemoryBytes/4*3/mib, 1)*mib))
	def(&a.Limits.PIDs, 131072)
	def(&a.Defaults.CPU, 1000)
	def(&a.Defaults.Memory, 1024*mib)
	def(&a.Defaults.PIDs, 1024)
	def(&a.Refill.CPUPressure, 90)
	def(&a.Refill.MemoryPressure, 25)
	def(&a.Refill.IOPressure, 75)
	def(&a.Claims.ColdStarts, 4)
	def(&a.Claims.Queue, 256)
	def(&a.API.Listen, ":7401")
	def(&a.API.Advertise, net.JoinHostPort(cmp.Or(host.Address, a.Node), portOf(a.API.Listen)))
	def(&a.API.Metrics, "127.0.0.1:7402")
	def(&a.API.Socket, filepath.Join(a.RunDir, "node.sock"))
	if a.Controller != nil && a.Controller.Kubernetes != nil {
		link := *a.Controller.Kubernetes
		def(&link.Namespace, "hearth-system")
		def(&link.Lease, "hearth-controller")
		def(&link.TokenFile, "/var/run/secrets/hearth.run/token")
		a.Controller = &ControllerLink{Address: a.Controller.Address, JoinTokenFile: a.Controller.JoinTokenFile, Kubernetes: &link}
	}
	def(&a.Snapshots.Dir, filepath.Join(a.StateDir, "snapshots"))
	def(&a.Snapshots.MaxFiles, 5_000_000)
	def(&a.Snapshots.MaxNames, 128*mib)
	def(&a.Snapshots.MaxBytes, 256*1024*mib)
	def(&a.Disk.KeepFree, "16%")
	def(&a.Disk.KeepFreeInodes, "6%")
	defaultLog(&a.Log)
	def(&a.Tracing.Sample, 1)
	return a
}

// defaultController sets whatever c leaves empty.
func defaultController(c Controller, host Host) Controller {
	if c.Kubernetes != nil {
		c = defaultKubernetes(c, host)
	}
	def(&c.Instance, "hearth")
	def(&c.StateDir, filepath.Join("/var/lib", c.Instance+"-controller"))
	def(&c.API.Listen, ":7400")
	if len(c.API.Names) == 0 {
		c.API.Names = []string{host.Name, "localhost", "127.0.0.1"}
	}
	def(&c.API.Metrics, "127.0.0.1:7403")
	def(&c.KeysFile, filepath.Join(c.StateDir, "keys.yaml"))
	def(&c.JoinTokenFile, filepath.Join(c.StateDir, "join-token"))
	def(&c.Fleet.Heartbeat, metav1.Duration{Duration: 2 * time.Second})
	def(&c.Fleet.LostAfter, metav1.Duration{Duration: 5 * c.Fleet.Heartbeat.Duration})
	def(&c.Fleet.FenceAfter, metav1.Duration{Duration: 5 * time.Minute})
	def(&c.Fleet.PlaceAfter, metav1.Duration{Duration: max(c.Fleet.FenceAfter.Duration, 0) + time.Minute})
	defaultLog(&c.Log)
	def(&c.Tracing.Sample, 1)
	return c
}

// defaultKubernetes sets what is different in a cluster, and the section's own.
func defaultKubernetes(c Controller, host Host) Controller {
	k := *c.Kubernetes
	def(&k.Pod, host.Pod)
	def(&k.Namespace, cmp.Or(host.Pod.Namespace, "hearth-system"))
	def(&k.AgentNamespace, "hearth-nodes")
	def(&k.AgentAccount, "hearth-nodeagent")
	def(&k.Lease, "hearth-controller")
	def(&k.Service, "hearth-controller")
	def(&k.Webhook.Listen, ":7403")
	def(&k.Webhook.Configuration, "hearth-drain")
	def(&k.Hold.Image, "hearth/pause:devel")
	def(&k.Hold.Memory, "50%")
	def(&k.Hold.CPU, "50%")
	def(&k.Hold.PriorityClass, "hearth-hold")
	if len(c.API.Names) == 0 {
		c.API.Names = []string{k.Service, k.Service + "." + k.Namespace, k.Service + "." + k.Namespace + ".svc", "localhost", "127.0.0.1"}
	}
	if ip := host.Pod.IP; ip != "" && !slices.Contains(c.API.Names, ip) {
		c.API.Names = append(slices.Clone(c.API.Names), ip)
	}
	def(&c.API.Metrics, ":7402")
	c.Kubernetes = &k
	return c
}

func defaultLog(l *Log) {
	def(&l.Level, "info")
	def(&l.Format, "text")
}

func def[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// linkPrefix is short, since a link's name has 15 characters (IFNAMSIZ).
// Instances other than the default one are told apart by their hash.
func linkPrefix(instance string) string {
	if instance == "hearth" {
		return "hth"
	}
	sum := sha256.Sum256([]byte(instance))
	return "h" + hex.EncodeToString(sum[:2])
}

func portOf(listen string) string {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	return port
}
