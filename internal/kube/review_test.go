package kube

import (
	"errors"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"hearth/internal/env"
	leases "hearth/internal/kube/leader"
	"hearth/internal/obs/obstest"
)

func TestIdentityMetricsAreDocumented(t *testing.T) {
	reg := prometheus.NewRegistry()
	NewIdentityMetrics(reg)
	obstest.Documented(t, reg, "../../docs/metrics.md", "Callers in a cluster")
}

func TestAgentsReadTheAnnotationsThatTheLeaderWrites(t *testing.T) {
	if AnnotationAddress != leases.AddressAnnotation || AnnotationCA != leases.CAAnnotation {
		t.Error("leader and agents use different annotations")
	}
}

var agentAccount = env.ServiceAccount{Namespace: "hearth-nodes", Name: "hearth-nodeagent"}

func accepted() authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{"hearth"},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:hearth-nodes:hearth-nodeagent",
			Extra: map[string]authenticationv1.ExtraValue{
				extraPodName: {"hearth-nodeagent-x"}, extraPodUID: {"u"}, extraNodeName: {"n1"},
			},
		},
	}
}

func TestAReviewNamesTheNodeOfAnAgentsPodOnly(t *testing.T) {
	type status = authenticationv1.TokenReviewStatus
	for name, tc := range map[string]struct {
		change func(*status)
		want   string // in the error; "" is accepted
	}{
		"an agent's pod":        {func(*status) {}, ""},
		"not authenticated":     {func(s *status) { s.Authenticated, s.Error = false, "token expired" }, "token expired"},
		"no reason given":       {func(s *status) { s.Authenticated = false }, "pod that is gone"},
		"another audience":      {func(s *status) { s.Audiences = []string{"https://kubernetes.default.svc"} }, "audience"},
		"no audience said":      {func(s *status) { s.Audiences = nil }, "audience"},
		"another account":       {func(s *status) { s.User.Username = "system:serviceaccount:blue:bot" }, "not of system:serviceaccount:hearth-nodes"},
		"same name elsewhere":   {func(s *status) { s.User.Username = "system:serviceaccount:blue:hearth-nodeagent" }, "not of system:serviceaccount:hearth-nodes"},
		"a user":                {func(s *status) { s.User.Username = "alice" }, "alice"},
		"bound to no pod":       {func(s *status) { delete(s.User.Extra, extraPodName); delete(s.User.Extra, extraPodUID) }, "bound to no pod"},
		"bound to a node alone": {func(s *status) { delete(s.User.Extra, extraPodUID) }, "bound to no pod"},
		"no node":               {func(s *status) { delete(s.User.Extra, extraNodeName) }, "1.32"},
		"two nodes":             {func(s *status) { s.User.Extra[extraNodeName] = []string{"n1", "n2"} }, "1.32"},
		"an empty node":         {func(s *status) { s.User.Extra[extraNodeName] = []string{""} }, "1.32"},
	} {
		t.Run(name, func(t *testing.T) {
			s := accepted()
			tc.change(&s)
			node, err := nodeOf(s, agentAccount)
			if tc.want == "" {
				if node != "n1" || err != nil {
					t.Errorf("%q, %v", node, err)
				}
				return
			}
			if node != "" || !errors.Is(err, env.ErrDenied) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%q, %v; want %q", node, err, tc.want)
			}
		})
	}
}

func TestAReviewAsksForOurAudienceAndTellsAFaultFromARefusal(t *testing.T) {
	api := fake.NewClientset()
	var fault error
	var want string
	asked := 0
	api.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		r, _ := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		if r.Spec.Token != want || len(r.Spec.Audiences) != 1 || r.Spec.Audiences[0] != "hearth" {
			t.Errorf("asked for %+v", r.Spec)
		}
		return true, &authenticationv1.TokenReview{ObjectMeta: metav1.ObjectMeta{}, Status: accepted()}, fault
	})
	key := signer{"k", jose.ES256, ecKey()}
	keys := &server{t: t}
	keys.set(false, key)
	r := NewReviewer(api, newTokens(keys), agentAccount)
	of := func(k signer, namespace, name string) string {
		return k.sign(t, claims(time.Now(), map[string]any{
			"sub":           "system:serviceaccount:" + namespace + ":" + name,
			"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": name, "uid": "u"}},
		}))
	}
	want = of(key, agentAccount.Namespace, agentAccount.Name)
	if node, err := r.Review(t.Context(), want); node != "n1" || err != nil {
		t.Errorf("%q, %v", node, err)
	}
	fault = errors.New("connection refused")
	if node, err := r.Review(t.Context(), want); node != "" || !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("%q, %v", node, err)
	}
	asked = 0
	for name, token := range map[string]string{
		"of a caller":    of(key, "blue", "bot"),
		"by another key": of(signer{"k", jose.RS256, rsaKey()}, agentAccount.Namespace, agentAccount.Name),
		"no token":       "a.b.c",
	} {
		if node, err := r.Review(t.Context(), token); node != "" || !errors.Is(err, env.ErrDenied) {
			t.Errorf("%s: %q, %v", name, node, err)
		}
	}
	if asked != 0 {
		t.Errorf("the API server was asked %d times for what the cluster did not sign for an agent", asked)
	}
}
