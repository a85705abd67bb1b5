package fleet

import (
	"testing"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func TestReconciliationRules(t *testing.T) {
	const (
		claiming = hearthv1.Phase_PHASE_CLAIMING
		running  = hearthv1.Phase_PHASE_RUNNING
		paused   = hearthv1.Phase_PHASE_PAUSED
		released = hearthv1.Phase_PHASE_RELEASED
		failed   = hearthv1.Phase_PHASE_FAILED
		fenced   = hearthv1.Phase_PHASE_FENCED
	)
	seen := func(g uint64, p hearthv1.Phase) *hearthv1.Environment {
		return &hearthv1.Environment{Generation: g, Phase: p}
	}
	stored := func(node string, g uint64, p hearthv1.Phase, stale ...Placement) *Record {
		return &Record{Environment: &hearthv1.Environment{Node: node, Generation: g, Phase: p}, Stale: stale}
	}
	ephemeral := func(e *hearthv1.Environment) *hearthv1.Environment { e.Ephemeral = true; return e }
	expired := func(g uint64) *hearthv1.Environment {
		return &hearthv1.Environment{Generation: g, Phase: released, Reason: "expired"}
	}
	idle := func(g uint64) *hearthv1.Environment {
		return &hearthv1.Environment{Generation: g, Phase: paused, Reason: "idle"}
	}
	ended := func(r *Record) *Record { r.Ended = true; return r }
	moving := func(r *Record, node string, g env.Generation) *Record { r.Next = Placement{node, g}; return r }
	for name, tc := range map[string]struct {
		seen     *hearthv1.Environment
		have     *Record
		want     action
		underWay bool
	}{
		"unknown is adopted: releasing would lose work":                 {seen(1, running), nil, adopt, false},
		"unknown and over is left":                                      {seen(1, released), nil, keep, false},
		"as stored":                                                     {seen(1, running), stored("n1", 1, running), keep, false},
		"another phase is observed":                                     {seen(1, paused), stored("n1", 1, running), observe, false},
		"one that failed on its node is observed":                       {seen(1, failed), stored("n1", 1, running), observe, false},
		"an older generation is released":                               {seen(1, running), stored("n1", 2, running), release, false},
		"an older generation of one that is elsewhere is released":      {seen(1, running), stored("n2", 2, running), release, false},
		"the same generation of one that is elsewhere is released":      {seen(2, running), stored("n2", 2, running), release, false},
		"a higher generation is believed":                               {seen(3, running), stored("n2", 2, running), adopt, false},
		"an older generation of a claim under way is released":          {seen(1, running), stored("n2", 2, claiming), release, false},
		"one that was released still runs":                              {seen(1, running), stored("n1", 1, released), release, false},
		"one that was released is over":                                 {seen(1, released), stored("n1", 1, released), keep, false},
		"one that was given up still runs":                              {seen(1, running), stored("n1", 1, failed, Placement{"n1", 1}), release, false},
		"one that was given up is seen after its release was confirmed": {seen(1, running), ended(stored("n1", 1, failed)), release, false},
		"what is left of one that was given up":                         {seen(1, failed), ended(stored("n1", 1, failed)), release, false},
		"a later generation of one that was given up":                   {seen(3, running), ended(stored("n1", 2, failed)), release, false},
		"one that was given up is over":                                 {seen(1, released), ended(stored("n1", 1, failed)), keep, false},

		"a claim under way is left alone":                       {seen(1, running), stored("n1", 1, claiming), keep, true},
		"a claim of an earlier controller is observed":          {seen(1, running), stored("n1", 1, claiming), observe, false},
		"one that its node froze while alone is observed":       {seen(1, fenced), stored("n1", 1, running), observe, false},
		"one that its node froze while alone runs again":        {seen(1, running), stored("n1", 1, fenced), observe, false},
		"one of a node that was silent for long is back":        {seen(1, fenced), stored("n1", 1, failed), adopt, false},
		"an ephemeral one comes back with its node":             {ephemeral(seen(1, running)), nil, adopt, false},
		"an ephemeral one that failed there":                    {ephemeral(seen(1, failed)), stored("n1", 1, running), observe, false},
		"its source keeps what moves":                           {seen(1, paused), moving(stored("n1", 1, running), "n2", 2), keep, false},
		"its source keeps what moves, fenced or not":            {seen(1, fenced), moving(stored("n1", 1, running), "n2", 2), keep, false},
		"its target may have what moves":                        {seen(2, running), moving(stored("n2", 1, running), "n1", 2), keep, false},
		"an earlier target has what it may not have":            {seen(2, running), moving(stored("n3", 1, running), "n2", 3), release, false},
		"a third node has the source's generation":              {seen(1, running), moving(stored("n3", 1, running), "n2", 2), release, false},
		"a target that failed has left something":               {seen(2, failed), moving(stored("n2", 1, running), "n3", 3), release, false},
		"a later generation than any that was meant":            {seen(4, running), moving(stored("n2", 1, running), "n3", 3), adopt, false},
		"what moves was released meanwhile":                     {seen(2, running), ended(moving(stored("n2", 1, released), "", 2)), release, false},
		"a target after the move came to nothing":               {seen(2, running), moving(stored("n2", 1, running), "", 2), release, false},
		"the source after the move came to nothing":             {seen(1, paused), moving(stored("n1", 1, running), "", 2), observe, false},
		"a target after the move came to nothing and it failed": {seen(2, running), moving(stored("n2", 1, failed), "", 2), release, false},
		"a target while it goes back":                           {seen(2, running), moving(stored("n2", 1, running), "n2", 2), release, false},

		"one whose time came":                                    {expired(1), stored("n1", 1, running), expire, false},
		"one whose time came is over":                            {expired(1), stored("n1", 1, released), keep, false},
		"one whose time came, unknown":                           {expired(1), nil, keep, false},
		"another generation's time came":                         {expired(1), stored("n1", 2, running), keep, false},
		"its time came on another node":                          {expired(1), stored("n2", 1, running), keep, false},
		"its time came while it moves":                           {expired(1), moving(stored("n1", 1, running), "n2", 2), keep, false},
		"released for another reason":                            {seen(1, released), stored("n1", 1, running), keep, false},
		"its node let it sleep":                                  {idle(1), stored("n1", 1, running), observe, false},
		"its owner paused what slept":                            {seen(1, paused), &Record{Environment: &hearthv1.Environment{Node: "n1", Generation: 1, Phase: paused, Reason: "idle"}}, observe, false},
		"one that its node had denied is back":                   {seen(1, running), stored("n1", 1, failed), adopt, false},
		"what is left of a failed one stays until somebody asks": {seen(1, failed), stored("n1", 1, failed), keep, false},
		"an older generation of a failed one is released":        {seen(1, running), stored("n1", 2, failed), release, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge("n1", tc.seen, tc.have, tc.underWay); got != tc.want {
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
