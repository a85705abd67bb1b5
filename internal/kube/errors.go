package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"hearth/internal/env"
)

// failed says what could not be done, by the sentinel that a caller acts on and
// with the mend. What is no answer of the API server, or one that says that it
// cannot work now, is env.ErrUnavailable: the thing may have been done.
func failed(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", what, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s: %w: %s", what, env.ErrNotFound, err)
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("%s: %w: %s", what, env.ErrExists, err)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%s: %w: somebody else wrote at the same time: %s; try again", what, env.ErrUnavailable, err)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return fmt.Errorf("%s: %w: %s", what, env.ErrState, err)
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota"):
		return fmt.Errorf("%s: %w: %s", what, env.ErrExhausted, err)
	case apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "forbidden: User"):
		return fmt.Errorf("%s: %w: %s", what, env.ErrDenied, err) // by an admission policy of the cluster's
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %w: %s; the roles that the controller needs are in deploy/controller", what, env.ErrDenied, err)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return fmt.Errorf("%s: %w: %s", what, env.ErrInvalid, err)
	default:
		return fmt.Errorf("%s: %w: the Kubernetes API server: %s; try again when it answers", what, env.ErrUnavailable, err)
	}
}

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }
