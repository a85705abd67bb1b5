package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"hearth/api/v1alpha1"
	"hearth/test/stage"
)

// Names of what the manifests install and of what the journeys make.
const (
	systemNamespace = "hearth-system"
	nodesNamespace  = "hearth-nodes"
	agents          = "hearth-nodeagent"
	controllers     = "hearth-controller"
	server          = "hearth-controller.hearth-system.svc"
	apiPort         = "7400"

	team      = "team-a" // the tenant of most journeys
	otherTeam = "team-b"
	caller    = "backend" // a service account of each tenant

	class    = "web"  // durable, with an HTTP service
	fleeting = "tool" // ephemeral
)

// world is what journeys work with. It lives in a process inside the network
// namespace of the first node.
type world struct {
	cluster  *handle
	kube     kubernetes.Interface
	objects  dynamic.Interface
	config   *rest.Config
	scratch  string // a directory of this run
	tenants  map[string]*tenant
	clean    map[string]stage.Inventory // of each node, with full pools and nobody's environments
	kept     stage.Claimed
	released []string
}

// tenant is a namespace with a backend that claims in it.
type tenant struct {
	token string
	ctl   stage.Hearthctl
}

var (
	environmentsGVR = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "environments"}
	classesGVR      = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "environmentclasses"}
)

func newWorld(h *handle) (*world, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", h.Kubeconfig())
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = 200, 400
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	objects, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	w := &world{
		cluster: h, kube: kube, objects: objects, config: cfg,
		scratch: filepath.Join(h.Dir(), "scratch"), tenants: map[string]*tenant{}, clean: map[string]stage.Inventory{},
	}
	return w, os.MkdirAll(w.scratch, 0o755)
}

// kubectl runs the user's kubectl; an error has standard error's text.
func (w *world) kubectl(args ...string) (string, error) { return w.kubectlIn("", args...) }

// kubectlIn gives it a manifest on standard input.
func (w *world) kubectlIn(manifest string, args ...string) (string, error) {
	cmd := exec.Command(w.cluster.Program("kubectl"), append([]string{"--kubeconfig", w.cluster.Kubeconfig()}, args...)...)
	if manifest != "" {
		cmd.Stdin = strings.NewReader(manifest)
	}
	return output(cmd)
}

func (w *world) apply(manifest string) error {
	_, err := w.kubectlIn(manifest, "apply", "--server-side", "-f", "-")
	return err
}

// output runs a command and returns its standard output.
func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// ctl is the team's hearthctl.
func (w *world) ctl() stage.Hearthctl { return w.tenants[team].ctl }

// claim claims of a class as the team's backend does.
func (w *world) claim(ctl stage.Hearthctl, class string, args ...string) (c stage.Claimed, err error) {
	err = ctl.Decode(&c, append([]string{"claim", "--class", class}, args...)...)
	return c, err
}

// environment reads an Environment object.
func (w *world) environment(ctx context.Context, namespace, name string) (*unstructured.Unstructured, error) {
	return w.objects.Resource(environmentsGVR).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
}

// field is a string of an object, "" if it is not there.
func field(o *unstructured.Unstructured, path ...string) string {
	if o == nil {
		return ""
	}
	v, ok, err := unstructured.NestedFieldNoCopy(o.Object, path...)
	if !ok || err != nil {
		return ""
	}
	return fmt.Sprint(v)
}

// eventually tries until f succeeds, ctx ends, or most has passed.
func eventually(ctx context.Context, most time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", most, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// releaseAll lets go of environments and says which could not be.
func (w *world) releaseAll(ctl stage.Hearthctl, list ...stage.Claimed) error {
	var errs []error
	for _, c := range list {
		_, err := ctl.Run("release", c.ID())
		errs = append(errs, err)
		w.released = append(w.released, c.Environment.Slot)
	}
	return errors.Join(errs...)
}
