//go:build e2e

package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (w world) podsReachPods() {
	for _, from := range nodeNames {
		for _, to := range nodeNames {
			_, ip := w.pod("web", to)
			if got := w.sh("web", from, get(ip, 8080)); got != to {
				w.t.Errorf("pod on %s asked %s on %s: %q", from, ip, to, got)
			}
		}
	}
}

func (w world) servicesAnswer() {
	ip := w.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, addr := range []string{ip, publicService} {
		for _, node := range nodeNames {
			seen := map[string]bool{}
			for range 12 {
				for _, app := range []string{"web", "agent"} {
					got := w.sh(app, node, get(addr, 80))
					if got != "node1" && got != "node2" {
						w.t.Fatalf("%s of %s asked service %s: %q", app, node, addr, got)
					}
					seen[got] = true
				}
				if len(seen) == 2 {
					break
				}
			}
			if len(seen) != 2 {
				w.t.Errorf("service %s answered %s from one node only: %v", addr, node, seen)
			}
			if got, err := w.in(node, "bash", "-c", "exec 3<>/dev/tcp/"+addr+"/80"); err != nil {
				w.t.Errorf("%s itself asked service %s: %q, %v", node, addr, got, err)
			}
		}
	}
}

func (w world) namesResolve() {
	ip := w.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, node := range nodeNames {
		for _, app := range []string{"web", "agent"} {
			if got := w.sh(app, node, "nslookup -type=a web.default.svc.cluster.local"); !strings.Contains(got, ip) {
				w.t.Errorf("%s of %s: web.default is not %s: %s", app, node, ip, got)
			}
		}
		if got := w.sh("web", node, "nslookup -type=a ip-1-2-3-4.test"); !strings.Contains(got, "1.2.3.4") {
			w.t.Errorf("pod on %s: the internet's names do not resolve: %s", node, got)
		}
	}
}

// webhooksAreReached names a Service whose server speaks no TLS: the API
// server's error is the server's own answer.
func (w world) webhooksAreReached() {
	w.must(w.c.Apply(`apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: probe}
webhooks:
- name: probe.hearth.test
  clientConfig: {service: {name: web, namespace: default, port: 80, path: /}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}
  failurePolicy: Fail
  sideEffects: None
  timeoutSeconds: 5
  admissionReviewVersions: [v1]
`))
	defer w.kubectl("delete", "validatingwebhookconfiguration", "probe")
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err = w.c.Output("create", "configmap", "probe", "--dry-run=server"); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		w.t.Errorf("the API server did not reach the webhook's pod: %v", err)
	}
}

func (w world) nodesShareNoPath() {
	for _, dir := range []string{"/var/lib/hearth", "/run/hearth", "/sys/fs/bpf", "/run/containerd", "/var/lib/containerd"} {
		for _, node := range nodeNames {
			w.sh("agent", node, "mkdir "+dir+"/of-"+node)
		}
		for _, node := range nodeNames {
			got := w.sh("agent", node, "cd "+dir+"; echo of-*; rmdir of-"+node)
			if got != "of-"+node {
				w.t.Errorf("%s: %s holds %q", node, dir, got)
			}
		}
	}
	for _, node := range nodeNames {
		if got := w.sh("agent", node, "hostname; ls /run/containerd/containerd.sock"); got != node+"\n/run/containerd/containerd.sock" {
			w.t.Errorf("agent on %s sees %q", node, got)
		}
	}
}

func (w world) cgroupsArePrivate() {
	root := "/sys/fs/cgroup"
	if w.sh("agent", "node1", "test -d /sys/fs/cgroup/unified && echo hybrid || true") != "" {
		root += "/unified"
	}
	for _, node := range nodeNames {
		w.sh("agent", node, "mkdir "+root+"/probe-"+node)
		defer w.sh("agent", node, "rmdir "+root+"/probe-"+node)
		if _, err := os.Stat(root + cgroupRoot + "/" + node + "/probe-" + node); err != nil {
			w.t.Errorf("a cgroup at the root of %s is not below the machine's %s: %v", node, cgroupRoot, err)
		}
		own := w.sh("agent", node, `sed -n s/^0:://p /proc/self/cgroup`)
		if !strings.HasPrefix(own, "/kubepods/") {
			w.t.Errorf("a process of %s is in cgroup %q", node, own)
		}
		w.sh("agent", node, "test -d "+root+own)
	}
	for _, node := range nodeNames {
		if got := w.sh("agent", node, "cd "+root+"; echo probe-*"); got != "probe-"+node {
			w.t.Errorf("%s sees cgroups %q", node, got)
		}
	}
}

