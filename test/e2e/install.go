package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/test/stage"
)

// classManifests are what a platform engineer writes.
const classManifests = `
apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: web}
spec:
  image: hearth.local/busybox:1
  services:
  - name: web
    command:
    - sh
    - -c
    - |
      mkdir -p /srv
      echo ready > /srv/index.html
      exec httpd -f -p 8000 -h /srv
  readiness: {http: {port: 8000}}
  ports: [{name: http, port: 8000, protocol: http}]
  resources: {cpu: "1", memory: 64Mi, pids: 256}
  warm: {slots: 3}
  detection: {responses: {critical: freeze, high: freeze}}
---
apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: tool}
spec:
  image: hearth.local/busybox:1
  resources: {cpu: "1", memory: 64Mi, pids: 256}
  warm: {slots: 2}
  durability: ephemeral
`

// install is one command, and classes as an engineer writes them.
func (w *world) install(ctx context.Context) (f facts, err error) {
	begun := time.Now()
	if _, err := w.kubectl("apply", "--server-side", "-k", w.cluster.Overlay()); err != nil {
		return f, err
	}
	if err := eventually(ctx, 30*time.Second, func() error {
		_, err := w.kubectl("wait", "--for=condition=Established", "crd/environments.hearth.run", "crd/environmentclasses.hearth.run", "--timeout=5s")
		return err
	}); err != nil {
		return f, err
	}
	if err := w.apply(classManifests); err != nil {
		return f, err
	}
	for _, what := range [][]string{{systemNamespace, "deployment/" + controllers}, {nodesNamespace, "daemonset/" + agents}} {
		if _, err := w.kubectl("-n", what[0], "rollout", "status", what[1], "--timeout=120s"); err != nil {
			return f, err
		}
	}
	f.ms("ready_ms", time.Since(begun))
	if err := w.poolsFull(ctx, 90*time.Second); err != nil {
		return f, err
	}
	f.ms("pools_full_ms", time.Since(begun))
	if err := w.nameServices(); err != nil {
		return f, err
	}
	for _, ns := range []string{team, otherTeam} {
		if err := w.addTenant(ctx, ns); err != nil {
			return f, fmt.Errorf("tenant %s: %w", ns, err)
		}
	}
	for _, n := range w.cluster.Nodes() {
		if w.clean[n], err = w.inventory(n); err != nil {
			return f, err
		}
		f.add("things_"+n, w.clean[n].Count())
	}
	if err := w.rememberClean(); err != nil {
		return f, err
	}
	return f, w.readsWell(&f)
}

// rememberClean keeps the inventories for a later run on the same cluster.
func (w *world) rememberClean() error {
	b, err := json.Marshal(w.clean)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(w.scratch, "clean.json"), string(b))
}

// readsWell checks what people see of the classes.
func (w *world) readsWell(f *facts) error {
	out, err := w.kubectl("get", "env,envclass", "-A")
	if err != nil {
		return err
	}
	for _, want := range []string{"environmentclass.hearth.run/web", "hearth.local/busybox:1", "durable", "ephemeral"} {
		if !strings.Contains(out, want) {
			return fmt.Errorf("kubectl get env,envclass does not show %q: %s", want, out)
		}
	}
	f.add("objects", strings.Count(out, "environmentclass.hearth.run/"))
	return nil
}

// poolsFull waits until every node has every class's warm slots.
func (w *world) poolsFull(ctx context.Context, most time.Duration) error {
	return eventually(ctx, most, func() error {
		list, err := w.objects.Resource(classesGVR).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return errors.New("no classes")
		}
		for _, c := range list.Items {
			ready, wanted := field(&c, "status", "ready"), field(&c, "status", "wanted")
			if ready == "" || ready != wanted || ready == "0" {
				return fmt.Errorf("class %s has %q of %q warm slots", c.GetName(), ready, wanted)
			}
		}
		return nil
	})
}

// addTenant makes a namespace whose service account may claim there.
func (w *world) addTenant(ctx context.Context, ns string) error {
	if err := w.apply(fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[2]s, namespace: %[1]s}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: %[2]s, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: hearth-user}
subjects: [{kind: ServiceAccount, name: %[2]s, namespace: %[1]s}]
`, ns, caller)); err != nil {
		return err
	}
	token, err := w.kubectl("-n", ns, "create", "token", caller, "--audience", "hearth", "--duration", "2h")
	if err != nil {
		return err
	}
	ca := w.caFile()
	if err := eventually(ctx, 20*time.Second, func() error { return w.writeCA(ca) }); err != nil {
		return err
	}
	// Each has its own home: hearthctl keeps access there.
	home := filepath.Join(w.scratch, ns)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	w.tenants[ns] = &tenant{token: strings.TrimSpace(token), ctl: stage.NewHearthctl(w.cluster.Product("hearthctl"),
		"HEARTH_SERVER=https://"+server+":"+apiPort, "HEARTH_TOKEN="+strings.TrimSpace(token), "HEARTH_CA="+ca,
		"HOME="+home, "PATH=/usr/bin:/bin")}
	return nil
}

func (w *world) caFile() string { return filepath.Join(w.scratch, "ca.crt") }

// writeCA fetches the authority that the controller published.
func (w *world) writeCA(path string) error {
	out, err := w.kubectl("-n", systemNamespace, "get", "configmap", "hearth-ca", "-o", "json")
	if err != nil {
		return err
	}
	var cm struct{ Data map[string]string }
	if err := json.Unmarshal([]byte(out), &cm); err != nil {
		return err
	}
	if cm.Data["ca.crt"] == "" {
		return errors.New("the controller has not published its authority yet")
	}
	return writeFile(path, cm.Data["ca.crt"])
}
