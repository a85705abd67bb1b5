package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// LogTo gives log what client-go has to say. It is for the whole process.
func LogTo(log *slog.Logger) { klog.SetSlogLogger(log.With("part", "client-go")) }

// Watches hold this process's view of the objects that people write.
type Watches struct {
	environments, classes, nodes, holds cache.SharedIndexInformer
}

// NewWatches makes the view; hold pods are looked for in namespace.
func (c *Client) NewWatches(namespace string) *Watches {
	ours := func(resource string, example runtime.Object) cache.SharedIndexInformer {
		return informer(cache.NewListWatchFromClient(c.hearth, resource, metav1.NamespaceAll, fields.Everything()), c.hearth, example)
	}
	core := c.core.CoreV1().RESTClient()
	pods := cache.NewFilteredListWatchFromClient(core, "pods", namespace, func(o *metav1.ListOptions) { o.LabelSelector = nameLabel + "=" + holdName })
	return &Watches{
		environments: ours("environments", &v1alpha1.Environment{}),
		classes:      ours("environmentclasses", &v1alpha1.EnvironmentClass{}),
		nodes:        informer(cache.NewListWatchFromClient(core, "nodes", "", fields.Everything()), core, &corev1.Node{}),
		holds:        informer(pods, core, &corev1.Pod{}),
	}
}

func informer(lw *cache.ListWatch, client any, example runtime.Object) cache.SharedIndexInformer {
	i := cache.NewSharedIndexInformerWithOptions(cache.ToListWatcherWithWatchListSemantics(persistent(lw), client), example, cache.SharedIndexInformerOptions{})
	_ = i.SetTransform(lighter) // refused only of an informer that runs
	return i
}

// lighter drops what nobody here reads and what takes most of the room.
func lighter(o any) (any, error) {
	if m, err := meta.Accessor(o); err == nil {
		m.SetManagedFields(nil)
	}
	if n, ok := o.(*corev1.Node); ok {
		n.Status.Images, n.Status.Conditions, n.Status.VolumesAttached, n.Status.VolumesInUse = nil, nil, nil, nil
	}
	return o, nil
}

func (w *Watches) all() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{w.environments, w.classes, w.nodes, w.holds}
}

// Run watches until ctx ends.
func (w *Watches) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, i := range w.all() {
		running.Go(func() { i.RunWithContext(ctx) })
	}
	running.Wait()
	return nil
}

// Synced waits until everything that was there has been seen. A context that ends
// before is env.ErrUnavailable.
func (w *Watches) Synced(ctx context.Context) error {
	var done []cache.InformerSynced
	for _, i := range w.all() {
		done = append(done, i.HasSynced)
	}
	if !cache.WaitForCacheSync(ctx.Done(), done...) {
		return fmt.Errorf("%w: the Kubernetes API server did not list classes, environments, nodes and hold pods in time; are the CRDs of deploy/crds applied, and the roles of deploy/controller", env.ErrUnavailable)
	}
	return nil
}

// onChange calls f with each object that changes and what it was before, the zero
// value for a new one, and with the last that is known of those that are deleted.
func onChange[T runtime.Object](i cache.SharedIndexInformer, f func(before, o T, deleted bool)) {
	var none T
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{ // refused only of an informer that has ended
		AddFunc:    func(o any) { f(none, o.(T), false) },
		UpdateFunc: func(before, o any) { f(before.(T), o.(T), false) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if t, ok := o.(T); ok {
				f(none, t, true)
			}
		},
	})
}

// onEdit is onChange for objects of which most changes mean nothing here: same tells
// which.
func onEdit[T runtime.Object](i cache.SharedIndexInformer, same func(a, b T) bool, f func()) {
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{ // refused only of an informer that has ended
		AddFunc: func(any) { f() },
		UpdateFunc: func(a, b any) {
			if !same(a.(T), b.(T)) {
				f()
			}
		},
		DeleteFunc: func(any) { f() },
	})
}

func listed[T runtime.Object](i cache.SharedIndexInformer) []T {
	var out []T
	for _, o := range i.GetStore().List() {
		out = append(out, o.(T))
	}
	return out
}

// got is the object of that name, cluster-scoped ones without a namespace.
func got[T runtime.Object](i cache.SharedIndexInformer, namespace, name string) (o T, ok bool) {
	key := name
	if namespace != "" {
		key = namespace + "/" + name
	}
	found, ok, err := i.GetStore().GetByKey(key)
	if err != nil || !ok {
		return o, false
	}
	return found.(T), true
}