// disksArePrivate writes on one node's disk. Nobody else has less for it, and
// the kubelets evict by marks of their own making.
func (w world) disksArePrivate() {
	available := func(node string) int64 {
		out, err := w.in(node, "stat", "-f", "-c", "%a", "/var/lib/containerd")
		w.must(err)
		n, err := strconv.ParseInt(out, 10, 64)
		w.must(err)
		return n * diskBlock
	}
	const probe, size = "/var/lib/kubelet/probe", 1 << 30
	before := map[string]int64{}
	for _, node := range nodeNames {
		before[node] = available(node)
	}
	_, err := w.in("node2", "fallocate", "-l", strconv.Itoa(size), probe)
	w.must(err)
	defer func() {
		_, err := w.in("node2", "rm", probe)
		w.must(err)
	}()
	for node, took := range map[string]int64{"node1": 0, "node2": size} {
		if less := before[node] - available(node); less < took-size/8 || less > took+size/8 {
			w.t.Errorf("%s has %d bytes less after %d were taken on node2", node, less, size)
		}
		config := w.kubectl("get", "--raw", "/api/v1/nodes/"+node+"/proxy/configz")
		for _, mark := range []string{`"nodefs.available":"10%"`, `"imagefs.available":"15%"`, `"nodefs.inodesFree":"5%"`} {
			if !strings.Contains(config, mark) {
				w.t.Errorf("the kubelet of %s evicts by other marks than %s: %s", node, mark, config)
			}
		}
	}
}

func (w world) resizeInPlace() {
	uid := w.kubectl("get", "pod", "hold", "-o", "jsonpath={.metadata.uid}")
	node := w.kubectl("get", "pod", "hold", "-o", "jsonpath={.spec.nodeName}")
	if qos := w.kubectl("get", "pod", "hold", "-o", "jsonpath={.status.qosClass}"); qos != "Guaranteed" {
		w.t.Fatalf("the pod is %s", qos)
	}
	limit := func(file string) string {
		got, err := w.in(node, "sh", "-c", "cat /sys/fs/cgroup/"+file)
		w.must(err)
		return got
	}
	memory, cpu := "memory/kubepods/pod"+uid+"/memory.limit_in_bytes", "cpu/kubepods/pod"+uid+"/cpu.cfs_quota_us"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		memory, cpu = "kubepods/pod"+uid+"/memory.max", "kubepods/pod"+uid+"/cpu.max"
	}
	if got := limit(memory); got != strconv.Itoa(64<<20) {
		w.t.Fatalf("memory limit before: %s", got)
	}
	w.kubectl("patch", "pod", "hold", "--subresource", "resize", "-p",
		`{"spec":{"containers":[{"name":"hold","resources":{"limits":{"cpu":"300m","memory":"128Mi"},"requests":{"cpu":"300m","memory":"128Mi"}}}]}}`)
	w.must(eventually(w.t.Context(), 30*time.Second, func() error {
		if m, q := limit(memory), limit(cpu); m != strconv.Itoa(128<<20) || !strings.HasPrefix(q, "30000") {
			return fmt.Errorf("limits are memory %s and cpu %s", m, q)
		}
		return nil
	}))
	if got := w.kubectl("get", "pod", "hold", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
		w.t.Errorf("resizing restarted the container %s times", got)
	}
}

func (w world) internetAnswersAndEnds() {
	for _, node := range nodeNames {
		n, err := w.c.node(node)
		w.must(err)
		_, pod := w.pod("web", node)
		for _, addr := range []string{PublicAddresses[0], MetadataAddresses[0], PrivateAddresses[0]} {
			for app, source := range map[string]string{"agent": n.IP(), "web": pod} {
				want := fmt.Sprintf("internet %s:80 from %s:", addr, source)
				if got := w.sh(app, node, get(addr, HTTPPort)); !strings.HasPrefix(got, want) {
					w.t.Errorf("%s of %s asked %s: %q, want %q", app, node, addr, got, want)
				}
			}
			udp := fmt.Sprintf("exec 3<>/dev/udp/%s/%d; echo hello >&3; timeout 2 head -n 1 <&3", addr, EchoPort)
			if got, err := w.in(node, "bash", "-c", udp); got != "hello" {
				w.t.Errorf("%s: UDP echo from %s: %q, %v", node, addr, got, err)
			}
		}
		// What the internet's host does not carry is nowhere.
		if got := w.sh("agent", node, "nc -w 3 9.9.9.9 80 </dev/null 2>&1 || echo unreachable"); !strings.Contains(got, "unreachable") {
			w.t.Errorf("%s reaches an address that nobody has: %q", node, got)
		}
	}
	route, err := output(w.c.InInternet("ip", "route", "get", "9.9.9.9"))
	if err == nil || !strings.Contains(err.Error(), "unreachable") {
		w.t.Errorf("the internet's host has a route out: %q, %v", route, err)
	}
	links, err := output(w.c.InInternet("ip", "-o", "link"))
	w.must(err)
	if n := strings.Count(links, "\n"); n != 1+len(nodeNames) {
		w.t.Errorf("the internet's host has %d links, not lo and one for each node:\n%s", n, links)
	}
}

