// Package cluster runs a real Kubernetes cluster on one machine for tests: etcd
// that syncs, the API server, controller-manager and scheduler, and one or two
// nodes with containerd, kubelet and kube-proxy (nftables), built from source.
//
// # What a node is
//
// A process that sleeps holds the node's network, mount, UTS and cgroup
// namespaces. Inside, the node has a sysfs, bpffs, tracefs and /run of its own,
// the roots of all cgroup hierarchies are its own cgroup, and the directories in
// which kubelet, containerd, CNI plugins and Hearth keep state are private, on a
// disk of the node's own. So default paths work unmodified on every node, what
// runs on two nodes of one kernel shares no path, and a node whose disk is full
// is alone with that. The PID namespace is the machine's.
//
//	node1 198.18.1.1 ─┐                          pods 198.51.100.0/25
//	                  ├─ the internet's host      services 203.0.113.0/24
//	node2 198.18.2.1 ─┘                          pods 198.51.100.128/25
//
// The internet's host is a further network namespace. It routes between the
// nodes, carries public, metadata and private addresses with small servers
// (ServeInternet), and has no route further and no link to the machine: no
// packet of a test can leave.
//
// # Tests that speak to the API
//
// The API server answers only inside the nodes' namespaces. A test that uses
// client-go therefore runs inside node1, as a whole:
//
//	.bin/cluster/cluster up
//	.bin/cluster/cluster in -- go test -tags e2e ./test/e2e
//	.bin/cluster/cluster down
//
// There KUBECONFIG is set and kubectl, ctr and cluster are in PATH. It finds
// the cluster with Open, and every method works there: commands on other nodes,
// stopping components, partitions. Only Stop does not, since it would end the
// test as well: who started the cluster stops it.
//
// Images come from archives (Load, LoadAll); no registry exists, so pods use
// imagePullPolicy Never or IfNotPresent.
//
// # Invariants
//
// Every process of a cluster, and all that it starts, is in a cgroup below
// /hearth-cluster. Stop kills that cgroup, so nothing outlives it, recorded or
// not; mounts, disks, links, pins and rules vanish with the namespaces. Single
// components are signalled by a recorded pid whose start time still fits.
// Sysctls that kubelet sets are put back, and directories that exist only to
// mount over are removed.
//
// It refuses to run twice on one machine, and to stop another directory's
// cluster unless told to with ForceStop.
package cluster
