package cluster

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// wire joins each node to the internet's host by a veth pair. That host routes
// between the nodes and is the end of the world: it has no route further.
func (c *Cluster) wire() error {
	internet, err := c.pid(internetHolder)
	if err != nil {
		return err
	}
	if err := c.inInternet("ip link set lo up", "sysctl -qw net.ipv4.ip_forward=1"); err != nil {
		return err
	}
	for _, a := range slices.Concat(PublicAddresses, MetadataAddresses, PrivateAddresses) {
		if err := c.inInternet("ip addr add " + a + "/32 dev lo"); err != nil {
			return err
		}
	}
	for _, n := range c.nodes() {
		holder, err := c.pid(n.Name)
		if err != nil {
			return err
		}
		if err := netnsRun(holder,
			"ip link set lo up",
			"ip link add eth0 type veth peer name "+n.Name+" netns "+strconv.Itoa(internet),
			"ip addr add "+n.IP()+"/24 dev eth0",
			"ip link set eth0 up",
			"ip route add default via "+n.gateway(),
		); err != nil {
			return err
		}
		if err := c.inInternet(
			"ip addr add "+n.gateway()+"/24 dev "+n.Name,
			"ip link set "+n.Name+" up",
			"ip route add "+n.PodCIDR()+" via "+n.IP(),
		); err != nil {
			return err
		}
	}
	return nil
}

// AddInternetAddress gives the internet's host one more IPv4 address, on which
// it answers like on the others, by TCP.
func (c *Cluster) AddInternetAddress(addr string) error {
	return c.inInternet("ip addr add " + addr + "/32 dev lo")
}

// Partition silently drops every packet between two nodes, their pods'
// included, in both directions. Processes on both go on, and so does their
// traffic with the internet.
func (c *Cluster) Partition(a, b string) error {
	for _, name := range []string{a, b} {
		if _, err := c.node(name); err != nil {
			return err
		}
	}
	return c.inInternet(
		"nft add table inet partition",
		"nft add chain inet partition forward { type filter hook forward priority 0; }",
		fmt.Sprintf("nft add rule inet partition forward iifname %s oifname %s counter drop", a, b),
		fmt.Sprintf("nft add rule inet partition forward iifname %s oifname %s counter drop", b, a),
	)
}

// Heal ends every partition.
func (c *Cluster) Heal() error {
	return c.inInternet("nft add table inet partition", "nft delete table inet partition")
}

// inInternet runs commands in the network namespace of the internet's host.
func (c *Cluster) inInternet(lines ...string) error {
	pid, err := c.pid(internetHolder)
	if err != nil {
		return err
	}
	return netnsRun(pid, lines...)
}

func netnsRun(pid int, lines ...string) error {
	for _, line := range lines {
		argv := append([]string{"nsenter", "--target", strconv.Itoa(pid), "--net", "--"}, strings.Fields(line)...)
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}
