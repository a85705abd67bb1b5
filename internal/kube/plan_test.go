package kube

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

var testSeal = sealer("a key of the tests")

func recordAt(node string, generation uint64, edit func(*fleet.Record)) *fleet.Record {
	r := &fleet.Record{Environment: &hearthv1.Environment{
		Id: string(env.NewID()), Class: "small", Tenant: "team", Node: node, Generation: generation, Phase: hearthv1.Phase_PHASE_CLAIMING,
	}}
	if edit != nil {
		edit(r)
	}
	return r
}

func objectOf(r *fleet.Record) *v1alpha1.Environment { return testSeal.objectOf(string(r.ID()), r) }

// release is what the fleet saves when an environment is released.
func release(r *fleet.Record) {
	r.Ended, r.Environment.Phase = true, hearthv1.Phase_PHASE_RELEASED
	r.Stale = append(r.Stale, fleet.Placement{Node: r.Environment.Node, Generation: r.Generation()})
}

func TestStepsWriteOnceWhatIsDecided(t *testing.T) {
	placed := func(edit func(*object)) object {
		o := object{presence: present, placement: &v1alpha1.Placement{NodeName: "n1", Generation: 1}, finalizers: []string{v1alpha1.Finalizer}}
		if edit != nil {
			edit(&o)
		}
		return o
	}
	theirs := func(o *object) { o.theirs = true }
	deleting := func(o *object) { o.deleting = true }
	for name, tc := range map[string]struct {
		have object
		r    *fleet.Record
		want []step
	}{
		"a claim through the API creates":             {object{}, recordAt("n1", 1, nil), []step{stepCreate}},
		"a claim for an object patches it":            {object{presence: present, theirs: true}, recordAt("n1", 1, nil), []step{stepPlace}},
		"what is there already costs nothing":         {placed(nil), recordAt("n1", 1, nil), nil},
		"what is observed costs nothing here":         {placed(nil), recordAt("n1", 1, func(r *fleet.Record) { r.Environment.Phase = hearthv1.Phase_PHASE_PAUSED }), nil},
		"another placement is patched":                {placed(nil), recordAt("n2", 2, nil), []step{stepPlace}},
		"a stale placement is patched":                {placed(nil), recordAt("n1", 1, func(r *fleet.Record) { r.Stale = []fleet.Placement{{Node: "n0"}} }), []step{stepPlace}},
		"a release is one deletion":                   {placed(nil), recordAt("n1", 1, release), []step{stepDelete}},
		"the release of theirs is one, too":           {placed(theirs), recordAt("n1", 1, release), []step{stepDelete}},
		"a deletion that was seen is not repeated":    {placed(deleting), recordAt("n1", 1, release), nil},
		"what nodes let go of is let go":              {placed(deleting), recordAt("n1", 1, func(r *fleet.Record) { release(r); r.Stale = nil }), []step{stepLetGo}},
		"a claim that failed for good is taken away":  {placed(nil), recordAt("n1", 1, func(r *fleet.Record) { r.Ended = true }), []step{stepDelete, stepLetGo}},
		"what failed for theirs stays theirs":         {placed(theirs), recordAt("n1", 1, func(r *fleet.Record) { r.Ended = true }), []step{stepPlace}},
		"nothing is written to an object that is not": {object{presence: gone}, recordAt("n1", 1, nil), nil},
		"what is over and was never made is not made": {object{}, recordAt("n1", 1, func(r *fleet.Record) { r.Ended = true }), nil},
		"what is over and still somewhere is made":    {object{}, recordAt("n1", 1, release), []step{stepCreate, stepDelete}},
		"more that is stale is written first": {placed(nil), recordAt("n1", 1, func(r *fleet.Record) {
			release(r)
			r.Stale = append(r.Stale, fleet.Placement{Node: "n9", Generation: 1})
		}), []step{stepPlace, stepDelete}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, steps(tc.have, tc.r)); d != "" {
				t.Errorf("steps differ (-want +got):\n%s", d)
			}
		})
	}
}

