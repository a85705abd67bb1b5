package uninstall

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// dropFinalizers lets go of objects that no controller can release any more.
// Their nodes are clean: nothing of them is left to be released.
func (u *Uninstaller) dropFinalizers(ctx context.Context) error {
	list, err := u.list(ctx, environments)
	for _, e := range list {
		u.say("environment %s/%s was not released by the controller", e.GetNamespace(), e.GetName())
		_, patchErr := u.objects.Resource(environments).Namespace(e.GetNamespace()).Patch(ctx, e.GetName(), types.MergePatchType,
			[]byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		err = errors.Join(err, gone(patchErr))
	}
	return err
}

// clusterWide are the kinds of the manifests' objects that belong to no
// namespace, in the order in which they go. The webhook goes first, since its
// server has gone; the namespaces take what is in them along.
var clusterWide = []schema.GroupVersionResource{
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicies"},
	{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
	{Group: "scheduling.k8s.io", Version: "v1", Resource: "priorityclasses"},
	{Version: "v1", Resource: "namespaces"},
}

// outside are roles in namespaces of others, which let the controller read there.
var outside = []schema.GroupVersionResource{
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
}

// deleteObjects deletes what bears the label, and waits until it is gone.
func (u *Uninstaller) deleteObjects(ctx context.Context) error {
	if err := u.deleteCRDs(ctx); err != nil {
		return err
	}
	for _, r := range append(append([]schema.GroupVersionResource(nil), outside...), clusterWide...) {
		list, err := u.objects.Resource(r).List(ctx, metav1.ListOptions{LabelSelector: part})
		if apierrors.IsNotFound(err) {
			continue // a kind that this server does not have
		}
		if err != nil {
			return reach(err)
		}
		for _, o := range list.Items {
			in := u.objects.Resource(r).Namespace(o.GetNamespace())
			if err := gone(in.Delete(ctx, o.GetName(), metav1.DeleteOptions{})); err != nil {
				return fmt.Errorf("%s %s: %w", r.Resource, o.GetName(), err)
			}
		}
	}
	return wait(ctx, func() error { return u.nothingLeft(ctx) })
}

// deleteCRDs names them: controller-gen gives them no label.
func (u *Uninstaller) deleteCRDs(ctx context.Context) error {
	crds := u.objects.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	var errs []error
	for _, r := range []schema.GroupVersionResource{environments, classes} {
		errs = append(errs, gone(crds.Delete(ctx, r.GroupResource().String(), metav1.DeleteOptions{})))
	}
	return errors.Join(errs...)
}

func (u *Uninstaller) nothingLeft(ctx context.Context) error {
	for _, r := range clusterWide {
		list, err := u.objects.Resource(r).List(ctx, metav1.ListOptions{LabelSelector: part})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return reach(err)
		}
		if len(list.Items) > 0 {
			return fmt.Errorf("%s %s is still there", r.Resource, list.Items[0].GetName())
		}
	}
	return nil
}
