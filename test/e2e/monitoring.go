package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	shared "hearth/test/monitoring"
)

// monitoring is a Prometheus and an Alertmanager, as they are shipped, with the
// configuration that users apply.
type monitoring struct {
	w       *world
	running []*exec.Cmd
}

const (
	prometheusAddr   = "127.0.0.1:9090"
	alertmanagerAddr = "127.0.0.1:9093"
)

// startMonitoring runs both in the first node's network. Targets come from
// files, which this process keeps as the shipped discovery would find the pods:
// Debian's Prometheus is built without discovery from Kubernetes.
func (w *world) startMonitoring(ctx context.Context) (*monitoring, error) {
	m := &monitoring{w: w}
	dir := filepath.Join(w.scratch, "monitoring")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return nil, err
	}
	if err := m.write(ctx, dir); err != nil {
		return nil, err
	}
	// Debian's Alertmanager has its templates at a fixed path. This mount
	// namespace is the process's own.
	share := filepath.Join(w.cluster.MonitoringRoot(), "usr", "share")
	if err := syscall.Mount("overlay", "/usr/share", "overlay", syscall.MS_RDONLY, "lowerdir="+share+":/usr/share"); err != nil {
		return nil, fmt.Errorf("lay %s over /usr/share: %w", share, err)
	}
	err := errors.Join(
		m.start(dir, "prometheus-alertmanager", "--config.file="+filepath.Join(dir, "alertmanager.yml"), "--storage.path="+filepath.Join(dir, "am"),
			"--web.listen-address="+alertmanagerAddr, "--cluster.listen-address="),
		m.start(dir, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "tsdb"),
			"--web.listen-address="+prometheusAddr, "--rules.alert.resend-delay=2s"),
	)
	if err == nil {
		err = m.metricAbove(ctx, `count(up{job=~"hearth-.*"} == 1)`, float64(len(w.cluster.Nodes()))) // agents and controllers
	}
	if err != nil {
		m.stop()
		return nil, err
	}
	return m, nil
}

// write makes the configuration: the shipped rules and scrape jobs, with shorter
// intervals.
func (m *monitoring) write(ctx context.Context, dir string) error {
	shipped := filepath.Join(m.w.cluster.Source(), "deploy", "prometheus")
	jobs, err := os.ReadFile(filepath.Join(shipped, "scrape.yaml"))
	if err != nil {
		return err
	}
	if jobs, err = shared.FileDiscovery(jobs, dir); err != nil {
		return err
	}
	for _, t := range []struct{ namespace, app string }{{nodesNamespace, agents}, {systemNamespace, controllers}} {
		if err := m.targets(ctx, dir, t.namespace, t.app); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"prometheus.yml": fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
%s`, filepath.Join(shipped, "rules.yaml"), alertmanagerAddr, jobs),
		"alertmanager.yml": "route: {receiver: none, group_wait: 0s}\nreceivers: [{name: none}]\n",
	} {
		if err := writeFile(filepath.Join(dir, name), content); err != nil {
			return err
		}
	}
	return nil
}

// targets writes the pods of an application where Prometheus looks for them.
func (m *monitoring) targets(ctx context.Context, dir, namespace, app string) error {
	pods, err := m.w.podsOf(ctx, namespace, app)
	if err != nil {
		return err
	}
	var list []shared.Pod
	for _, p := range pods {
		ports := map[string]int{}
		for _, c := range p.Spec.Containers {
			for _, port := range c.Ports {
				ports[port.Name] = int(port.ContainerPort)
			}
		}
		list = append(list, shared.Pod{
			Name: p.Name, Node: p.Spec.NodeName, HostIP: p.Status.HostIP, PodIP: p.Status.PodIP, Phase: string(p.Status.Phase),
			Labels: p.Labels, Annotations: p.Annotations, Ports: ports,
		})
	}
	b, err := shared.Targets(list)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, namespace+".json"), string(b))
}

// everyQueryIsFed names the alerts and panels that ask for what nobody exports.
func (m *monitoring) everyQueryIsFed() error {
	queries, err := shared.Queries(os.DirFS(filepath.Join(m.w.cluster.Source(), "deploy")))
	if err != nil {
		return err
	}
	var names struct {
		Data []string `json:"data"`
	}
	if err := getJSON("http://"+prometheusAddr+"/api/v1/label/__name__/values", &names); err != nil {
		return err
	}
	if missing := shared.Missing(queries, names.Data); len(missing) > 0 {
		return fmt.Errorf("nobody exports what is asked for: %v", missing)
	}
	return nil
}

func (m *monitoring) start(dir, program string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, program+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(m.w.cluster.Monitoring(program), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.running = append(m.running, cmd)
	return nil
}

func (m *monitoring) stop() {
	for _, c := range m.running {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	}
	_ = syscall.Unmount("/usr/share", 0) // it ends with this process in any case
}

// query asks Prometheus for one number; none is an error.
func (m *monitoring) query(expr string) (float64, error) {
	var answer struct {
		Data struct {
			Result []struct {
				Value [2]any `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := getJSON("http://"+prometheusAddr+"/api/v1/query?query="+url.QueryEscape(expr), &answer); err != nil {
		return 0, err
	}
	if len(answer.Data.Result) == 0 {
		return 0, fmt.Errorf("no result for %s", expr)
	}
	var v float64
	_, err := fmt.Sscan(fmt.Sprint(answer.Data.Result[0].Value[1]), &v)
	return v, err
}

func (m *monitoring) metricAbove(ctx context.Context, expr string, least float64) error {
	return eventually(ctx, 30*time.Second, func() error {
		v, err := m.query(expr)
		if err == nil && v <= least {
			err = fmt.Errorf("%s is %v, not above %v", expr, v, least)
		}
		return err
	})
}

// alertArrives waits until the Alertmanager has an alert whose name begins so.
func (m *monitoring) alertArrives(ctx context.Context, prefix string) error {
	return eventually(ctx, 60*time.Second, func() error {
		var alerts []struct {
			Labels map[string]string `json:"labels"`
		}
		if err := getJSON("http://"+alertmanagerAddr+"/api/v2/alerts", &alerts); err != nil {
			return err
		}
		var names []string
		for _, a := range alerts {
			if strings.HasPrefix(a.Labels["alertname"], prefix) {
				return nil
			}
			names = append(names, a.Labels["alertname"])
		}
		return fmt.Errorf("no alert %s… among %v", prefix, names)
	})
}

func getJSON(url string, into any) error {
	client := http.Client{Timeout: 3 * time.Second}
	defer client.CloseIdleConnections()
	r, err := client.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.200s", url, r.Status, b)
	}
	return json.Unmarshal(b, into)
}
