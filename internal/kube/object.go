package kube

import (
	"encoding/hex"
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Annotations of Environments. All but the first are rare.
const (
	// annotationLabels has the labels of a claim through the API exactly; those
	// that Kubernetes allows are labels of the object too.
	annotationLabels = "hearth.run/labels"
	// annotationLetGo is the generation of the current placement, if its node is
	// known not to have it.
	annotationLetGo = "hearth.run/let-go"
	// annotationEnded says that the environment was ended though the object, which
	// is somebody else's, was not deleted.
	annotationEnded = "hearth.run/ended"
)

// partOf labels everything that Hearth makes.
const partOf = "app.kubernetes.io/part-of"

// ref names one object for as long as it exists.
type ref struct {
	namespace, name string
	uid             types.UID // empty while it is not known
}

func refOf(o metav1.Object) ref { return ref{o.GetNamespace(), o.GetName(), o.GetUID()} }

func (r ref) String() string { return r.namespace + "/" + r.name }

// idOf is the environment that the object stands for: the one that it was sealed
// with, or one that follows from its UID, which nobody chooses.
func (k sealer) idOf(o *v1alpha1.Environment) env.ID {
	if k.sealed(o) {
		return env.ID(o.Spec.Claim.ID)
	}
	return env.IDFrom(o.CreationTimestamp.Time, string(o.UID))
}

// recordOf reads what was saved; nil if nothing was: nobody has claimed for the
// object yet.
func (k sealer) recordOf(o *v1alpha1.Environment) *fleet.Record {
	sealed := k.sealed(o)
	if !sealed && o.Spec.Placement == nil {
		return nil
	}
	e := &hearthv1.Environment{
		Id: string(k.idOf(o)), Class: o.Spec.Class, Tenant: o.Namespace, Labels: labelsOf(o, sealed), RestoredFrom: o.Spec.Snapshot,
		Phase: phaseOf(o.Status.Phase), Message: o.Status.Message, Warm: o.Status.Warm, Served: o.Status.Served, ClaimedAt: timestamppb.New(o.CreationTimestamp.Time),
	}
	if at := o.Status.ClaimedAt; at != nil {
		e.ClaimedAt = timestamppb.New(at.Time)
	}
	readLifetime(e, o)
	e.Resources = resourcesFrom(o.Status.Resources)
	r := &fleet.Record{Environment: e, Changed: changedAt(o)}
	if sealed {
		copyDigest(r.ClaimKey[:], o.Spec.Claim.KeyHash)
		copyDigest(r.ClaimRequest[:], o.Spec.Claim.RequestHash)
		r.Count = int(o.Spec.Claim.Count)
	} else {
		r.Object, r.UID, r.Count = o.Namespace+"/"+o.Name, string(o.UID), 1
	}
	readPlacement(r, o.Spec.Placement)
	if o.DeletionTimestamp != nil || o.Annotations[annotationEnded] != "" {
		ended(r, o.Annotations[annotationLetGo])
	}
	return r
}

func readPlacement(r *fleet.Record, p *v1alpha1.Placement) {
	if p == nil {
		return
	}
	r.Environment.Node, r.Environment.Generation = p.NodeName, uint64(p.Generation)
	for _, s := range p.Stale {
		r.Stale = append(r.Stale, fleet.Placement{Node: s.NodeName, Generation: env.Generation(s.Generation)})
	}
	if p.Next != nil {
		r.Next = fleet.Placement{Node: p.Next.NodeName, Generation: env.Generation(p.Next.Generation)}
	}
}

// ended makes r one whose end was decided. Deleting the object is all that is
// written then: that its placement is stale follows, unless it is noted that its
// node let go of it.
func ended(r *fleet.Record, letGo string) {
	r.Ended = true
	if r.Environment.Phase != hearthv1.Phase_PHASE_FAILED {
		r.Environment.Phase = hearthv1.Phase_PHASE_RELEASED
	}
	if letGo != strconv.FormatUint(r.Environment.Generation, 10) {
		r.Stale = withStale(r.Stale, fleet.Placement{Node: r.Environment.Node, Generation: r.Generation()})
		r.Stale = withStale(r.Stale, r.Next)
	}
	r.Next.Node = ""
}

func withStale(stale []fleet.Placement, p fleet.Placement) []fleet.Placement {
	if p.Node == "" {
		return stale
	}
	for i, s := range stale {
		if s.Node == p.Node {
			stale[i].Generation = max(s.Generation, p.Generation)
			return stale
		}
	}
	return append(stale, p)
}

// changedAt is when the controller last wrote to the object, as far as the object
// tells.
func changedAt(o *v1alpha1.Environment) time.Time {
	at := o.CreationTimestamp.Time
	later := func(t *metav1.Time) {
		if t != nil && t.After(at) {
			at = t.Time
		}
	}
	later(o.DeletionTimestamp)
	for _, f := range o.ManagedFields {
		if f.Manager == fieldManager {
			later(f.Time)
		}
	}
	return at
}

// labelsOf are the environment's: those of the call, or those that the object's
// maker gave it.
func labelsOf(o *v1alpha1.Environment, sealed bool) map[string]string {
	var exact map[string]string
	if text, ok := o.Annotations[annotationLabels]; sealed && ok && json.Unmarshal([]byte(text), &exact) == nil {
		return exact
	}
	if !sealed && len(o.Labels) > 0 {
		return maps.Clone(o.Labels)
	}
	return nil
}

// objectOf is what a claim through the API creates. It holds nothing secret.
func (k sealer) objectOf(name string, r *fleet.Record) *v1alpha1.Environment {
	e := r.Environment
	o := &v1alpha1.Environment{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindEnvironment},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: e.GetTenant(), Finalizers: []string{v1alpha1.Finalizer},
			Labels: map[string]string{partOf: "hearth"},
		},
		Spec: v1alpha1.EnvironmentSpec{
			Class: e.GetClass(), Snapshot: e.GetRestoredFrom(), TimeToLive: lengthOf(e.GetTimeToLive()),
			Claim: &v1alpha1.Claim{
				ID: e.GetId(), KeyHash: digestText(r.ClaimKey[:]), RequestHash: digestText(r.ClaimRequest[:]), Count: int32(r.Count),
			},
			Placement: placementOf(r),
		},
	}
	if labels := e.GetLabels(); len(labels) > 0 {
		text, _ := json.Marshal(labels) // a map of strings always can
		o.Annotations = map[string]string{annotationLabels: string(text)}
		maps.Copy(o.Labels, allowedLabels(labels))
	}
	k.seal(o)
	return o
}

