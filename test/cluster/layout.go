package cluster

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
)

// Addresses: documentation and benchmark ranges (RFC 5737, RFC 2544). The
// namespaces have no link to the machine, so nothing leaves in any case.
const (
	podRange     = "198.51.100.0/24" // a /25 for each node
	serviceRange = "203.0.113.0/24"
	apiServiceIP = "203.0.113.1"
	dnsServiceIP = "203.0.113.10"
	apiPort      = 6443
	dnsPort      = 5300
	domain       = "cluster.local"
)

// What the internet's host answers on, besides the nodes' gateway addresses.
var (
	// PublicAddresses are ordinary hosts; the first is also the DNS resolver
	// that nodes use.
	PublicAddresses = []string{"8.8.8.8", "1.1.1.1", "93.184.216.34"}
	// MetadataAddresses impersonate the metadata services of clouds.
	MetadataAddresses = []string{"169.254.169.254", "100.100.100.200", "168.63.129.16"}
	// PrivateAddresses impersonate internal services.
	PrivateAddresses = []string{"10.99.0.1", "172.31.99.1", "192.168.99.1"}
)

// Ports of the internet's host, on each of its addresses.
const (
	HTTPPort    = 80   // TCP: any path says which address was asked, and by whom
	EchoPort    = 7    // TCP and UDP: sends back what it gets
	StratumPort = 3333 // TCP: echo, where a miner would expect its pool
	DNSPort     = 53   // UDP and TCP: see internet.go
)

// A Node is one of the cluster's machines.
type Node struct {
	// Name is "node1" or "node2"; node1 also runs the control plane.
	Name  string
	index int
	dir   string
}

// IP is the node's address; kubelet, the API server and hostNetwork pods listen
// there.
func (n Node) IP() string { return fmt.Sprintf("198.18.%d.1", n.index) }

func (n Node) gateway() string { return fmt.Sprintf("198.18.%d.254", n.index) }

// PodCIDR is the range of the node's pods.
func (n Node) PodCIDR() string {
	base := netip.MustParsePrefix(podRange).Addr().As4()
	base[3] = byte((n.index - 1) * 128)
	return netip.PrefixFrom(netip.AddrFrom4(base), 25).String()
}

func (n Node) path(name string) string { return filepath.Join(n.dir, name) }

// private are directories of which each node has its own, on its own disk: so
// default paths work on every node, and nothing is written to the machine's.
// /run is a tmpfs of its own as well.
var private = []string{
	"/var/lib/kubelet", "/var/lib/cni", "/var/lib/containerd", "/var/lib/hearth",
	"/var/log/pods", "/var/log/containers", "/etc/hearth", "/etc/cni",
}

func (o *Options) path(name string) string    { return filepath.Join(o.Dir, name) }
func (o *Options) program(name string) string { return filepath.Join(o.BinDir, name) }

func (o *Options) nodes() []Node {
	nodes := make([]Node, o.Nodes)
	for i := range nodes {
		name := fmt.Sprintf("node%d", i+1)
		nodes[i] = Node{Name: name, index: i + 1, dir: o.path(name)}
	}
	return nodes
}

func (o *Options) node(name string) (Node, error) {
	nodes := o.nodes()
	i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return Node{}, fmt.Errorf("no node %q: this cluster has %d", name, o.Nodes)
	}
	return nodes[i], nil
}

// server is the API server's address for every client.
func (o *Options) server() string { return fmt.Sprintf("https://%s:%d", o.nodes()[0].IP(), apiPort) }
