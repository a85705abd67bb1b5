package ctrd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"hearth/internal/env"
)

// Forget removes all that is left in our namespace, which belongs to nobody
// else: images with their content, leases, and the namespace itself. It returns
// the images' names. While containers are there, whoever's, it refuses with
// env.ErrState.
func (r *Runtime) Forget(ctx context.Context) ([]string, error) {
	ctx = r.namespaced(ctx)
	op := "forget namespace " + r.cfg.Namespace
	containers, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, r.fail(op, err)
	}
	if len(containers) > 0 {
		return nil, fmt.Errorf("%w: %s: %d containers are in it, the first is %s", env.ErrState, op, len(containers), containers[0].ID)
	}
	held, err := r.client.LeasesService().List(ctx)
	if err != nil {
		return nil, r.fail(op, err)
	}
	for _, l := range held {
		if err := r.client.LeasesService().Delete(ctx, leases.Lease{ID: l.ID}); err != nil && !errdefs.IsNotFound(err) {
			return nil, r.fail(op, err)
		}
	}
	list, err := r.client.ImageService().List(ctx)
	if err != nil {
		return nil, r.fail(op, err)
	}
	var names []string
	for i, img := range list {
		var opts []images.DeleteOpt
		if i == len(list)-1 { // content and layers go when the last image has gone
			opts = append(opts, images.SynchronousDelete())
		}
		if err := r.client.ImageService().Delete(ctx, img.Name, opts...); err != nil && !errdefs.IsNotFound(err) {
			return names, r.fail(op+": remove image "+img.Name, err)
		}
		names = append(names, img.Name)
	}
	err = r.client.NamespaceService().Delete(ctx, r.cfg.Namespace)
	switch {
	case err == nil, errdefs.IsNotFound(err):
		return names, nil
	case errdefs.IsFailedPrecondition(err):
		return names, errors.Join(fmt.Errorf("%w: %s", env.ErrState, op), r.fail(op, err))
	}
	return names, r.fail(op, err)
}
