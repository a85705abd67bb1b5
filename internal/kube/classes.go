package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hearth/api/v1alpha1"
	"hearth/internal/fleet"
)

// classTaker is what of the fleet Classes need.
type classTaker interface {
	SetClasses(revision string, manifests [][]byte)
	PoolCounts() map[string]fleet.PoolCount
}

// Classes gives the nodes the classes that people wrote, as far as they can be
// made, and says in their status what became of them. A change that cannot be made
// leaves the class as it was.
type Classes struct {
	log    *slog.Logger
	c      *Client
	w      *Watches
	fleet  classTaker
	events *Events
	wake   chan struct{} // has one element if a class changed

	// Of the goroutine in Run.
	inForce  map[string][]byte // manifests by name
	revision string
}

// annotationInForce has the manifest that stays in force while the object's own is
// rejected, for the next controller.
const annotationInForce = "hearth.run/in-force"

const (
	// classSettle lets changes that come together be one.
	classSettle = 50 * time.Millisecond
	// countsEvery is how often counts in status are renewed.
	countsEvery = 3 * time.Second
)

// NewClasses registers with w, which must not run yet.
func NewClasses(log *slog.Logger, c *Client, w *Watches, f classTaker, events *Events) *Classes {
	k := &Classes{log: log, c: c, w: w, fleet: f, events: events, wake: make(chan struct{}, 1), inForce: map[string][]byte{}}
	onChange(w.classes, func(_, _ *v1alpha1.EnvironmentClass, _ bool) { wakeUp(k.wake) })
	return k
}

func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run works until ctx ends. The watches must have synced before: a class that is
// not seen is taken from the nodes.
func (k *Classes) Run(ctx context.Context) error {
	tick := time.NewTicker(countsEvery)
	defer tick.Stop()
	for {
		k.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-k.wake:
			time.Sleep(classSettle)
		}
	}
}

// round brings nodes and status to what the objects say now.
func (k *Classes) round(ctx context.Context) {
	objects := listed[*v1alpha1.EnvironmentClass](k.w.classes)
	slices.SortFunc(objects, func(a, b *v1alpha1.EnvironmentClass) int { return strings.Compare(a.Name, b.Name) })
	next, verdicts := map[string][]byte{}, map[string]verdict{}
	for _, o := range objects {
		v := judgeClass(o, k.inForce[o.Name])
		verdicts[o.Name] = v
		if v.manifest != nil {
			next[o.Name] = v.manifest
		}
	}
	k.inForce = next
	manifests := [][]byte{}
	for _, name := range slices.Sorted(maps.Keys(next)) {
		manifests = append(manifests, next[name])
	}
	if revision := revisionOf(manifests); revision != k.revision {
		k.log.Info("classes changed", "classes", len(manifests), "revision", revision)
		k.fleet.SetClasses(revision, manifests)
		k.revision = revision
	}
	counts := k.fleet.PoolCounts()
	for _, o := range objects {
		if o.DeletionTimestamp != nil {
			continue
		}
		begun := time.Now()
		k.report(ctx, o, verdicts[o.Name], counts[o.Name])
		if time.Since(begun) >= callTimeout {
			return // the others' would wait as long, and the next change for them
		}
	}
}

// report writes the class's status and keeps what stays in force, if that differs.
func (k *Classes) report(ctx context.Context, o *v1alpha1.EnvironmentClass, v verdict, n fleet.PoolCount) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := k.keep(ctx, o, v)
	if st := classStatus(o, v, n, time.Now()); err == nil && !sameClassStatus(st, o.Status) {
		err = k.applyClass(ctx, o, map[string]any{"status": st}, "status")
		if err == nil {
			k.tell(o, v)
		}
	}
	if err != nil && !k.c.isAway(err) && !errors.Is(err, context.Canceled) {
		k.log.Warn("class status not written", "class", o.Name, "error", err)
	}
}

// keep writes what stays in force into the object while its own manifest is
// rejected, and takes it away afterwards.
func (k *Classes) keep(ctx context.Context, o *v1alpha1.EnvironmentClass, v verdict) error {
	want := ""
	if v.rejected != "" && v.manifest != nil {
		want = string(v.manifest)
	}
	if o.Annotations[annotationInForce] == want {
		return nil
	}
	annotations := map[string]string{}
	if want != "" {
		annotations[annotationInForce] = want
	}
	return k.applyClass(ctx, o, map[string]any{"metadata": map[string]any{"annotations": annotations}})
}

func (k *Classes) applyClass(ctx context.Context, o *v1alpha1.EnvironmentClass, fields map[string]any, subresource ...string) error {
	m, _ := fields["metadata"].(map[string]any)
	if m == nil {
		m = map[string]any{}
	}
	m["name"], m["uid"] = o.Name, o.UID
	fields["apiVersion"], fields["kind"], fields["metadata"] = v1alpha1.APIVersion, v1alpha1.KindEnvironmentClass, m
	body, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("encode class %s: %w", o.Name, err)
	}
	force := true
	_, err = k.c.classes.Patch(ctx, o.Name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager, Force: &force}, subresource...)
	return err
}

// tell reports once that a manifest was accepted or rejected.
func (k *Classes) tell(o *v1alpha1.EnvironmentClass, v verdict) {
	if c := conditionOf(o.Status.Conditions, v1alpha1.ConditionAccepted); c != nil && c.ObservedGeneration == o.Generation && (c.Status == metav1.ConditionTrue) == (v.rejected == "") {
		return
	}
	if v.rejected != "" {
		k.log.Warn("class rejected", "class", o.Name, "generation", o.Generation, "reason", v.rejected)
		k.events.class(o, ReasonClassRejected, v.rejected)
		return
	}
	k.events.class(o, ReasonClassAccepted, fmt.Sprintf("generation %d is in force", o.Generation))
}

func conditionOf(list []metav1.Condition, kind string) *metav1.Condition {
	for i := range list {
		if list[i].Type == kind {
			return &list[i]
		}
	}
	return nil
}
