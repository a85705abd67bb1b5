package fleet

import (
	"testing"

	hearthv1 "hearth/api/hearth/v1"
)

func TestReconciliationRules(t *testing.T) {
	const (
		claiming = hearthv1.Phase_PHASE_CLAIMING
		running  = hearthv1.Phase_PHASE_RUNNING
		paused   = hearthv1.Phase_PHASE_PAUSED
		released = hearthv1.Phase_PHASE_RELEASED
		failed   = hearthv1.Phase_PHASE_FAILED
	)
	seen := func(g uint64, p hearthv1.Phase) *hearthv1.Environment {
		return &hearthv1.Environment{Generation: g, Phase: p}
	}
	stored := func(node string, g uint64, p hearthv1.Phase, stale ...Placement) *Record {
		return &Record{Environment: &hearthv1.Environment{Node: node, Generation: g, Phase: p}, Stale: stale}
	}
	ended := func(r *Record) *Record { r.Ended = true; return r }
	for name, tc := range map[string]struct {
		seen *hearthv1.Environment
		have *Record
		want action
	}{
		"unknown is adopted: releasing would lose work":                 {seen(1, running), nil, adopt},
		"unknown and over is left":                                      {seen(1, released), nil, keep},
		"as stored":                                                     {seen(1, running), stored("n1", 1, running), keep},
		"another phase is observed":                                     {seen(1, paused), stored("n1", 1, running), observe},
		"one that failed on its node is observed":                       {seen(1, failed), stored("n1", 1, running), observe},
		"an older generation is released":                               {seen(1, running), stored("n1", 2, running), release},
		"an older generation of one that is elsewhere is released":      {seen(1, running), stored("n2", 2, running), release},
		"the same generation of one that is elsewhere is released":      {seen(2, running), stored("n2", 2, running), release},
		"a higher generation is believed":                               {seen(3, running), stored("n2", 2, running), adopt},
		"a claim under way is left alone":                               {seen(1, running), stored("n1", 1, claiming), keep},
		"an older generation of a claim under way is released":          {seen(1, running), stored("n2", 2, claiming), release},
		"one that was released still runs":                              {seen(1, running), stored("n1", 1, released), release},
		"one that was released is over":                                 {seen(1, released), stored("n1", 1, released), keep},
		"one that was given up still runs":                              {seen(1, running), stored("n1", 1, failed, Placement{"n1", 1}), release},
		"one that was given up is seen after its release was confirmed": {seen(1, running), ended(stored("n1", 1, failed)), release},
		"what is left of one that was given up":                         {seen(1, failed), ended(stored("n1", 1, failed)), release},
		"a later generation of one that was given up":                   {seen(3, running), ended(stored("n1", 2, failed)), release},
		"one that was given up is over":                                 {seen(1, released), ended(stored("n1", 1, failed)), keep},

		"one that its node had denied is back":                   {seen(1, running), stored("n1", 1, failed), adopt},
		"what is left of a failed one stays until somebody asks": {seen(1, failed), stored("n1", 1, failed), keep},
		"an older generation of a failed one is released":        {seen(1, running), stored("n1", 2, failed), release},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge("n1", tc.seen, tc.have); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := EncodeRecord(&Record{Environment: &hearthv1.Environment{Id: "e-1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := DecodeRecord(b); err == nil && r.Environment == nil {
			t.Error("a record without an environment")
		}
	})
}
