package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// DrainPath is where the API server asks.
const DrainPath = "/drain"

// maxReview bounds a question. An eviction is small.
const maxReview = 1 << 20

// drainer is what of the fleet the webhook needs.
type drainer interface {
	DrainStatus(node string) (left, moving int, message string)
}

// DrainHandler answers the API server's question whether a pod may be evicted
// (AdmissionReview v1). The eviction of a hold pod from a node that is cordoned is
// the sign to drain it, and is refused until no environment is left there:
// "kubectl drain" asks again every few seconds. From a node that is not cordoned it
// is refused while environments live there. Everything else is allowed.
//
// API servers do not say who they are, so the question itself is not believed:
// whoever asks can begin no drain of a node that nobody cordoned.
func DrainHandler(log *slog.Logger, w *Watches, nodes *Nodes, f drainer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+DrainPath, func(rw http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxReview))
		if err == nil {
			err = json.Unmarshal(body, &review)
		}
		if err != nil || review.Request == nil {
			http.Error(rw, "want an AdmissionReview", http.StatusBadRequest)
			return
		}
		review.Response = mayEvict(r.Context(), log, w, nodes, f, review.Request)
		review.Response.UID, review.Request = review.Request.UID, nil
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(review)
	})
	return mux
}

func mayEvict(ctx context.Context, log *slog.Logger, w *Watches, nodes *Nodes, f drainer, q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	allowed := &admissionv1.AdmissionResponse{Allowed: true}
	if q.Resource.Resource != "pods" || q.SubResource != "eviction" {
		return allowed
	}
	pod, ok := got[*corev1.Pod](w.holds, q.Namespace, q.Name)
	if !ok || pod.Annotations[annotationNode] == "" {
		return allowed
	}
	node := pod.Annotations[annotationNode]
	cordoned := nodes.Cordoned(ctx, node)
	if cordoned && !isDry(q) {
		nodes.Drain(node) // first, so that nothing comes after the question was answered
	}
	left, _, message := f.DrainStatus(node)
	if !cordoned {
		message = "cordon it to have them moved"
	}
	if left == 0 {
		log.Debug("eviction of hold pod allowed", "node", node)
		return allowed
	}
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests,
		Message: fmt.Sprintf("environments live on node %s: %s", node, message),
	}}
}

// isDry tells a question that nothing shall come of. An eviction can say so in its
// own options, of which the API server tells webhooks nothing.
func isDry(q *admissionv1.AdmissionRequest) bool {
	var e policyv1.Eviction
	if json.Unmarshal(q.Object.Raw, &e) == nil && e.DeleteOptions != nil && len(e.DeleteOptions.DryRun) > 0 {
		return true
	}
	return q.DryRun != nil && *q.DryRun
}

// TrustWebhook writes the authority's certificate into each webhook of the
// configuration, so that the API server believes the answers. A configuration that
// is not there is no error: nobody asks then.
func (c *Client) TrustWebhook(ctx context.Context, configuration string, ca []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	what := "write caBundle of webhook configuration " + configuration
	hooks := c.core.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	have, err := hooks.Get(ctx, configuration, metav1.GetOptions{})
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return failed(what, err)
	}
	var ops []patchOp
	for i, h := range have.Webhooks {
		if string(h.ClientConfig.CABundle) != string(ca) {
			ops = append(ops, patchOp{Op: "test", Path: fmt.Sprintf("/webhooks/%d/name", i), Value: h.Name},
				patchOp{Op: "add", Path: fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i), Value: ca})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	body, err := json.Marshal(ops)
	if err != nil {
		return err
	}
	_, err = hooks.Patch(ctx, configuration, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	return failed(what, err)
}
