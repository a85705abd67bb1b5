package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// fakeAPI keeps Environments as an API server does, as far as a Store sees it. What
// it must not get wrong is tested against a real one, see e2e_test.go.
type fakeAPI struct {
	mu      sync.Mutex // guards all below
	objects map[string]*v1alpha1.Environment
	made    int
	seen    []string                                 // requests: "PATCH team/name/status"
	before  func(r *http.Request, what string) error // is asked before each; an error is the connection's
}

func newFakeAPI() *fakeAPI { return &fakeAPI{objects: map[string]*v1alpha1.Environment{}} }

// client is one that has no network.
func (a *fakeAPI) client(tb testing.TB) *Client {
	tb.Helper()
	c, err := newClient(&rest.Config{Host: "http://api.test", Transport: a}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func (a *fakeAPI) store(tb testing.TB, c *Client) *Store {
	tb.Helper()
	return OpenStore(slog.New(slog.DiscardHandler), c, StoreConfig{Namespace: "system", Seal: testSeal}, NewStoreMetrics(prometheus.NewRegistry()))
}

func (a *fakeAPI) set(before func(*http.Request, string) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = before
}

// get is a copy; nil if there is none.
func (a *fakeAPI) get(name string) *v1alpha1.Environment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.objects[name].DeepCopy()
}

func (a *fakeAPI) edit(name string, f func(*v1alpha1.Environment)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(a.objects[name])
}

// vanish lets an object be torn away.
func (a *fakeAPI) vanish(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.objects, name)
}

func (a *fakeAPI) names() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.objects))
}

func (a *fakeAPI) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.seen
	a.seen = nil
	return s
}

// put makes an object as somebody did.
func (a *fakeAPI) put(namespace, name string, edit func(*v1alpha1.Environment)) *v1alpha1.Environment {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := &v1alpha1.Environment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1alpha1.EnvironmentSpec{Class: "small"}}
	if edit != nil {
		edit(o)
	}
	a.add(o)
	return o.DeepCopy()
}

// add gives the object what makes it one. The caller holds mu.
func (a *fakeAPI) add(o *v1alpha1.Environment) {
	a.made++
	o.UID, o.CreationTimestamp, o.Generation = types.UID(fmt.Sprint("uid-", a.made)), metav1.Now(), 1
	a.objects[refOf(o).String()] = o
}

var environmentsResource = schema.GroupResource{Group: v1alpha1.Group, Resource: "environments"}

func (a *fakeAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	path, _ := strings.CutPrefix(r.URL.Path, "/apis/hearth.run/v1alpha1/namespaces/")
	what := strings.TrimSuffix(strings.Replace(path, "/environments", "", 1), "/")
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	a.mu.Lock()
	a.seen = append(a.seen, r.Method+" "+what)
	before := a.before
	a.mu.Unlock()
	if before != nil {
		if err := before(r, what); err != nil {
			return nil, err
		}
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	o, err := a.serve(r, what, body)
	return reply(o, err)
}

func reply(o *v1alpha1.Environment, err error) (*http.Response, error) {
	var out any = o
	code := http.StatusOK
	if err != nil {
		s, _ := err.(apierrors.APIStatus) // serve gives no others
		st := s.Status()
		st.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		out, code = st, int(st.Code)
	} else {
		o.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindEnvironment}
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b))}, nil
}

// serve carries out one request. The caller holds mu.
func (a *fakeAPI) serve(r *http.Request, what string, body []byte) (*v1alpha1.Environment, error) {
	if r.Method == http.MethodPost {
		o := &v1alpha1.Environment{}
		if err := json.Unmarshal(body, o); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if o.Namespace == "" {
			o.Namespace = what
		}
		if a.objects[refOf(o).String()] != nil {
			return nil, apierrors.NewAlreadyExists(environmentsResource, o.Name)
		}
		a.add(o)
		return o, nil
	}
	key, sub := what, ""
	if strings.Count(what, "/") == 2 {
		i := strings.LastIndex(what, "/")
		key, sub = what[:i], what[i+1:]
	}
	o := a.objects[key]
	if o == nil {
		return nil, apierrors.NewNotFound(environmentsResource, key)
	}
	switch {
	case r.Method == http.MethodGet:
		return o, nil
	case r.Method == http.MethodDelete:
		return o, a.delete(o, body)
	case strings.HasPrefix(r.Header.Get("Content-Type"), string(types.JSONPatchType)):
		o.Finalizers = slices.DeleteFunc(o.Finalizers, func(f string) bool { return f == v1alpha1.Finalizer })
		a.collect(o)
		return o, nil
	default:
		return o, applyTo(o, sub, body)
	}
}

func (a *fakeAPI) delete(o *v1alpha1.Environment, body []byte) error {
	var opts metav1.DeleteOptions
	_ = json.Unmarshal(body, &opts)
	if p := opts.Preconditions; p != nil && p.UID != nil && *p.UID != o.UID {
		return apierrors.NewConflict(environmentsResource, o.Name, fmt.Errorf("uid is %s", o.UID))
	}
	now := metav1.Now()
	o.DeletionTimestamp = &now
	a.collect(o)
	return nil
}

// collect takes away what is deleted and has no finalizer. The caller holds mu.
func (a *fakeAPI) collect(o *v1alpha1.Environment) {
	if o.DeletionTimestamp != nil && len(o.Finalizers) == 0 {
		delete(a.objects, refOf(o).String())
	}
}

func applyTo(o *v1alpha1.Environment, sub string, body []byte) error {
	var p v1alpha1.Environment
	if err := json.Unmarshal(body, &p); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if p.UID != "" && p.UID != o.UID {
		return apierrors.NewConflict(environmentsResource, o.Name, fmt.Errorf("uid is %s", o.UID))
	}
	if sub == "status" {
		o.Status = p.Status
		return nil
	}
	if n := p.Spec.Placement; n != nil {
		if have := o.Spec.Placement; have != nil && n.Generation < have.Generation {
			return apierrors.NewInvalid(schema.GroupKind{Group: v1alpha1.Group, Kind: v1alpha1.KindEnvironment}, o.Name, nil)
		}
		o.Spec.Placement = n
		o.Generation++
	}
	for _, f := range p.Finalizers {
		if !slices.Contains(o.Finalizers, f) {
			o.Finalizers = append(o.Finalizers, f)
		}
	}
	if o.Annotations == nil {
		o.Annotations = map[string]string{}
	}
	maps.Copy(o.Annotations, p.Annotations)
	return nil
}

// save saves a record that is good.
func save(tb testing.TB, s *Store, r *fleet.Record) {
	tb.Helper()
	if err := s.Save(fleet.Change{Op: "test", Record: r}); err != nil {
		tb.Fatal(err)
	}
}

func objectName(r *fleet.Record) string { return r.Environment.GetTenant() + "/" + string(r.ID()) }

// recordFor is of an object that somebody made.
func recordFor(o *v1alpha1.Environment, edit func(*fleet.Record)) *fleet.Record {
	return recordAt("n1", 1, func(r *fleet.Record) {
		r.Environment.Id, r.Environment.Tenant = string(env.IDFrom(o.CreationTimestamp.Time, string(o.UID))), o.Namespace
		r.Object, r.UID = refOf(o).String(), string(o.UID)
		if edit != nil {
			edit(r)
		}
	})
}

// hangs is an API server that takes requests and answers none.
func hangs(r *http.Request, _ string) error {
	<-r.Context().Done()
	return context.Cause(r.Context())
}
