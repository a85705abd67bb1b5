package kube

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"hearth/internal/fleet"
)

// drains is a fleet of which only drains are told.
type drains struct {
	left   int
	wishes map[string]fleet.NodeWish
}

func (d *drains) DrainStatus(string) (int, int, string)     { return d.left, 0, "moving some" }
func (d *drains) SetNodes(wishes map[string]fleet.NodeWish) { d.wishes = wishes }

// webhook is the handler beside one node with a hold pod.
func webhook(tb testing.TB, cordoned bool, left int) (http.Handler, *drains) {
	tb.Helper()
	n := node(func(n *corev1.Node) { n.Spec.Unschedulable = cordoned })
	w := &Watches{holds: informer(&cache.ListWatch{}, nil, &corev1.Pod{}), nodes: informer(&cache.ListWatch{}, nil, &corev1.Node{})}
	want, err := budgetOf(n, hold)
	if err != nil {
		tb.Fatal(err)
	}
	if err := w.holds.GetStore().Add(holdPod("hearth-nodes", n, hold, want, true)); err != nil {
		tb.Fatal(err)
	}
	if err := w.nodes.GetStore().Add(n); err != nil {
		tb.Fatal(err)
	}
	d := &drains{left: left}
	log := slog.New(slog.DiscardHandler)
	nodes := NewNodes(log, &Client{core: fake.NewClientset(n)}, w, d)
	return DrainHandler(log, w, nodes, d), d
}

func eviction(pod string, options string) []byte {
	b, _ := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "u", Namespace: "hearth-nodes", Name: pod, SubResource: "eviction", Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		},
	})
	if options == "" {
		return b
	}
	return bytes.Replace(b, []byte(`"object":null`), []byte(`"object":{"deleteOptions":`+options+`}`), 1)
}

func TestAnEvictionIsAnswered(t *testing.T) {
	for name, tc := range map[string]struct {
		body     []byte
		cordoned bool
		left     int
		allowed  bool
		drains   bool
		says     string
	}{
		"an occupied hold pod of a cordoned node": {eviction("hearth-hold-n1", ""), true, 3, false, true, "moving some"},
		"an idle one":                           {eviction("hearth-hold-n1", ""), true, 0, true, true, ""},
		"an occupied one of a node that is not": {eviction("hearth-hold-n1", ""), false, 3, false, false, "cordon it"},
		"an idle one of a node that is not":     {eviction("hearth-hold-n1", ""), false, 0, true, false, ""},
		"a trial":                               {eviction("hearth-hold-n1", `{"dryRun":["All"]}`), true, 3, false, false, "moving some"},
		"another pod":                           {eviction("something-else", ""), true, 3, true, false, ""},
		"another question":                      {bytes.Replace(eviction("hearth-hold-n1", ""), []byte("eviction"), []byte("exec"), 1), true, 3, true, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, d := webhook(t, tc.cordoned, tc.left)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, DrainPath, bytes.NewReader(tc.body)))
			var got admissionv1.AdmissionReview
			if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || got.Response == nil || got.Response.UID != "u" {
				t.Fatalf("answer %s: %v", rec.Body, err)
			}
			if got.Response.Allowed != tc.allowed || d.wishes["n1"].Drain != tc.drains {
				t.Errorf("allowed %v, drains %v", got.Response.Allowed, d.wishes["n1"].Drain)
			}
			if !tc.allowed && (got.Response.Result.Code != http.StatusTooManyRequests || !strings.Contains(got.Response.Result.Message, tc.says)) {
				t.Errorf("result = %+v", got.Response.Result)
			}
		})
	}
}

func TestWhoeverAsksMakesNoWorkForTheAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := node(nil)
		api := fake.NewClientset(n)
		nodes := NewNodes(slog.New(slog.DiscardHandler), &Client{core: api}, &Watches{nodes: informer(&cache.ListWatch{}, nil, &corev1.Node{})}, &drains{})
		if nodes.Cordoned(t.Context(), "n1") || len(api.Actions()) != 0 {
			t.Errorf("asked for a node that nobody knows: %v", api.Actions())
		}
		if err := nodes.w.nodes.GetStore().Add(n); err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			_ = nodes.Cordoned(t.Context(), "n1")
		}
		if got := len(api.Actions()); got != 1 {
			t.Errorf("asked %d times at once", got)
		}
		// Whoever has cordoned it and asks again later is heard.
		time.Sleep(readEvery)
		if _, err := api.CoreV1().Nodes().Update(t.Context(), node(func(n *corev1.Node) { n.Spec.Unschedulable = true }), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if !nodes.Cordoned(t.Context(), "n1") {
			t.Error("the cordon is not seen")
		}
		if err := nodes.w.nodes.GetStore().Delete(n); err != nil {
			t.Fatal(err)
		}
		nodes.round()
		if len(nodes.read) != 0 {
			t.Errorf("kept of a node that is gone: %v", nodes.read)
		}
	})
}

func FuzzTheDrainWebhookAnswersAnything(f *testing.F) {
	f.Add(eviction("hearth-hold-n1", `{"dryRun":["All"]}`))
	f.Add([]byte(`{"request":{"resource":{"resource":"pods"},"subResource":"eviction","object":{"deleteOptions":[]}}}`))
	f.Add([]byte("{"))
	h, _ := webhook(f, true, 1)
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, DrainPath, bytes.NewReader(body)))
		if rec.Code != http.StatusOK && rec.Code != http.StatusBadRequest {
			t.Errorf("status %d", rec.Code)
		}
	})
}
