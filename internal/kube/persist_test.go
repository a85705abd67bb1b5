package kube

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// nodesServer is an API server with one node, that can be down.
type nodesServer struct {
	down    atomic.Pointer[error]
	events  chan watch.Event
	watches atomic.Int32
	lists   atomic.Int32
}

func (s *nodesServer) listWatch() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			s.lists.Add(1)
			if err := s.down.Load(); err != nil {
				return nil, *err
			}
			return &corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.Node{*versioned("1", false)}}, nil
		},
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) {
			s.watches.Add(1)
			if err := s.down.Load(); err != nil {
				return nil, *err
			}
			return watch.NewProxyWatcher(s.events), nil
		},
	}
}

func versioned(version string, cordoned bool) *corev1.Node {
	return node(func(n *corev1.Node) { n.ResourceVersion, n.Spec.Unschedulable = version, cordoned })
}

// clientless says that a watch cannot begin with the list.
type clientless struct{}

func (clientless) IsWatchListSemanticsUnSupported() bool { return true }

func TestAWatchIsBackAtOnceWhenTheAPIServerIs(t *testing.T) {
	outages := map[string]error{
		"refused":     errors.New("connect: connection refused"),
		"starting":    apierrors.NewServiceUnavailable("starting"),
		"overwhelmed": apierrors.NewTooManyRequests("later", 1),
	}
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &nodesServer{events: make(chan watch.Event)}
				i := informer(s.listWatch(), clientless{}, &corev1.Node{})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); i.RunWithContext(ctx) }()
				synctest.Wait()
				if !i.HasSynced() || s.watches.Load() != 1 {
					t.Fatalf("synced %v with %d watches", i.HasSynced(), s.watches.Load())
				}

				time.Sleep(time.Minute)
				s.down.Store(&outage)
				close(s.events)
				s.events = make(chan watch.Event, 1)
				time.Sleep(10 * time.Minute)
				if n := s.watches.Load(); n < 300 || n > 1200 {
					t.Errorf("%d tries in ten minutes of an outage", n)
				}
				s.down.Store(nil)
				s.events <- watch.Event{Type: watch.Modified, Object: versioned("2", true)}
				time.Sleep(maxAgain)
				synctest.Wait()
				if n, ok := got[*corev1.Node](i, "", "n1"); !ok || !n.Spec.Unschedulable {
					t.Errorf("%s after the API server is back the node is still open", maxAgain)
				}
				if n := s.lists.Load(); n != 1 {
					t.Errorf("%d lists: the watch did not go on where it was", n)
				}
				cancel()
				<-done
			})
		})
	}
}

func TestWhatTheAPIServerAnswersIsTold(t *testing.T) {
	answers := map[string]error{
		"gone":      apierrors.NewResourceExpired("too old"),
		"forbidden": apierrors.NewForbidden(corev1.Resource("nodes"), "", errors.New("no")),
		"not found": apierrors.NewNotFound(corev1.Resource("nodes"), ""),
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			s := &nodesServer{}
			s.down.Store(&answer)
			if _, err := persistent(s.listWatch()).WatchWithContext(t.Context(), metav1.ListOptions{}); !errors.Is(err, answer) {
				t.Errorf("the answer is told as %v", err)
			}
		})
	}
}

func TestATryToReachTheAPIServerEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("connect: connection refused")
		s := &nodesServer{}
		s.down.Store(&refused)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := persistent(s.listWatch()).ListWithContext(ctx, metav1.ListOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a list whose context ended is told as %v", err)
		}
	})
}
