//go:build e2e

package kube

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/api/v1alpha1"
	"hearth/internal/fleet"
)

// world is a controller without listeners, on a real API server, with nodes that
// are not real.
type world struct {
	t        testing.TB
	c        *Client
	store    *Store
	fleet    *fleet.Fleet
	events   *Events
	watches  *Watches
	classes  *Classes
	nodes    *Nodes
	fakes    map[string]*fakeNode
	sessions map[string]*fleet.Session
	stop     func()
}

func newWorld(t testing.TB, c *Client, fakes map[string]*fakeNode) *world {
	t.Helper()
	log := testLog(t)
	w := &world{t: t, c: c, fakes: fakes, sessions: map[string]*fleet.Session{}, store: openTestStore(t, c)}
	w.store.cfg.Address = func(node string) string { return w.fleet.AddressOf(node) }
	w.events = NewEvents(c, w.store)
	f, err := fleet.New(log, w.store, func(name, _ string) hearthv1connect.NodeServiceClient { return w.fakes[name] },
		fleet.Config{Observer: w.events}, fleet.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	w.fleet = f
	w.watches = c.NewWatches(testNamespace)
	w.classes = NewClasses(log, c, w.watches, f, w.events)
	w.nodes = NewNodes(log, c, w.watches, f)
	environments := NewEnvironments(log, w.watches, w.store, f)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{f.Run, w.watches.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	if err := w.watches.Synced(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, run := range []func(context.Context) error{w.nodes.Run, w.classes.Run, environments.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	for name := range fakes {
		w.connect(name, 5)
	}
	w.stop = func() {
		cancel()
		running.Wait()
		w.events.Close()
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
		w.stop = func() {}
	}
	t.Cleanup(func() { w.stop() })
	return w
}

// connect lets a node report that it has slots of the class "small".
func (w *world) connect(name string, ready uint32) {
	w.t.Helper()
	s := w.fleet.Connect(name, name+":7401")
	w.sessions[name] = s
	_, err := s.Inventory(&hearthv1.InventoryResponse{Node: name,
		Pools: []*hearthv1.Pool{{Class: "small", Want: ready, Ready: ready}},
		Room:  &hearthv1.Room{SlotsMax: 100, MemoryMaxBytes: 1 << 40},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) get(namespace, name string) *v1alpha1.Environment {
	w.t.Helper()
	o, err := w.c.environments(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// counter counts the requests that change something, by method and path.
type counter struct {
	next http.RoundTripper
	mu   sync.Mutex // guards all
	seen []string
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	if strings.Contains(r.URL.Path, "/environments") && !strings.Contains(r.URL.RawQuery, "watch=true") {
		c.seen = append(c.seen, r.Method+" "+r.URL.Path)
	}
	next := c.next
	c.mu.Unlock()
	return next.RoundTrip(r)
}

func (c *counter) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seen
	c.seen = nil
	return s
}
