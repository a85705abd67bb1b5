package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/api/v1alpha1"
	"hearth/internal/config"
	"hearth/internal/fleet"
)

// verdict is what becomes of a class.
type verdict struct {
	manifest []byte // what is in force; nil if nothing is
	rejected string // why the object's own manifest is not; empty if it is
}

// judgeClass is a pure function of the object and of what was in force before.
func judgeClass(o *v1alpha1.EnvironmentClass, before []byte) verdict {
	_, err := config.ClassOf(o)
	if err == nil {
		var m []byte
		if m, err = manifestOf(o); err == nil {
			return verdict{manifest: m}
		}
	}
	v := verdict{manifest: before, rejected: err.Error()}
	if v.manifest == nil {
		v.manifest = earlier(o)
	}
	return v
}

// earlier is what a controller before this one kept in force. It is the users' to
// damage, so it counts only if it is right.
func earlier(o *v1alpha1.EnvironmentClass) []byte {
	text, ok := o.Annotations[annotationInForce]
	if !ok {
		return nil
	}
	var kept v1alpha1.EnvironmentClass
	if json.Unmarshal([]byte(text), &kept) != nil || kept.Name != o.Name {
		return nil
	}
	if _, err := config.ClassOf(&kept); err != nil {
		return nil
	}
	m, err := manifestOf(&kept)
	if err != nil {
		return nil
	}
	return m
}

// manifestOf is the class as nodes get it: what decides what it is, and no more.
func manifestOf(o *v1alpha1.EnvironmentClass) ([]byte, error) {
	return json.Marshal(map[string]any{
		"apiVersion": v1alpha1.APIVersion, "kind": v1alpha1.KindEnvironmentClass,
		"metadata": map[string]string{"name": o.Name}, "spec": o.Spec,
	})
}

// revisionOf names a set of manifests.
func revisionOf(manifests [][]byte) string {
	h := sha256.New()
	for _, m := range manifests {
		fmt.Fprintf(h, "%d\n", len(m))
		h.Write(m)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// The reasons of a class's conditions.
const (
	reasonAccepted   = "Accepted"
	reasonRejected   = "Rejected"
	reasonFilled     = "Filled"
	reasonFilling    = "Filling"
	reasonColdOnly   = "ColdOnly"
	reasonNotInForce = "NotInForce"
)

// classStatus is what the object shall say.
func classStatus(o *v1alpha1.EnvironmentClass, v verdict, n fleet.PoolCount, at time.Time) v1alpha1.EnvironmentClassStatus {
	accepted := metav1.Condition{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: reasonAccepted, ObservedGeneration: o.Generation}
	if v.rejected != "" {
		more := "; there is no such class until that is mended"
		if v.manifest != nil {
			more = "; the class stays as it was accepted before"
		}
		accepted.Status, accepted.Reason = metav1.ConditionFalse, reasonRejected
		accepted.Message = cut(v.rejected, maxConditionMessage-len(more)) + more
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: reasonFilled, ObservedGeneration: o.Generation,
		Message: fmt.Sprintf("%d of %d warm slots are ready", n.Ready, n.Wanted)}
	switch {
	case v.manifest == nil:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, reasonNotInForce, "the class is not accepted"
	case o.Spec.Warm.Slots == 0 && n.Wanted == 0:
		ready.Reason, ready.Message = reasonColdOnly, "the class keeps no warm slots"
	case n.Wanted == 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, reasonFilling, "no node has the class yet"
	case n.Ready < n.Wanted:
		ready.Status, ready.Reason = metav1.ConditionFalse, reasonFilling
	}
	before := o.Status.Conditions
	return v1alpha1.EnvironmentClassStatus{
		ObservedGeneration: o.Generation, Ready: int32(n.Ready), Wanted: int32(n.Wanted), Environments: int32(n.Environments),
		Conditions: []metav1.Condition{stamped(accepted, before, at), stamped(ready, before, at)},
	}
}

// maxConditionMessage is the schema's bound.
const maxConditionMessage = 32768

func sameClassStatus(a, b v1alpha1.EnvironmentClassStatus) bool {
	return equality.Semantic.DeepEqual(a, b)
}

// isAway tells that the class is no longer there, or is another one of its name.
func (c *Client) isAway(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err)
}
