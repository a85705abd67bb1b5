package uninstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// Config says which cluster, and how long to wait.
type Config struct {
	Kubeconfig, Context string // empty as kubectl takes them
	// Timeout bounds the whole.
	Timeout time.Duration
	// Force goes on when environments are not released in half of Timeout: their
	// last changes are lost.
	Force bool
	// Progress gets a line for each step.
	Progress io.Writer
}

// Names that the manifests fix.
const (
	part            = "app.kubernetes.io/part-of=hearth"
	nodesNamespace  = "hearth-nodes"
	systemNamespace = "hearth-system"
	agentSet        = "hearth-nodeagent"
	controllerName  = "hearth-controller"
)

// Uninstaller works on one cluster. It speaks of objects only: the typed clients
// of every API would double the size of hearthctl.
type Uninstaller struct {
	cfg     Config
	objects dynamic.Interface
	rest    *rest.Config
}

// New reads the configuration as kubectl does. It connects to nothing.
func New(cfg Config) (*Uninstaller, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = cfg.Kubeconfig
	rc, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: read kubeconfig: %s", env.ErrInvalid, err)
	}
	rc.QPS, rc.Burst = -1, 0
	rc.UserAgent = "hearthctl"
	objects, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", env.ErrInvalid, err)
	}
	return &Uninstaller{cfg, objects, rc}, nil
}

// Found is what there is to be taken away.
type Found struct {
	Environments, Namespaces, Classes, Nodes int
}

// Look counts what is there. An API server that does not answer is
// env.ErrUnavailable.
func (u *Uninstaller) Look(ctx context.Context) (f Found, err error) {
	envs, err := u.list(ctx, environments)
	if err != nil {
		return f, err
	}
	namespaces := map[string]bool{}
	for _, e := range envs {
		namespaces[e.GetNamespace()] = true
	}
	classes, err := u.list(ctx, classes)
	if err != nil {
		return f, err
	}
	nodes, err := u.agentNodes(ctx)
	return Found{len(envs), len(namespaces), len(classes), len(nodes)}, err
}

// Run takes everything away.
func (u *Uninstaller) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, u.cfg.Timeout)
	defer cancel()
	// The nodes are remembered before the agents go: they tell where they are.
	nodes, err := u.agentNodes(ctx)
	if err != nil {
		return err
	}
	template, err := u.agentTemplate(ctx)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"no more claims: delete classes", u.deleteClasses},
		{"release environments", u.releaseAll},
		{"stop controller", u.stopController},
		{"stop agents", u.stopAgents},
		{"clean nodes", func(ctx context.Context) error { return u.cleanNodes(ctx, template, nodes) }},
		{"take off finalizers", u.dropFinalizers},
		{"delete objects", u.deleteObjects},
	} {
		u.say("%s", step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w; run it again to go on", step.name, err)
		}
	}
	return nil
}

func (u *Uninstaller) say(format string, args ...any) {
	if u.cfg.Progress != nil {
		fmt.Fprintf(u.cfg.Progress, "uninstall: "+format+"\n", args...)
	}
}

func ours(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: resource}
}

var (
	environments = ours("environments")
	classes      = ours("environmentclasses")
)

// list is every object of a resource; a resource that is not served has none.
func (u *Uninstaller) list(ctx context.Context, r schema.GroupVersionResource) ([]unstructured.Unstructured, error) {
	l, err := u.objects.Resource(r).List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return nil, nil
	case err != nil:
		return nil, reach(err)
	}
	return l.Items, nil
}

// reach tells an API server that refuses from one that does not answer.
func reach(err error) error {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: %s", env.ErrDenied, err)
	case errors.As(err, &status):
		return err
	default:
		return fmt.Errorf("%w: API server: %w", env.ErrUnavailable, err)
	}
}

func (u *Uninstaller) deleteClasses(ctx context.Context) error {
	list, err := u.list(ctx, classes)
	for _, c := range list {
		err = errors.Join(err, gone(u.objects.Resource(classes).Delete(ctx, c.GetName(), metav1.DeleteOptions{})))
	}
	return err
}

func gone(err error) error {
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil
	}
	return reach(err)
}

// releaseAll deletes the environments and waits until the controller has let go
// of each.
func (u *Uninstaller) releaseAll(ctx context.Context) error {
	list, err := u.list(ctx, environments)
	for _, e := range list {
		err = errors.Join(err, gone(u.objects.Resource(environments).Namespace(e.GetNamespace()).Delete(ctx, e.GetName(), metav1.DeleteOptions{})))
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, u.cfg.Timeout/2)
	defer cancel()
	said := -1
	err = wait(ctx, func() error {
		left, err := u.list(ctx, environments)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if len(left) != said {
			said = len(left)
			u.say("%d environments left", said)
		}
		return fmt.Errorf("%d environments are not released, the first is %s/%s: look at its status, or use --force and lose their last changes",
			len(left), left[0].GetNamespace(), left[0].GetName())
	})
	if err != nil && u.cfg.Force {
		u.say("forced: %v", err)
		return nil
	}
	return err
}

// every is the pause between two looks.
const every = 200 * time.Millisecond

// wait tries f until it succeeds or ctx ends.
func wait(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(every):
		}
	}
}
