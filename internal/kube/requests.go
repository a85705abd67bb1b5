package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// The requests about one Environment. Each is bound to the object's UID where it
// is known, and none to its resourceVersion.

// applied is the body of a server-side apply: exactly the fields that the
// controller owns. What it leaves out is taken away, but for what the creation
// wrote, which counts as another owner's: so stale is written even if it is empty.
type applied struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   appliedMeta     `json:"metadata"`
	Spec       *appliedSpec    `json:"spec,omitempty"`
	Status     json.RawMessage `json:"status,omitempty"`
}

type appliedMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         types.UID         `json:"uid,omitempty"`
	Finalizers  []string          `json:"finalizers,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type appliedSpec struct {
	Placement appliedPlacement `json:"placement"`
}

type appliedPlacement struct {
	NodeName   string                    `json:"nodeName"`
	Generation int64                     `json:"generation"`
	Stale      []v1alpha1.StalePlacement `json:"stale"`
	Next       *v1alpha1.NextPlacement   `json:"next,omitempty"`
}

func (c *Client) apply(ctx context.Context, o ref, a applied, subresource ...string) (*v1alpha1.Environment, error) {
	a.APIVersion, a.Kind = v1alpha1.APIVersion, v1alpha1.KindEnvironment
	a.Metadata.Name, a.Metadata.Namespace, a.Metadata.UID = o.name, o.namespace, o.uid
	body, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("encode environment %s: %w", o, err)
	}
	force := true
	return c.environments(o.namespace).Patch(ctx, o.name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: fieldManager, Force: &force}, subresource...)
}

// place applies what is decided in r. An object that is being deleted takes no
// finalizer any more, but keeps the one that it has.
func (c *Client) place(ctx context.Context, have object, r *fleet.Record) (*v1alpha1.Environment, error) {
	p := placementOf(r)
	a := applied{
		Metadata: appliedMeta{Annotations: marks(r)},
		Spec: &appliedSpec{appliedPlacement{
			NodeName: p.NodeName, Generation: p.Generation, Stale: append([]v1alpha1.StalePlacement{}, p.Stale...), Next: p.Next,
		}},
	}
	if !have.deleting || slices.Contains(have.finalizers, v1alpha1.Finalizer) {
		a.Metadata.Finalizers = []string{v1alpha1.Finalizer}
	}
	return c.apply(ctx, have.ref, a)
}

// createNames is how many names are tried for an object. Whoever takes the seal
// from one has taken its name, and the environment that runs on still needs an
// object by which it is known.
const createNames = 4

// create makes the object, or finds that an attempt that was cut off did, and says
// under which name.
func (c *Client) create(ctx context.Context, k sealer, r *fleet.Record) (made *v1alpha1.Environment, name string, err error) {
	namespace := r.Environment.GetTenant()
	for n := range createNames {
		name = k.nameOf(r.ID(), n)
		made, err = c.environments(namespace).Create(ctx, k.objectOf(name, r), metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsAlreadyExists(err) {
			made, err = c.environments(namespace).Get(ctx, name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
				return nil, name, fmt.Errorf("%w: object %s/%s went at that moment; try again", env.ErrUnavailable, namespace, name)
			case err == nil && k.idOf(made) != r.ID():
				err = fmt.Errorf("%w: object %s/%s is somebody else's", env.ErrExists, namespace, name)
				continue
			}
		}
		break
	}
	if apierrors.IsNotFound(err) {
		err = fmt.Errorf("%w: tenant %s has no namespace; make it with \"kubectl create namespace %s\"", env.ErrNotFound, namespace, namespace)
	}
	if err != nil {
		return nil, name, err
	}
	return made, name, nil
}

func (c *Client) delete(ctx context.Context, o ref) error {
	background := metav1.DeletePropagationBackground
	opts := metav1.DeleteOptions{PropagationPolicy: &background}
	if o.uid != "" {
		opts.Preconditions = &metav1.Preconditions{UID: &o.uid}
	}
	return c.environments(o.namespace).Delete(ctx, o.name, opts)
}

// letGo takes our finalizer away and leaves those of others. A JSON patch can only
// name it by its place in the list, which is tested for; a list that has changed is
// read anew.
func (c *Client) letGo(ctx context.Context, o ref, finalizers []string) error {
	const attempts = 4
	for range attempts {
		i := slices.Index(finalizers, v1alpha1.Finalizer)
		if i >= 0 {
			path := fmt.Sprintf("/metadata/finalizers/%d", i)
			body, err := json.Marshal([]patchOp{
				{Op: "test", Path: "/metadata/uid", Value: o.uid}, {Op: "test", Path: path, Value: v1alpha1.Finalizer}, {Op: "remove", Path: path},
			})
			if err != nil {
				return err
			}
			_, err = c.environments(o.namespace).Patch(ctx, o.name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
			if err == nil || !apierrors.IsInvalid(err) {
				return err
			}
		}
		have, err := c.environments(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if o.uid != "" && have.UID != o.uid || !slices.Contains(have.Finalizers, v1alpha1.Finalizer) {
			return nil
		}
		o.uid, finalizers = have.UID, have.Finalizers
	}
	return fmt.Errorf("%w: the finalizers of environment %s change all the time", env.ErrState, o)
}

type patchOp struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// isGone tells that the very object that was meant is no longer there. A conflict
// says so if another object has the name, and else only that many wrote at once.
func (c *Client) isGone(ctx context.Context, o ref, err error) bool {
	if apierrors.IsNotFound(err) {
		return true
	}
	if !apierrors.IsConflict(err) {
		return false
	}
	have, err := c.environments(o.namespace).Get(ctx, o.name, metav1.GetOptions{})
	return apierrors.IsNotFound(err) || err == nil && o.uid != "" && have.UID != o.uid
}
