package warm

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/env"
)

// clock is a CLOCK_BOOTTIME that a test sets.
type clock struct{ at time.Duration }

func (c *clock) now() time.Duration         { return c.at }
func (c *clock) pass(d time.Duration)       { c.at += d }
func (b *bench) mortal(n *Node) *clock      { c := &clock{time.Hour}; n.now = c.now; return c }
func mortalClass(l env.Lifetime) *env.Class { c := demoClass(0); c.Lifetime = l; return c }

// liveOn lets a node's keeper look once, and waits for what it does.
func liveOn(t *testing.T, n *Node) {
	t.Helper()
	k := newKeeper(n)
	k.endDue(t.Context())
	k.work.Wait()
}

func TestAClaimLivesAsLongAsItAsksWithinItsClassesBounds(t *testing.T) {
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		class env.Lifetime
		asked time.Duration
		want  time.Duration // 0 is for ever
		fails string
	}{
		"no class, nothing asked":            {},
		"no class, something asked":          {asked: time.Hour, want: time.Hour},
		"the class's":                        {class: env.Lifetime{TimeToLive: time.Hour}, want: time.Hour},
		"shorter than the class's":           {class: env.Lifetime{TimeToLive: time.Hour}, asked: time.Minute, want: time.Minute},
		"longer than the class's":            {class: env.Lifetime{TimeToLive: time.Hour}, asked: 2 * time.Hour, fails: "class demo allows 1h0m0s"},
		"longer, as the bound allows":        {class: env.Lifetime{TimeToLive: time.Hour, MaxTimeToLive: day}, asked: 2 * time.Hour, want: 2 * time.Hour},
		"longer than the bound":              {class: env.Lifetime{TimeToLive: time.Hour, MaxTimeToLive: day}, asked: day + 1, fails: "lifetime.maxTimeToLive"},
		"only a bound: it is the default":    {class: env.Lifetime{MaxTimeToLive: day}, want: day},
		"too short to mean anything":         {asked: time.Millisecond, fails: "at least 1s ahead"},
		"negative":                           {asked: -time.Hour, fails: "at least 1s ahead"},
		"so long that clocks would overflow": {asked: 1 << 62, fails: "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			class := mortalClass(tc.class)
			c := &Claim{Class: "demo", TimeToLive: tc.asked}
			if err := checkLifetime(c, class); tc.fails != "" {
				if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("error = %v, want ErrInvalid with %q", err, tc.fails)
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			now := moment{time.Minute, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
			var e envState
			e.begin(c, class, now)
			if tc.want == 0 {
				if e.Ends != 0 || !e.Expires.IsZero() {
					t.Errorf("it ends at %s, %s", e.Ends, e.Expires)
				}
				return
			}
			if e.Ends != now.boot+tc.want || !e.Expires.Equal(now.wall.Add(tc.want)) {
				t.Errorf("it ends at %s, %s; want after %s", e.Ends, e.Expires, tc.want)
			}
		})
	}
}

func TestAnExtensionSetsTheEndWithinWhatTheClassAllows(t *testing.T) {
	begun, now := time.Hour, moment{3 * time.Hour, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	length := func(d time.Duration) *time.Duration { return &d }
	bounded := env.Lifetime{TimeToLive: time.Hour, MaxTimeToLive: 4 * time.Hour}
	for name, tc := range map[string]struct {
		class env.Lifetime
		x     Extension
		left  time.Duration // -1 is for ever
		fails string
	}{
		"by an hour":                         {class: bounded, x: Extension{By: time.Hour}, left: time.Hour},
		"as far as allowed":                  {class: bounded, x: Extension{By: 4 * time.Hour}, left: 4 * time.Hour},
		"further than allowed":               {class: bounded, x: Extension{By: 5 * time.Hour}, fails: "allows 4h0m0s"},
		"without a bound":                    {x: Extension{By: 100 * time.Hour}, left: 100 * time.Hour},
		"nearer":                             {class: bounded, x: Extension{By: time.Second}, left: time.Second},
		"by nothing":                         {class: bounded, x: Extension{By: time.Microsecond}, fails: "release the environment"},
		"until a time":                       {class: bounded, x: Extension{Until: now.wall.Add(time.Hour)}, left: time.Hour},
		"until a time that has passed":       {class: bounded, x: Extension{Until: now.wall.Add(-time.Hour)}, fails: "release the environment"},
		"until too late":                     {class: bounded, x: Extension{Until: now.wall.Add(50 * time.Hour)}, fails: "allows 4h0m0s"},
		"from the claim":                     {class: bounded, x: Extension{FromClaim: length(5 * time.Hour)}, left: 3 * time.Hour},
		"from the claim, too far ahead":      {class: bounded, x: Extension{FromClaim: length(7 * time.Hour)}, fails: "allows 4h0m0s"},
		"from the claim, passed already":     {class: bounded, x: Extension{FromClaim: length(time.Hour)}, left: 0},
		"from the claim, as the class says":  {class: env.Lifetime{TimeToLive: 3 * time.Hour}, x: Extension{FromClaim: length(0)}, left: time.Hour},
		"from the claim, no class: for ever": {x: Extension{FromClaim: length(0)}, left: -1},
	} {
		t.Run(name, func(t *testing.T) {
			e := envState{ID: "e-1", Begun: begun, Ends: 10 * time.Hour, Expires: now.wall}
			before := e
			err := e.extend(tc.x, mortalClass(tc.class), now)
			if tc.fails != "" {
				if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("error = %v, want ErrInvalid with %q", err, tc.fails)
				}
				if e.Ends != before.Ends || e.Expires != before.Expires || e.TimeToLive != before.TimeToLive {
					t.Errorf("a refused extension changed %+v", e)
				}
				return
			}
			want := now.boot + tc.left
			if tc.left < 0 {
				want = 0
			}
			if err != nil || e.Ends != want || (e.Ends == 0) != e.Expires.IsZero() {
				t.Errorf("ends %s (%s), %v; want %s", e.Ends, e.Expires, err, want)
			}
		})
	}
}