// allowedLabels are those that an object may have, and that are not of Hearth's
// own making.
func allowedLabels(in map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range in {
		own := k == partOf || strings.HasPrefix(k, v1alpha1.Group+"/")
		if !own && len(validation.IsQualifiedName(k)) == 0 && len(validation.IsValidLabelValue(v)) == 0 {
			out[k] = v
		}
	}
	return out
}

func placementOf(r *fleet.Record) *v1alpha1.Placement {
	p := &v1alpha1.Placement{NodeName: r.Environment.GetNode(), Generation: int64(r.Environment.GetGeneration())}
	for _, s := range r.Stale {
		p.Stale = append(p.Stale, v1alpha1.StalePlacement{NodeName: s.Node, Generation: int64(s.Generation)})
	}
	if r.Next != (fleet.Placement{}) {
		p.Next = &v1alpha1.NextPlacement{NodeName: r.Next.Node, Generation: int64(r.Next.Generation)}
	}
	return p
}

func samePlacement(a, b *v1alpha1.Placement) bool {
	return equality.Semantic.DeepEqual(a, b)
}

func digestText(b []byte) string {
	if strings.Trim(string(b), "\x00") == "" {
		return ""
	}
	return hex.EncodeToString(b)
}

// copyDigest leaves dst zero if text is no digest: the field is the user's to
// damage, and a key that is not known is the worst that follows.
func copyDigest(dst []byte, text string) {
	if b, err := hex.DecodeString(text); err == nil && len(b) == len(dst) {
		copy(dst, b)
	}
}

var phaseWords = map[hearthv1.Phase]env.Phase{
	hearthv1.Phase_PHASE_CLAIMING:    env.PhaseClaiming,
	hearthv1.Phase_PHASE_RUNNING:     env.PhaseRunning,
	hearthv1.Phase_PHASE_PAUSED:      env.PhasePaused,
	hearthv1.Phase_PHASE_STALLED:     env.PhaseStalled,
	hearthv1.Phase_PHASE_QUARANTINED: env.PhaseQuarantined,
	hearthv1.Phase_PHASE_FENCED:      env.PhaseFenced,
	hearthv1.Phase_PHASE_RELEASED:    env.PhaseReleased,
	hearthv1.Phase_PHASE_FAILED:      env.PhaseFailed,
}

// phaseOf reads a phase; none and one that is not known are claiming: the node
// will say better.
func phaseOf(p v1alpha1.EnvironmentPhase) hearthv1.Phase {
	for phase, word := range phaseWords {
		if string(word) == string(p) {
			return phase
		}
	}
	return hearthv1.Phase_PHASE_CLAIMING
}
