package cluster

import (
	"fmt"
	"path/filepath"
	"slices"
)

// A component is one program of the cluster, started and stopped by its name.
type component struct {
	name string // "apiserver", "node2/kubelet"
	node Node   // whose namespaces it runs in
	argv []string
}

// Names of the control plane's components, all on node1. Each node has
// "<node>/containerd", "<node>/kubelet" and "<node>/kube-proxy" besides.
const (
	Etcd              = "etcd"
	APIServer         = "apiserver"
	ControllerManager = "controller-manager"
	Scheduler         = "scheduler"
	DNS               = "dns"
)

// components are listed in the order of starting.
func (o *Options) components() []component {
	first := o.nodes()[0]
	list := []component{{Etcd, first, o.etcd()}}
	for _, n := range o.nodes() {
		list = append(list, component{n.Name + "/containerd", n, []string{
			filepath.Join(o.RuntimeDir, "containerd"), "--config", n.path("containerd.toml"),
		}})
	}
	list = append(list,
		component{APIServer, first, o.apiServer()},
		component{ControllerManager, first, o.controllerManager()},
		component{Scheduler, first, []string{
			o.program("kube-scheduler"), "--kubeconfig=" + o.path("scheduler.kubeconfig"), "--bind-address=127.0.0.1", "--leader-elect=false",
		}},
		component{DNS, first, []string{o.program("cluster"), "serve-dns", "--dir", o.Dir}},
	)
	for _, n := range o.nodes() {
		list = append(list,
			component{n.Name + "/kubelet", n, []string{
				o.program("kubelet"), "--config=" + n.path("kubelet.yaml"), "--kubeconfig=" + n.path("kubelet.kubeconfig"),
				"--hostname-override=" + n.Name, "--node-ip=" + n.IP(), "--cert-dir=/var/lib/kubelet/pki",
			}},
			component{n.Name + "/kube-proxy", n, []string{o.program("kube-proxy"), "--config=" + n.path("kube-proxy.yaml")}})
	}
	return list
}

func (o *Options) component(name string) (component, error) {
	list := o.components()
	i := slices.IndexFunc(list, func(c component) bool { return c.name == name })
	if i < 0 {
		return component{}, fmt.Errorf("no component %q", name)
	}
	return list[i], nil
}

// etcd syncs what it acknowledges, as in production.
func (o *Options) etcd() []string {
	client, peer := "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	return []string{
		o.program("etcd"), "--name", "node1", "--data-dir", o.path("etcd"), "--log-level", "warn",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "node1=" + peer,
	}
}

// apiServer dials the endpoints of a webhook's Service itself
// (enable-aggregator-routing); kube-proxy beside it serves every other use of a
// ClusterIP.
func (o *Options) apiServer() []string {
	ip := o.nodes()[0].IP()
	pki := func(name string) string { return o.path("pki/" + name) }
	return []string{
		o.program("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=" + ip, "--advertise-address=" + ip, fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--client-ca-file=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc." + domain,
		"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
		"--service-cluster-ip-range=" + serviceRange,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--enable-aggregator-routing=true",
	}
}

// controllerManager gets a high rate limit: by default the first ServiceAccount
// takes seconds longer to appear.
func (o *Options) controllerManager() []string {
	pki := func(name string) string { return o.path("pki/" + name) }
	return []string{
		o.program("kube-controller-manager"), "--kubeconfig=" + o.path("controller-manager.kubeconfig"),
		"--bind-address=127.0.0.1", "--leader-elect=false", "--kube-api-qps=300", "--kube-api-burst=600",
		"--service-account-private-key-file=" + pki("sa.key"), "--root-ca-file=" + pki("ca.crt"), "--use-service-account-credentials=true",
		"--cluster-signing-cert-file=" + pki("ca.crt"), "--cluster-signing-key-file=" + pki("ca.key"),
		"--allocate-node-cidrs=false", "--cluster-cidr=" + podRange,
		"--node-monitor-grace-period=" + o.NodeMonitorGrace.String(), "--node-monitor-period=2s",
	}
}
