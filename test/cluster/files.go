package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// object is a configuration in JSON, which every reader of YAML reads.
type object map[string]any

// files are the configuration of the whole cluster, by path.
func (o *Options) files() (map[string]string, error) {
	objects := map[string]object{}
	files := map[string]string{}
	for _, user := range []string{"admin", "controller-manager", "scheduler", "kube-proxy"} {
		objects[o.path(user+".kubeconfig")] = o.kubeconfig(user)
	}
	for _, n := range o.nodes() {
		objects[n.path("kubelet.kubeconfig")] = o.kubeconfig(n.Name)
		objects[n.path("kubelet.yaml")] = o.kubelet(n)
		objects[n.path("kube-proxy.yaml")] = o.kubeProxy(n)
		objects[n.path("cni/10-bridge.conflist")] = cniBridge(n)
		files[n.path("containerd.toml")] = o.containerd(n)
		files[n.path("resolv.conf")] = "nameserver " + PublicAddresses[0] + "\n"
		files[n.path("hosts")] = o.hosts()
	}
	for path, v := range objects {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", path, err)
		}
		files[path] = string(b) + "\n"
	}
	return files, nil
}

func (o *Options) writeFiles() error {
	files, err := o.files()
	if err != nil {
		return err
	}
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	// Every process of a node reads these two.
	for _, n := range o.nodes() {
		for _, name := range []string{"resolv.conf", "hosts"} {
			if err := os.Chmod(n.path(name), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *Options) hosts() string {
	var b strings.Builder
	fmt.Fprintln(&b, "127.0.0.1 localhost")
	for _, n := range o.nodes() {
		fmt.Fprintln(&b, n.IP(), n.Name)
	}
	return b.String()
}

func (o *Options) kubeconfig(user string) object {
	return object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []object{{"name": "test", "cluster": object{"server": o.server(), "certificate-authority": o.path("pki/ca.crt")}}},
		"users":    []object{{"name": user, "user": object{"client-certificate": o.path("pki/" + user + ".crt"), "client-key": o.path("pki/" + user + ".key")}}},
		"contexts": []object{{"name": "test", "context": object{"cluster": "test", "user": user}}},
	}
}

// kubelet is the node's KubeletConfiguration. The reasons that are not obvious:
// failCgroupV1 and cgroupDriver, since development machines have hybrid cgroups
// and no systemd inside; maxOpenFiles, since raising the hard limit takes a
// capability that a sandbox may lack; image collection off, since an imported
// image has no registry to come back from; lease and heartbeat short, so that
// tests of lost nodes need not wait for minutes; so is the time for which a
// pressure is remembered. The marks at which pods are evicted are kubelet's own.
func (o *Options) kubelet(n Node) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": n.IP(), "port": 10250, "readOnlyPort": 0, "healthzBindAddress": "127.0.0.1",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": o.path("pki/ca.crt")},
		},
		"authorization":            object{"mode": "Webhook"},
		"tlsCertFile":              o.path("pki/" + n.Name + "-server.crt"),
		"tlsPrivateKeyFile":        o.path("pki/" + n.Name + "-server.key"),
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs", "failCgroupV1": false, "failSwapOn": false,
		"maxOpenFiles":  20000,
		"resolvConf":    n.path("resolv.conf"),
		"clusterDomain": domain, "clusterDNS": []string{dnsServiceIP},
		"volumePluginDir":             "/var/lib/kubelet/volumeplugins",
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"evictionPressureTransitionPeriod": "5s",
		"nodeStatusUpdateFrequency":        "4s", "nodeLeaseDurationSeconds": 12,
		"registerNode": true,
	}
}

// kubeProxy rewrites services with nftables. It leaves conntrack's size alone:
// that is the machine's.
func (o *Options) kubeProxy(n Node) object {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": "nftables", "hostnameOverride": n.Name, "bindAddress": n.IP(),
		"clientConnection":   object{"kubeconfig": o.path("kube-proxy.kubeconfig")},
		"healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
		"clusterCIDR": podRange, "conntrack": object{"maxPerCore": 0, "min": 0},
	}
}

// cniBridge is the node's pod network: a bridge whose pods reach everything
// through the node; their addresses are routed, not translated.
func cniBridge(n Node) object {
	return object{"cniVersion": "1.0.0", "name": "test", "plugins": []object{
		{
			"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true,
			"ipam": object{"type": "host-local", "ranges": [][]object{{{"subnet": n.PodCIDR()}}}},
		},
		{"type": "portmap", "capabilities": object{"portMappings": true}, "backend": "nftables"},
	}}
}

// containerd's directories are the defaults, each private to the node.
// restrict_oom_score_adj is for machines without CAP_SYS_RESOURCE, where every
// sandbox fails otherwise.
func (o *Options) containerd(n Node) string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
`, o.SandboxName, filepath.Join(o.RuntimeDir, "runc"), o.program("cni"), n.path("cni"))
}
