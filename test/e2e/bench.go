package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/transport"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
)

// How often each thing is measured.
const (
	benchClaims = 100
	benchBursts = 10
	benchBurst  = 20
	benchPods   = 15
)

// benchClass has a pool that a burst fits into.
const benchClass = `
apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: bench}
spec:
  image: hearth.local/busybox:1
  resources: {cpu: 250m, memory: 32Mi, pids: 64}
  warm: {slots: 12}
`

// bench prints benchmark lines: claims by both ways, alone and in bursts, and the
// rival, a plain pod of the same image.
func bench(ctx context.Context, w *world) error {
	if _, err := w.install(ctx); err != nil {
		return err
	}
	if err := errors.Join(w.apply(benchClass), w.poolsFull(ctx, 120*time.Second)); err != nil {
		return err
	}
	api, done, err := w.apiClient()
	if err != nil {
		return err
	}
	defer done()
	ways := []struct {
		name string
		way  way
	}{{"api", apiWay{api, &sync.Map{}}}, {"crd", crdWay{w}}}
	for _, v := range ways {
		if err := w.measure(ctx, "KubeClaim/"+v.name, v.way, benchClaims, 1); err != nil {
			return err
		}
	}
	for _, v := range ways {
		if err := w.measure(ctx, "KubeClaimBurst20/"+v.name, v.way, benchBursts, benchBurst); err != nil {
			return err
		}
	}
	return w.measurePods(ctx)
}

// way is one way to get an environment, and to let go of it.
type way interface {
	claim(ctx context.Context, name string) (time.Duration, error)
	release(ctx context.Context, name string) error
}

// settle is how long what a release writes may take to be written.
const settle = 200 * time.Millisecond

// measure claims rounds times, width at once, and prints one line. The pool never
// runs dry: it is the claim that is measured, not the refill. Object writes are
// counted from before each round to its last answer, writes of status, which come
// behind, from before the first round to the end.
func (w *world) measure(ctx context.Context, title string, v way, rounds, width int) error {
	var took []time.Duration
	var total time.Duration
	var writes float64
	first, err := w.objectWrites(ctx)
	if err != nil {
		return err
	}
	for round := range rounds {
		if round*width%benchBurst == 0 {
			if err := w.poolsFull(ctx, 120*time.Second); err != nil {
				return err
			}
		}
		time.Sleep(settle)
		before, err := w.objectWrites(ctx)
		if err != nil {
			return err
		}
		begun := time.Now()
		times, names, err := claims(ctx, v, round, width)
		total += time.Since(begun)
		if err != nil {
			return fmt.Errorf("%s: %w", title, err)
		}
		took = append(took, times...)
		after, err := w.objectWrites(ctx)
		if err != nil {
			return err
		}
		writes += after.objects - before.objects
		for _, n := range names {
			if err := v.release(ctx, n); err != nil {
				return fmt.Errorf("%s: %w", title, err)
			}
		}
	}
	time.Sleep(2 * time.Second) // until what is written behind is written
	last, err := w.objectWrites(ctx)
	if err != nil {
		return err
	}
	n := float64(len(took))
	fmt.Printf("Benchmark%s \t%d\t%d ns/op\t%.2f p50-ms\t%.2f p99-ms\t%.2f api-writes/claim\t%.2f status-writes/claim\n",
		title, len(took), total.Nanoseconds()/int64(rounds), percentile(took, 0.5), percentile(took, 0.99), writes/n, (last.status-first.status)/n)
	return nil
}

// claims are width at once; each has the time from its own begin.
func claims(ctx context.Context, v way, round, width int) (times []time.Duration, names []string, err error) {
	times, names = make([]time.Duration, width), make([]string, width)
	faults := make([]error, width)
	var work sync.WaitGroup
	for i := range width {
		names[i] = fmt.Sprintf("b%d-%d-%d", time.Now().UnixNano(), round, i)
		work.Go(func() { times[i], faults[i] = v.claim(ctx, names[i]) })
	}
	work.Wait()
	return times, names, errors.Join(faults...)
}

func percentile(d []time.Duration, p float64) float64 {
	s := slices.Sorted(slices.Values(d))
	i := int(math.Ceil(p*float64(len(s)))) - 1
	return float64(s[max(i, 0)]) / float64(time.Millisecond)
}

// apiWay claims through the Environments API on one lasting connection.
type apiWay struct {
	api hearthv1connect.EnvironmentServiceClient
	ids *sync.Map // a claim's name to its environment's id
}

func (a apiWay) claim(ctx context.Context, name string) (time.Duration, error) {
	begun := time.Now()
	r, err := a.api.Claim(ctx, &hearthv1.ClaimRequest{IdempotencyKey: name, Spec: &hearthv1.ClaimSpec{Class: "bench"}})
	took := time.Since(begun)
	if err != nil {
		return 0, err
	}
	if !r.GetEnvironment().GetWarm() {
		return 0, errors.New("a claim was cold")
	}
	a.ids.Store(name, r.GetEnvironment().GetId())
	return took, nil
}