func (w world) tokensVerify() {
	if keys := w.kubectl("get", "--raw", "/openid/v1/jwks"); !strings.Contains(keys, `"alg":"RS256"`) {
		w.t.Errorf("keys: %s", keys)
	}
	if conf := w.kubectl("get", "--raw", "/.well-known/openid-configuration"); !strings.Contains(conf, `"issuer":"https://kubernetes.default.svc.cluster.local"`) {
		w.t.Errorf("discovery: %s", conf)
	}
	// Ten minutes is the least that the API accepts.
	if parts := strings.Split(w.kubectl("create", "token", "default", "--duration", "10m", "--audience", "hearth"), "."); len(parts) != 3 {
		w.t.Errorf("a token has %d parts", len(parts))
	}
}

func (w world) podsOutliveComponents() {
	containers := func() string {
		return w.kubectl("get", "pods", "-l", "app in (web,agent)", "-o", "jsonpath={.items[*].status.containerStatuses[0].containerID}")
	}
	before := containers()
	_, ip := w.pod("web", "node2")
	for _, stop := range []struct {
		name string
		do   func(string) error
	}{{APIServer, w.c.StopComponent}, {"node2/containerd", w.c.Kill}, {"node2/kubelet", w.c.Kill}, {Etcd, w.c.Kill}} {
		w.must(stop.do(stop.name))
		if stop.name == APIServer {
			if out, err := w.c.Output("get", "nodes", "--request-timeout=2s"); err == nil {
				w.t.Errorf("the API answers though its server is stopped: %s", out)
			}
		}
		if got, err := w.in("node1", "bash", "-c", "exec 3<>/dev/tcp/"+ip+"/8080 && echo open"); got != "open" {
			w.t.Errorf("with %s down, node1 asked a pod on node2: %q, %v", stop.name, got, err)
		}
		w.must(w.c.StartComponent(w.t.Context(), stop.name))
	}
	w.must(w.c.WaitAPI(w.t.Context()))
	w.must(w.c.WaitNodeReady(w.t.Context(), "node2"))
	w.must(eventually(w.t.Context(), 30*time.Second, func() error {
		name, _ := w.pod("web", "node2")
		_, err := w.c.Output("exec", name, "--", "true")
		return err
	}))
	if diff := cmp.Diff(before, containers()); diff != "" {
		w.t.Errorf("containers (-before +after):\n%s", diff)
	}
}

func (w world) partitionHeals() {
	_, here := w.pod("web", "node1")
	_, there := w.pod("web", "node2")
	dial := func(node, ip string) error {
		_, err := w.in(node, "timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+ip+"/8080")
		return err
	}
	w.must(dial("node1", there))
	w.must(w.c.Partition("node1", "node2"))
	defer func() { w.must(w.c.Heal()) }()
	for node, ip := range map[string]string{"node1": there, "node2": here} {
		if dial(node, ip) == nil {
			w.t.Errorf("%s reaches a pod on the other side of the partition", node)
		}
	}
	w.must(dial("node2", there)) // its own pods go on
	w.must(w.c.WaitNodeLost(w.t.Context(), "node2"))
	w.must(w.c.Heal())
	w.must(w.c.WaitNodeReady(w.t.Context(), "node2"))
	w.must(dial("node1", there))
}

func (w world) usableFromInside() {
	for _, argv := range [][]string{
		{"cluster", "status"},
		{"kubectl", "get", "nodes"},
		{"cluster", "in", "-node", "node2", "--", "hostname"},
		{"cluster", "stop", Scheduler},
		{"cluster", "start", Scheduler},
	} {
		out, err := w.in("node1", argv...)
		w.must(err)
		if argv[1] == "in" && out != "node2" {
			w.t.Errorf("node2 says that it is %q", out)
		}
	}
	if out, err := w.in("node1", "cluster", "down"); err == nil || !strings.Contains(err.Error(), "inside") {
		w.t.Errorf("a process inside a node stops the cluster: %q, %v", out, err)
	}
}

func (w world) logsAreCollected() {
	dir := w.t.TempDir()
	w.must(w.c.Logs(dir))
	for _, name := range []string{"components/apiserver.log", "components/node2-kubelet.log", "api/pods.txt", "node2/nft.txt", "node1/pods"} {
		info, err := os.Stat(dir + "/" + name)
		if err != nil || info.Size() == 0 {
			w.t.Errorf("logs have no %s: %v", name, err)
		}
	}
}
