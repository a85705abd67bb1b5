package kube

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"hearth/internal/env"
)

func conflict() error {
	return apierrors.NewConflict(schema.GroupResource{Group: "hearth.run", Resource: "environments"}, "x", errors.New("it was changed"))
}

func TestErrorsOfTheAPIServerSayWhatToDo(t *testing.T) {
	gr := schema.GroupResource{Group: "hearth.run", Resource: "environments"}
	terminating := apierrors.NewForbidden(gr, "x", errors.New("namespace is being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	for name, tc := range map[string]struct {
		err  error
		want error
		says string
	}{
		"no connection":           {errors.New("dial tcp: connection refused"), env.ErrUnavailable, "try again when it answers"},
		"a deadline":              {context.DeadlineExceeded, env.ErrUnavailable, "API server"},
		"two writers":             {conflict(), env.ErrUnavailable, "at the same time"},
		"overload":                {apierrors.NewTooManyRequests("slow down", 1), env.ErrUnavailable, "slow down"},
		"a fault of the server's": {apierrors.NewInternalError(errors.New("etcd")), env.ErrUnavailable, "etcd"},
		"no rights":               {apierrors.NewForbidden(gr, "x", errors.New(`User "c" cannot create resource`)), env.ErrDenied, "deploy/controller"},
		"a policy":                {apierrors.NewForbidden(gr, "x", errors.New("ValidatingAdmissionPolicy says no")), env.ErrDenied, "says no"},
		"a quota":                 {apierrors.NewForbidden(gr, "x", errors.New("exceeded quota: objects")), env.ErrExhausted, "exceeded quota"},
		"a namespace on its way":  {terminating, env.ErrState, "terminated"},
		"a wrong object":          {apierrors.NewBadRequest("no"), env.ErrInvalid, "no"},
		"nothing there":           {apierrors.NewNotFound(gr, "x"), env.ErrNotFound, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			got := failed("write it", tc.err)
			if !errors.Is(got, tc.want) || !strings.Contains(got.Error(), tc.says) {
				t.Errorf("error = %v", got)
			}
			if errors.Is(tc.want, env.ErrDenied) && name == "a policy" && strings.Contains(got.Error(), "deploy/controller") {
				t.Errorf("it blames the roles: %v", got)
			}
		})
	}
	if failed("x", nil) != nil {
		t.Error("no error became one")
	}
}
