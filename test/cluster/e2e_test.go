//go:build e2e

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	busybox = "hearth.local/busybox:1"
	// publicService is an address that only kube-proxy answers on.
	publicService = "93.184.216.77"
)

// workload is a web server and a privileged agent on each node, and a pod whose
// resources change.
const workload = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: ` + busybox + `
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www; echo $NODE > /www/index.html; exec httpd -f -p 8080 -h /www"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  externalIPs: [` + publicService + `]
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      hostPID: true
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      terminationGracePeriodSeconds: 0
      containers:
      - name: agent
        image: ` + busybox + `
        imagePullPolicy: Never
        securityContext: {privileged: true}
        command: [sleep, "86400"]
        volumeMounts:
        - {name: lib, mountPath: /var/lib/hearth, mountPropagation: HostToContainer}
        - {name: run, mountPath: /run/hearth, mountPropagation: HostToContainer}
        - {name: bpf, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
        - {name: cgroup, mountPath: /sys/fs/cgroup, mountPropagation: HostToContainer}
        - {name: ctrd-run, mountPath: /run/containerd, mountPropagation: HostToContainer}
        - {name: ctrd-lib, mountPath: /var/lib/containerd, mountPropagation: HostToContainer}
      volumes:
      - {name: lib, hostPath: {path: /var/lib/hearth, type: DirectoryOrCreate}}
      - {name: run, hostPath: {path: /run/hearth, type: DirectoryOrCreate}}
      - {name: bpf, hostPath: {path: /sys/fs/bpf, type: Directory}}
      - {name: cgroup, hostPath: {path: /sys/fs/cgroup, type: Directory}}
      - {name: ctrd-run, hostPath: {path: /run/containerd, type: Directory}}
      - {name: ctrd-lib, hostPath: {path: /var/lib/containerd, type: Directory}}
---
apiVersion: v1
kind: Pod
metadata: {name: hold}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: hold
    image: hearth.local/pause:1
    imagePullPolicy: Never
    resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 100m, memory: 64Mi}}