func TestALeaseIsFreeOnlyAfterItsLifeWithoutAChange(t *testing.T) {
	lease := func(holder string, seconds int32) *coordinationv1.Lease {
		return &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds}}
	}
	for name, tc := range map[string]struct {
		lease     *coordinationv1.Lease
		unchanged time.Duration
		want      standing
	}{
		"nobody's":          {lease("", 1), 0, free},
		"never held":        {&coordinationv1.Lease{}, 0, free},
		"mine":              {lease("me", 12), time.Hour, mine},
		"another's":         {lease("you", 12), 11 * time.Second, held},
		"another's, silent": {lease("you", 12), 13 * time.Second, free},
	} {
		t.Run(name, func(t *testing.T) {
			if got := standingOf("me", tc.lease, tc.unchanged); got != tc.want {
				t.Errorf("standing = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestACreatedObjectReadsAsTheRecord(t *testing.T) {
	r := recordAt("n1", 3, func(r *fleet.Record) {
		r.Environment.Labels = map[string]string{"app": "x", "not a label": "?", "hearth.run/own": "y"}
		r.Stale = []fleet.Placement{{Node: "n0", Generation: 2}}
		r.ClaimKey[0], r.ClaimRequest[31], r.Count = 1, 2, 4
	})
	o := objectOf(r)
	if d := cmp.Diff(map[string]string{"app": "x", partOf: "hearth"}, o.Labels); d != "" {
		t.Errorf("labels of the object (-want +got):\n%s", d)
	}
	got := testSeal.recordOf(o)
	got.Changed, got.Environment.ClaimedAt = r.Changed, r.Environment.ClaimedAt
	if d := cmp.Diff(r.Environment.GetLabels(), got.Environment.GetLabels()); d != "" {
		t.Errorf("labels (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]any{r.Stale, r.ClaimKey, r.ClaimRequest, r.Count, r.ID(), r.Generation(), r.Phase()},
		[]any{got.Stale, got.ClaimKey, got.ClaimRequest, got.Count, got.ID(), got.Generation(), got.Phase()}); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
}

func TestADamagedObjectIsReadAsFarAsItGoes(t *testing.T) {
	o := objectOf(recordAt("n1", 1, func(r *fleet.Record) { r.ClaimKey[0] = 1 }))
	o.Spec.Claim.KeyHash, o.Spec.Claim.RequestHash = "zz", "00ff"
	o.Annotations = map[string]string{annotationLabels: "{", annotationLetGo: "x"}
	o.Status.Phase = "dancing"
	testSeal.seal(o)
	r := testSeal.recordOf(o)
	if r.ClaimKey != (fleet.ClaimKey{}) || r.Phase() != env.PhaseClaiming || r.Environment.GetLabels() != nil {
		t.Errorf("record = %+v", r)
	}
}

func TestConditionsKeepTheTimeUntilTheyFlip(t *testing.T) {
	t0 := time.Now().Truncate(time.Second)
	r := recordAt("n1", 1, func(r *fleet.Record) { r.Environment.Phase = hearthv1.Phase_PHASE_RUNNING })
	first := statusOf(r, "n1:7401", 1, nil, t0)
	again := statusOf(r, "n1:7401", 1, first.Conditions, t0.Add(time.Hour))
	if d := cmp.Diff(first, again); d != "" {
		t.Errorf("nothing changed, and the status did:\n%s", d)
	}
	r.Environment.Phase, r.Environment.Message = hearthv1.Phase_PHASE_QUARANTINED, "frozen by rule x"
	after := statusOf(r, "n1:7401", 1, again.Conditions, t0.Add(time.Hour))
	want := []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "Quarantined", Message: "frozen by rule x",
		ObservedGeneration: 1, LastTransitionTime: metav1.NewTime(t0.Add(time.Hour))}}
	if d := cmp.Diff(want, after.Conditions); d != "" {
		t.Errorf("conditions (-want +got):\n%s", d)
	}
}

func TestMessagesAreCutBetweenCharacters(t *testing.T) {
	for in, want := range map[string]string{"short": "short", "ééééé": "éé...", "a\xffb": "a?b"} {
		if got := cut(in, 8); got != want {
			t.Errorf("cut(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNobodyElseMakesObjectsOfTheControllers(t *testing.T) {
	victim := recordAt("n1", 3, func(r *fleet.Record) { r.ClaimKey[0], r.Count = 7, 1 })
	for name, forge := range map[string]func(*v1alpha1.Environment){
		"in another namespace":        func(o *v1alpha1.Environment) { o.Namespace = "attacker" },
		"under another name":          func(o *v1alpha1.Environment) { o.Name = "mine" },
		"with another id":             func(o *v1alpha1.Environment) { o.Spec.Claim.ID = string(env.NewID()) },
		"with another's key":          func(o *v1alpha1.Environment) { o.Spec.Claim.KeyHash = strings.Repeat("ab", 32) },
		"with another count":          func(o *v1alpha1.Environment) { o.Spec.Claim.Count = 2 },
		"without a seal":              func(o *v1alpha1.Environment) { delete(o.Annotations, annotationSeal) },
		"sealed by another authority": func(o *v1alpha1.Environment) { sealer("another").seal(o) },
	} {
		t.Run(name, func(t *testing.T) {
			o := objectOf(victim)
			o.UID, o.CreationTimestamp = "an object's own", metav1.Now()
			if id := testSeal.idOf(o); id != victim.ID() {
				t.Fatalf("the true one is %s, not %s", id, victim.ID())
			}
			forge(o)
			r := testSeal.recordOf(o)
			if r.ID() == victim.ID() || r.ClaimKey != (fleet.ClaimKey{}) || r.Object == "" || !testSeal.objectFrom(o).theirs {
				t.Errorf("it is believed: %+v", r)
			}
		})
	}
}
