package kube

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

// fieldManager owns the fields that the controller applies.
const fieldManager = "hearth-controller"

// Config says which API server to use.
type Config struct {
	// Kubeconfig is a file; empty is the service account of the pod that this
	// process runs in.
	Kubeconfig string
	// UserAgent names this program in the API server's logs.
	UserAgent string
	// Writes is how objects are written, if it is not nil: to a server that speaks
	// TLS as said, everything else by rest.
	Writes func(c *tls.Config, rest http.RoundTripper) http.RoundTripper
}

// Client reaches one API server. Making it connects to nothing.
type Client struct {
	// leadership is that of the last Lead, nil before: see mayWrite.
	leadership atomic.Pointer[Leadership]

	rest    *rest.Config
	core    kubernetes.Interface
	hearth  *rest.RESTClient
	codec   runtime.ParameterCodec
	classes *gentype.ClientWithList[*v1alpha1.EnvironmentClass, *v1alpha1.EnvironmentClassList]
}

// Open makes a client. A configuration that is missing or wrong is env.ErrInvalid.
func Open(cfg Config) (*Client, error) { return openWith(cfg, func(*rest.Config) {}) }

// openWith lets a test come between the client and its server.
func openWith(cfg Config, edit func(*rest.Config)) (*Client, error) {
	rc, err := restConfig(cfg)
	if err != nil {
		return nil, err
	}
	edit(rc)
	rc.UserAgent = cfg.UserAgent
	return newClient(rc, cfg.Writes)
}

func newClient(rc *rest.Config, writes func(*tls.Config, http.RoundTripper) http.RoundTripper) (*Client, error) {
	// The server shares itself out by priority and fairness; a limit here would
	// only delay claims.
	rc.QPS, rc.Burst = -1, 0
	core, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("%w: kubernetes client: %s", env.ErrInvalid, err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	ours := rest.CopyConfig(rc)
	gv := v1alpha1.GroupVersion()
	ours.GroupVersion, ours.APIPath = &gv, "/apis"
	ours.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	if writes != nil && isDirect(ours) {
		over, err := rest.TLSConfigFor(ours)
		if err != nil {
			return nil, fmt.Errorf("%w: kubernetes client: %s", env.ErrInvalid, err)
		}
		if over != nil { // not plain HTTP
			ours.Wrap(func(rest http.RoundTripper) http.RoundTripper { return writes(over, rest) })
		}
	}
	hearth, err := rest.RESTClientFor(ours)
	if err != nil {
		return nil, fmt.Errorf("%w: kubernetes client: %s", env.ErrInvalid, err)
	}
	c := &Client{rest: rc, core: core, hearth: hearth, codec: runtime.NewParameterCodec(scheme)}
	c.classes = gentype.NewClientWithList("environmentclasses", hearth, c.codec, "",
		func() *v1alpha1.EnvironmentClass { return &v1alpha1.EnvironmentClass{} },
		func() *v1alpha1.EnvironmentClassList { return &v1alpha1.EnvironmentClassList{} })
	return c, nil
}

// isDirect reports whether nothing but the network is between this process and the
// server.
func isDirect(rc *rest.Config) bool {
	if rc.Transport != nil || rc.Dial != nil || rc.Proxy != nil {
		return false
	}
	u, _, err := rest.DefaultServerUrlFor(rc)
	if err != nil {
		return false
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u})
	return err == nil && proxy == nil
}

func restConfig(cfg Config) (*rest.Config, error) {
	if cfg.Kubeconfig != "" {
		rc, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("%w: read kubeconfig %s: %s", env.ErrInvalid, cfg.Kubeconfig, err)
		}
		return rc, nil
	}
	rc, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: %s; run in a pod with a service account, or set kubernetes.kubeconfig", env.ErrInvalid, err)
	}
	return rc, nil
}

// environments is the client of one namespace's; of all with an empty one.
func (c *Client) environments(namespace string) *gentype.ClientWithList[*v1alpha1.Environment, *v1alpha1.EnvironmentList] {
	return gentype.NewClientWithList("environments", c.hearth, c.codec, namespace,
		func() *v1alpha1.Environment { return &v1alpha1.Environment{} },
		func() *v1alpha1.EnvironmentList { return &v1alpha1.EnvironmentList{} })
}

// callTimeout bounds one request that somebody waits for.
const callTimeout = 10 * time.Second

// API is the client of Kubernetes' own types.
func (c *Client) API() kubernetes.Interface { return c.core }