`

// TestClusterIsRealAndLeavesNothing brings a cluster up, checks what others
// build on, and takes it down.
func TestClusterIsRealAndLeavesNothing(t *testing.T) {
	o, err := Defaults("../..", os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	o.Progress = os.Stderr
	begin := time.Now()
	before := footprint(t, o)
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cluster of %d nodes started in %.1fs", o.Nodes, time.Since(begin).Seconds())
	stopped := false
	defer func() {
		if !stopped {
			if err := c.Stop(); err != nil {
				t.Error(err)
			}
		}
	}()
	w := world{t: t, c: c}
	w.deploy()
	for _, check := range []struct {
		name string
		do   func(world)
	}{
		{"pods reach pods across nodes", world.podsReachPods},
		{"services answer pods, host network and nodes", world.servicesAnswer},
		{"names of services resolve in pods", world.namesResolve},
		{"the API server reaches webhooks by service", world.webhooksAreReached},
		{"nodes share no path", world.nodesShareNoPath},
		{"each node has a cgroup root of its own", world.cgroupsArePrivate},
		{"each node has a disk of its own", world.disksArePrivate},
		{"resources are resized in place", world.resizeInPlace},
		{"the internet answers and ends", world.internetAnswersAndEnds},
		{"service account tokens can be verified", world.tokensVerify},
		{"pods outlive API server, kubelet and containerd", world.podsOutliveComponents},
		{"a partition cuts two nodes and heals", world.partitionHeals},
		{"it can be used from inside a node", world.usableFromInside},
		{"logs are collected", world.logsAreCollected},
	} {
		t.Run(check.name, func(t *testing.T) { check.do(world{t: t, c: c}) })
	}
	if t.Failed() {
		if err := c.Logs(o.Dir + "-logs"); err != nil {
			t.Log(err)
		}
		t.Logf("logs: %s-logs", o.Dir)
	}

	during := footprint(t, o)
	if cmp.Equal(before, during) {
		t.Error("a running cluster leaves no trace: the check of what it leaves cannot fail")
	}
	begin = time.Now()
	stopped = true
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("cluster stopped in %.1fs", time.Since(begin).Seconds())
	if diff := cmp.Diff(before, footprint(t, o)); diff != "" {
		t.Errorf("the cluster left something behind (-before +after):\n%s", diff)
	}
}

// world is a running cluster in a test.
type world struct {
	t *testing.T
	c *Cluster
}

func (w world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// kubectl fails the test if it fails.
func (w world) kubectl(args ...string) string {
	w.t.Helper()
	out, err := w.c.Output(args...)
	w.must(err)
	return strings.TrimSpace(out)
}

// in runs a command on a node.
func (w world) in(node string, argv ...string) (string, error) {
	out, err := output(w.c.In(node, argv...))
	return strings.TrimSpace(out), err
}

func (w world) deploy() {
	w.t.Helper()
	w.must(w.c.LoadAll(imagePath()))
	w.must(w.c.Apply(workload))
	for _, ds := range []string{"ds/web", "ds/agent"} {
		w.kubectl("rollout", "status", ds, "--timeout=60s")
	}
	w.kubectl("wait", "--for=condition=Ready", "pod/hold", "--timeout=60s")
}

func imagePath() string {
	if p := os.Getenv("HEARTH_IMAGE"); p != "" {
		return p
	}
	return "../../.image/busybox.tar"
}

// pod is the name and the address of a DaemonSet's pod on a node.
func (w world) pod(app, node string) (name, ip string) {
	w.t.Helper()
	out := w.kubectl("get", "pods", "-l", "app="+app, "--field-selector", "spec.nodeName="+node,
		"-o", "jsonpath={.items[0].metadata.name} {.items[0].status.podIP}")
	name, ip, _ = strings.Cut(out, " ")
	return name, ip
}

// sh runs a shell command in a DaemonSet's pod.
func (w world) sh(app, node, script string) string {
	w.t.Helper()
	name, _ := w.pod(app, node)
	return w.kubectl("exec", name, "--", "sh", "-c", script)
}

// get asks for http://host:port/ with nothing but nc, and returns the body's
// last line.
func get(host string, port int) string {
	return fmt.Sprintf(`printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 3 %s %d | tail -n 1`, host, port)
}

// nodeNames are those of a cluster of two.
var nodeNames = []string{"node1", "node2"}

// footprint is what a cluster could leave on the machine. What is being torn
// down by the kernel is waited for.
func footprint(t *testing.T, o Options) []string {
	t.Helper()
	var list []string
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for {
		list = traces(t, o)
		_, running := os.Stat(o.Dir)
		if running == nil || !strings.Contains(strings.Join(list, "\n"), "process ") || ctx.Err() != nil {
			return list
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestClusterFailedStartLeavesNothing(t *testing.T) {
	o, err := Defaults("../..", os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	o.SandboxImage = filepath.Join(t.TempDir(), "missing.tar")
	before := footprint(t, o)
	c, err := Start(t.Context(), o)
	if err == nil {
		t.Error("a cluster without a sandbox image starts", c.Stop())
	} else if !strings.Contains(err.Error(), "missing.tar") {
		t.Errorf("the error does not name the image: %v", err)
	}
	if diff := cmp.Diff(before, footprint(t, o)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

// The starter dies while components start; whoever calls Stop later knows it
// only by its directory.
func TestClusterOfAKilledStarterIsRemoved(t *testing.T) {
	o, err := Defaults("../..", os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	before := footprint(t, o)
	startKilled(t, o)
	if cmp.Equal(before, footprint(t, o)) {
		t.Error("the starter was killed before it started anything")
	}
	c, err := Open(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, footprint(t, o)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

// Somebody has moved a cluster's directory and removed the nodes' disks. What
// the machine has of it is found all the same.
func TestClusterThatLostItsDirectoryIsRemoved(t *testing.T) {
	o, err := Defaults("../..", os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	before := footprint(t, o)
	startKilled(t, o)
	lost := o.Dir + "-lost"
	if err := os.Rename(o.Dir, lost); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodeNames {
		if err := os.Remove(filepath.Join(lost, n, diskFile)); err != nil {
			t.Error(err)
		}
	}
	used, err := disksInUse()
	if err != nil || len(used) != len(nodeNames) {
		t.Errorf("disks in use: %v, %v", used, err)
	}
	if err := (&Cluster{o}).ForceStop(); err != nil {
		t.Fatal(err)
	}
	if used, err := disksInUse(); err != nil || len(used) > 0 {
		t.Errorf("disks in use after the end: %v, %v", used, err)
	}
	// Only the directory says what else the machine was.
	if err := os.Rename(lost, o.Dir); err != nil {
		t.Fatal(err)
	}
	if err := (&Cluster{o}).Stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, footprint(t, o)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

// startKilled starts a cluster and kills the starter when the nodes have their
// namespaces and disks.
func startKilled(t *testing.T, o Options) {
	t.Helper()
	up := exec.Command(o.program("cluster"), "up")
	up.Env = append(os.Environ(), "HEARTH_CLUSTER_DIR="+o.Dir, "HEARTH_CLUSTER_BIN="+o.BinDir, "HEARTH_RUNTIME_DIR="+o.RuntimeDir)
	progress, err := up.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(progress); s.Scan(); {
		if strings.HasSuffix(s.Text(), "namespaces") {
			break
		}
	}
	time.Sleep(500 * time.Millisecond)
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = up.Wait() // it was killed
}