func TestALifeGoesOnElsewhereAsLongAsItWouldHave(t *testing.T) {
	class := mortalClass(env.Lifetime{TimeToLive: time.Hour})
	there := moment{100 * time.Hour, time.Date(2030, 1, 2, 3, 0, 0, 0, time.UTC)}
	var e envState
	e.begin(&Claim{TimeToLive: 30 * time.Minute}, class, there)
	if err := e.extend(Extension{By: time.Hour}, class, moment{there.boot + 20*time.Minute, there.wall.Add(20 * time.Minute)}); err != nil {
		t.Fatal(err)
	}
	l := e.lifetime(moment{there.boot + 50*time.Minute, there.wall.Add(50 * time.Minute)})

	// The other node has just booted, and its wall clock is wrong.
	here := moment{time.Minute, time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)}
	var moved envState
	moved.begin(&Claim{Lifetime: l}, class, here)
	if got := moved.Ends - here.boot; got != 30*time.Minute {
		t.Errorf("it has %s left, want 30m", got)
	}
	if moved.TimeToLive != 30*time.Minute || here.boot-moved.Begun != 50*time.Minute || here.wall.Sub(moved.Claimed) != 50*time.Minute {
		t.Errorf("moved = %+v", moved)
	}
	// A class that allows less by now does not end it: it was allowed.
	if err := checkLifetime(&Claim{Lifetime: l, TimeToLive: 50 * time.Hour}, class); err != nil {
		t.Error(err)
	}
}

func TestWhatAnOlderAgentClaimedLivesFromItsClaim(t *testing.T) {
	now := moment{1000 * time.Hour, time.Date(2030, 1, 2, 3, 0, 0, 0, time.UTC)}
	e := envState{Claimed: now.wall.Add(-time.Hour)} // no begin by CLOCK_BOOTTIME
	if err := e.liveFor(3*time.Hour, mortalClass(env.Lifetime{}), now); err != nil || e.Ends-now.boot != 2*time.Hour {
		t.Errorf("it has %s left, %v, want 2h", e.Ends-now.boot, err)
	}
	if l := e.lifetime(now); l.Lived != time.Hour {
		t.Errorf("it has lived for %s", l.Lived)
	}
}

func TestAnAcknowledgedExtensionHoldsOverACrash(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := mortalClass(env.Lifetime{TimeToLive: time.Hour, MaxTimeToLive: 10 * time.Hour})
	n := b.open(class)
	at := b.mortal(n)
	e := b.claim(n, Claim{Class: "demo"})
	at.pass(59 * time.Minute)
	extended, err := n.Extend(t.Context(), e.ID, Extension{By: 2 * time.Hour})
	if err != nil || !extended.Expires.After(e.Expires) {
		t.Fatalf("extended = %+v, %v", extended, err)
	}

	again := b.open(class) // the first one was killed
	later := b.mortal(again)
	later.at = at.at + time.Hour
	liveOn(t, again)
	if got, err := again.Get(e.ID); err != nil || got.Phase != env.PhaseRunning || !got.Expires.Equal(extended.Expires) {
		t.Fatalf("after an hour: %+v, %v", got, err)
	}
	later.pass(time.Hour)
	liveOn(t, again)
	if got, _ := again.Get(e.ID); got.Phase != env.PhaseReleased {
		t.Errorf("after two hours it is %s", got.Phase)
	}
}

func TestTheClockOfEndsIsTheKernels(t *testing.T) {
	n := newBench(t).open(demoClass(0))
	text, err := os.ReadFile("/proc/uptime") // CLOCK_BOOTTIME too, proc_uptime(5)
	if err != nil {
		t.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	if off := n.now().Seconds() - seconds; off < -1 || off > 5 {
		t.Errorf("it differs from /proc/uptime by %.3f s", off)
	}
}

func TestAHeldEnvironmentIsNotExtendedHere(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	if _, err := n.SnapshotAndHold(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Extend(t.Context(), e.ID, Extension{By: time.Hour}); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("extend = %v, want ErrUnavailable", err)
	}
	if _, err := n.Extend(t.Context(), e.ID, Extension{}); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("an extension by nothing = %v, want ErrInvalid", err)
	}
}

func wantIs(t *testing.T, n *Node, id env.ID, want env.Phase) {
	t.Helper()
	if got, err := n.Get(id); err != nil || got.Phase != want {
		t.Errorf("environment is %s (%v), want %s", got.Phase, err, want)
	}
}

// count is how often something was called.
func (w *world) count(call string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		if c == call {
			n++
		}
	}
	return n
}
