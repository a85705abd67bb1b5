package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// Options say where a cluster lives and what it is made of.
type Options struct {
	// Dir holds its whole state: certificates, etcd, containers, logs. It must
	// not exist, and Stop removes it.
	Dir string `json:"dir"`
	// Nodes is 1 or 2.
	Nodes int `json:"nodes"`
	// BinDir has the programs of Kubernetes, etcd, the CNI plugins below cni/,
	// pause, and the command of this package as "cluster".
	BinDir string `json:"binDir"`
	// RuntimeDir has containerd, its shim, ctr and runc.
	RuntimeDir string `json:"runtimeDir"`
	// SandboxImage is the OCI archive of the pods' sandbox; it must contain
	// SandboxName. Empty: one is made of BinDir/pause.
	SandboxImage string `json:"sandboxImage,omitempty"`
	SandboxName  string `json:"sandboxName"`
	// NodeDisk is the size of each node's disk in bytes, at least 1 GiB. Of the
	// machine's it takes what is written there.
	NodeDisk int64 `json:"nodeDisk"`
	// NodeMonitorGrace is how long a silent node is believed, at least 10 s.
	NodeMonitorGrace time.Duration `json:"nodeMonitorGrace"`
	// Lock, if set, is a file that the cluster keeps locked while it lives;
	// Start waits for it. So people who share a machine take turns.
	Lock string `json:"lock,omitempty"`
	// Progress, if set, gets a line for each step of starting and stopping.
	Progress io.Writer `json:"-"`
}

// Defaults are the options of a cluster of this source tree. HEARTH_CLUSTER_DIR,
// HEARTH_CLUSTER_BIN, HEARTH_RUNTIME_DIR and HEARTH_CLUSTER_LOCK override where
// things are; root is the tree's root and may be relative.
func Defaults(root string, getenv func(string) string) (Options, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Options{}, err
	}
	or := func(name, otherwise string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return filepath.Join(root, otherwise)
	}
	return Options{
		Dir: or("HEARTH_CLUSTER_DIR", ".test/cluster"), Nodes: 2,
		BinDir:           or("HEARTH_CLUSTER_BIN", ".bin/cluster"),
		RuntimeDir:       or("HEARTH_RUNTIME_DIR", ".bin"),
		SandboxName:      "hearth.local/pause:1",
		NodeDisk:         defaultNodeDisk,
		NodeMonitorGrace: 20 * time.Second,
		Lock:             getenv("HEARTH_CLUSTER_LOCK"),
	}, nil
}

const maxNodes = 2

func (o *Options) validate() error {
	var faults []error
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		faults = append(faults, errors.New("a cluster makes namespaces and cgroups and needs root on Linux"))
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		faults = append(faults, fmt.Errorf("%d nodes: a cluster has 1 to %d", o.Nodes, maxNodes))
	}
	if o.NodeMonitorGrace < 10*time.Second {
		faults = append(faults, fmt.Errorf("node monitor grace %v is less than two heartbeats (10s)", o.NodeMonitorGrace))
	}
	if o.NodeDisk < leastNodeDisk {
		faults = append(faults, fmt.Errorf("node disk of %d bytes is less than %d", o.NodeDisk, leastNodeDisk))
	}
	if _, err := exec.LookPath("mke2fs"); err != nil {
		faults = append(faults, fmt.Errorf("program missing, run `make deps`: %w", err))
	}
	for _, p := range []string{o.Dir, o.BinDir, o.RuntimeDir} {
		if !filepath.IsAbs(p) {
			faults = append(faults, fmt.Errorf("%q is not an absolute path", p))
		}
	}
	for _, p := range o.programs() {
		if _, err := os.Stat(p); err != nil {
			faults = append(faults, fmt.Errorf("program missing, run `make deps cluster-binaries`: %w", err))
		}
	}
	return errors.Join(faults...)
}

func (o *Options) programs() (paths []string) {
	for _, p := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl", "etcd", "cluster", "cni/bridge", "cni/host-local", "cni/loopback", "cni/portmap"} {
		paths = append(paths, filepath.Join(o.BinDir, p))
	}
	for _, p := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc"} {
		paths = append(paths, filepath.Join(o.RuntimeDir, p))
	}
	return paths
}

func (o *Options) save() error {
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.Dir, "cluster.json"), append(b, '\n'), 0o600)
}

func loadOptions(dir string) (Options, error) {
	var o Options
	b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		return o, fmt.Errorf("no cluster in %s: %w", dir, err)
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return o, fmt.Errorf("read %s/cluster.json: %w", dir, err)
	}
	return o, nil
}