func (a apiWay) release(ctx context.Context, name string) error {
	id, _ := a.ids.LoadAndDelete(name)
	_, err := a.api.Release(ctx, &hearthv1.ReleaseRequest{IdempotencyKey: name + "-r", Environment: fmt.Sprint(id)})
	return err
}

// crdWay creates an Environment and waits for Ready by a watch.
type crdWay struct{ w *world }

func (c crdWay) claim(ctx context.Context, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	api := c.w.objects.Resource(environmentsGVR).Namespace(team)
	watcher, err := api.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, err
	}
	defer watcher.Stop()
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "hearth.run/v1alpha1", "kind": "Environment",
		"metadata": map[string]any{"name": name}, "spec": map[string]any{"class": "bench"},
	}}
	begun := time.Now()
	if _, err := api.Create(ctx, o, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	for e := range watcher.ResultChan() {
		if o, ok := e.Object.(*unstructured.Unstructured); ok && e.Type != watch.Deleted && isReady(o) {
			return time.Since(begun), nil
		}
	}
	return 0, fmt.Errorf("%s was not ready: %w", name, ctx.Err())
}

func isReady(o *unstructured.Unstructured) bool {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions") // absent is not ready
	for _, c := range list {
		if m, ok := c.(map[string]any); ok && m["type"] == "Ready" {
			return m["status"] == "True"
		}
	}
	return false
}

func (c crdWay) release(ctx context.Context, name string) error {
	return c.w.objects.Resource(environmentsGVR).Namespace(team).Delete(ctx, name, metav1.DeleteOptions{})
}

// objectWritten counts writes of Environment objects.
type objectWritten struct{ objects, status float64 }

// objectWrites asks the API server's own counters.
func (w *world) objectWrites(ctx context.Context) (n objectWritten, err error) {
	raw, err := w.kube.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return n, err
	}
	for lines := bufio.NewScanner(strings.NewReader(string(raw))); lines.Scan(); {
		l := lines.Text()
		if !strings.HasPrefix(l, "apiserver_request_total{") || !strings.Contains(l, `group="hearth.run"`) {
			continue
		}
		if !strings.Contains(l, `verb="POST"`) && !strings.Contains(l, `verb="PUT"`) && !strings.Contains(l, `verb="PATCH"`) && !strings.Contains(l, `verb="APPLY"`) {
			continue
		}
		v, err := strconv.ParseFloat(l[strings.LastIndexByte(l, ' ')+1:], 64)
		if err != nil {
			return n, err
		}
		switch {
		case !strings.Contains(l, `resource="environments"`):
		case strings.Contains(l, `subresource="status"`):
			n.status += v
		default:
			n.objects += v
		}
	}
	return n, nil
}

// measurePods is the rival: a plain pod of the same image, create to Ready.
func (w *world) measurePods(ctx context.Context) error {
	var took []time.Duration
	for i := range benchPods {
		d, err := w.pod(ctx, fmt.Sprintf("plain-%d", i))
		if err != nil {
			return fmt.Errorf("PodReady: %w", err)
		}
		took = append(took, d)
	}
	var total time.Duration
	for _, d := range took {
		total += d
	}
	fmt.Printf("BenchmarkPodReady \t%d\t%d ns/op\t%.2f p50-ms\t%.2f p99-ms\n",
		len(took), total.Nanoseconds()/int64(len(took)), percentile(took, 0.5), percentile(took, 0.99))
	return nil
}

func (w *world) pod(ctx context.Context, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	api := w.kube.CoreV1().Pods(team)
	watcher, err := api.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, err
	}
	defer watcher.Stop()
	begun := time.Now()
	if _, err := api.Create(ctx, plainPod(name), metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	defer func() { _ = api.Delete(context.WithoutCancel(ctx), name, *metav1.NewDeleteOptions(0)) }()
	for e := range watcher.ResultChan() {
		if podReady(e.Object) {
			return time.Since(begun), nil
		}
	}
	return 0, fmt.Errorf("pod %s was not ready: %w", name, ctx.Err())
}

func plainPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "hearth.local/busybox:1", ImagePullPolicy: corev1.PullNever, Command: []string{"sleep", "3600"},
		}}},
	}
}

func podReady(o any) bool {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// apiClient is a backend's client of the Environments API.
func (w *world) apiClient() (hearthv1connect.EnvironmentServiceClient, func(), error) {
	pem, err := os.ReadFile(w.caFile())
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	connections := rpc.TLSClient(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots})
	client := &http.Client{Transport: transport.NewBearerAuthRoundTripper(w.tenants[team].token, connections.Transport)}
	return hearthv1connect.NewEnvironmentServiceClient(client, "https://"+server+":"+apiPort, rpc.ClientOptions()...), connections.CloseIdleConnections, nil
}
