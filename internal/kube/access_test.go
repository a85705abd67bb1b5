package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
)

// roles answer questions as an API server does.
type roles struct {
	mu      sync.Mutex
	allowed map[string]bool // "verb tenant"
	down    bool            // every question hangs
	broken  error           // what every question gets
	slow    time.Duration
	asked   int
}

func (r *roles) Ask(ctx context.Context, q question) (bool, string, error) {
	r.mu.Lock()
	r.asked++
	down, slow, allowed := r.down, r.slow, r.allowed[q.verb+" "+q.tenant]
	r.mu.Unlock()
	if down {
		<-ctx.Done()
		return false, "", ctx.Err()
	}
	time.Sleep(slow)
	return allowed, "no role", r.broken
}

func (r *roles) set(down bool, allowed ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down, r.allowed = down, map[string]bool{}
	for _, a := range allowed {
		r.allowed[a] = true
	}
}

func (r *roles) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

var robot = env.ServiceAccount{Namespace: "blue", Name: "bot", UID: "u1"}

// access plays with an Access whose API server answers in 5 ms.
func access(t *testing.T, running bool, play func(*testing.T, *Access, *roles)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &roles{slow: 5 * time.Millisecond}
		a := NewAccess(slog.New(slog.DiscardHandler), nil, NewIdentityMetrics(prometheus.NewRegistry()))
		a.api = r
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		if running {
			go func() { end <- a.Run(ctx) }()
		} else {
			end <- nil
		}
		play(t, a, r)
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
	})
}

// may asks for create in blue and checks the answer and how long it took.
func may(t *testing.T, a *Access, want error, within time.Duration) {
	t.Helper()
	begun := time.Now()
	err := a.Authorize(t.Context(), robot, "create", "blue")
	if !errors.Is(err, want) || (want == nil) != (err == nil) {
		t.Errorf("answer: %v, want %v", err, want)
	}
	if took := time.Since(begun); took > within {
		t.Errorf("it took %s, at most %s were wanted", took, within)
	}
}

const (
	atOnce  = 0
	oneCall = 5 * time.Millisecond
)

func TestAnAllowanceInUseNeverWaitsForTheAPIServer(t *testing.T) {
	access(t, true, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		r.set(false, "create blue")
		may(t, a, nil, oneCall)
		for range 3600 {
			time.Sleep(time.Second)
			may(t, a, nil, atOnce)
		}
		if n := r.count(); n > 3600/15+2 {
			t.Errorf("asked %d times in an hour", n)
		}
		time.Sleep(4 * time.Minute) // used once in a while
		may(t, a, nil, atOnce)
		time.Sleep(20 * time.Minute) // not in use any more
		before := r.count()
		time.Sleep(time.Hour)
		if n := r.count() - before; n != 0 {
			t.Errorf("asked %d times for what nobody uses", n)
		}
		may(t, a, nil, oneCall)
	})
}

func TestARoleThatIsTakenAwayEndsWithinHalfAMinute(t *testing.T) {
	for name, running := range map[string]bool{"renewed": true, "not renewed": false} {
		t.Run(name, func(t *testing.T) {
			access(t, running, func(t *testing.T, a *Access, r *roles) {
				t.Helper()
				r.set(false, "create blue")
				may(t, a, nil, oneCall)
				r.set(false)
				time.Sleep(allowFor)
				may(t, a, env.ErrDenied, oneCall)
				// A denial is the last word: the earlier allowance is not served
				// when the API server goes away.
				r.set(true)
				time.Sleep(denyFor)
				may(t, a, env.ErrUnavailable, accessTimeout)
			})
		})
	}
}

func TestADenialIsRememberedForAMoment(t *testing.T) {
	access(t, false, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		may(t, a, env.ErrDenied, oneCall)
		r.set(false, "create blue")
		may(t, a, env.ErrDenied, atOnce)
		time.Sleep(denyFor)
		may(t, a, nil, oneCall)
		if n := r.count(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestAllowancesAreServedWhileTheAPIServerIsSilent(t *testing.T) {
	access(t, true, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		r.set(false, "create blue")
		may(t, a, nil, oneCall)
		r.set(true)
		time.Sleep(renewAfter + 10*time.Second) // the renewal has failed meanwhile
		begun := time.Now()
		for time.Since(begun) < 9*time.Minute {
			may(t, a, nil, atOnce)
			time.Sleep(7 * time.Second)
		}
		if got := testutil.ToFloat64(a.metrics.accesses.WithLabelValues("stale")); got < 10 {
			t.Errorf("counted %v stale answers", got)
		}
		// What was never asked is not known.
		err := a.Authorize(t.Context(), robot, "delete", "blue")
		if !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("unknown: %v", err)
		}
		time.Sleep(time.Minute)
		may(t, a, env.ErrUnavailable, accessTimeout) // older than ten minutes
		r.set(false, "create blue")
		time.Sleep(silentFor)
		may(t, a, nil, oneCall)
	})
}

func TestASilentAPIServerIsNotWaitedForByEverybody(t *testing.T) {
	access(t, false, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		r.set(true)
		var wg sync.WaitGroup
		begun := time.Now()
		for i := range 100 {
			wg.Go(func() {
				_ = a.Authorize(t.Context(), robot, "create", fmt.Sprint("t", i%2))
			})
		}
		wg.Wait()
		if took := time.Since(begun); took > accessTimeout {
			t.Errorf("took %s", took)
		}
		may(t, a, env.ErrUnavailable, atOnce)
		if n := r.count(); n != 2 {
			t.Errorf("asked %d times for two questions", n)
		}
	})
}

func TestOneCallersHasteIsNotTheOthers(t *testing.T) {
	access(t, false, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		r.set(false, "create blue")
		r.slow = 500 * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.Authorize(ctx, robot, "create", "blue") })
		time.Sleep(10 * time.Millisecond)
		may(t, a, nil, 500*time.Millisecond)
		wg.Wait()
	})
}

func TestQuestionsOfDifferentAccountsAreKeptApart(t *testing.T) {
	access(t, false, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		r.set(false, "create blue")
		may(t, a, nil, oneCall)
		r.set(false)
		again := robot
		again.UID = "u2" // deleted, and made anew by somebody else
		if err := a.Authorize(t.Context(), again, "create", "blue"); !errors.Is(err, env.ErrDenied) {
			t.Errorf("another account of the same name: %v", err)
		}
		may(t, a, nil, atOnce)
	})
}

func TestWhatIsNoNamespaceIsNoQuestion(t *testing.T) {
	access(t, false, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		for _, tenant := range []string{"", "Blue", "../blue", "blue ", "a.b", strings.Repeat("x", 64), strings.Repeat("x", 3<<20)} {
			err := a.Authorize(t.Context(), robot, "create", tenant)
			if !errors.Is(err, env.ErrDenied) || len(err.Error()) > 500 {
				t.Errorf("%.10q: %.600v", tenant, err)
			}
		}
		if n := r.count(); n != 0 || len(a.cache.answers) != 0 {
			t.Errorf("the API server was asked %d times, %d answers are kept", n, len(a.cache.answers))
		}
	})
}

func TestOneAccountsQuestionsLeaveRoomForTheOthers(t *testing.T) {
	access(t, false, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		r.set(false, "create blue")
		r.slow = 400 * time.Millisecond
		begun := time.Now()
		loud := robot
		loud.Name = "loud"
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				if err := a.Authorize(t.Context(), loud, "create", fmt.Sprint("t", i)); !errors.Is(err, env.ErrDenied) && !errors.Is(err, env.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		time.Sleep(10 * time.Millisecond)
		if n := r.count(); n != askAtOnce {
			t.Errorf("%d of its questions are asked at once", n)
		}
		may(t, a, nil, 400*time.Millisecond)
		wg.Wait()
		if took := time.Since(begun); took > 2*accessTimeout || r.count() != 3*askAtOnce+1 {
			t.Errorf("%d were asked in %s", r.count(), took)
		}
		if len(a.asking) != 0 {
			t.Errorf("counted after the end: %v", a.asking)
		}
	})
}

func TestWhoWaitsForATurnHearsThatTheAPIServerIsGone(t *testing.T) {
	access(t, false, func(t *testing.T, a *Access, r *roles) {
		t.Helper()
		r.slow, r.broken = 100*time.Millisecond, errors.New("connection refused")
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := a.Authorize(t.Context(), robot, "create", fmt.Sprint("t", i)); !errors.Is(err, env.ErrUnavailable) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := r.count(); n != askAtOnce {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestDenialsDriveOutNoAllowance(t *testing.T) {
	c, now := newAccessCache(), time.Now()
	allowed := question{robot, "create", "blue"}
	c.put(allowed, true, "", now)
	for i := range 3 * maxAccess {
		now = now.Add(100 * time.Microsecond)
		c.put(question{robot, "create", fmt.Sprint("t", i)}, false, "no role", now)
	}
	if len(c.answers) > maxAccess || !c.stale(allowed, now) {
		t.Errorf("%d answers, the allowance is kept: %v", len(c.answers), c.stale(allowed, now))
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	c, now := newAccessCache(), time.Now()
	for i := range 3 * maxAccess {
		q := question{robot, "create", fmt.Sprint("t", i)}
		c.put(q, true, "", now.Add(time.Duration(i)*time.Millisecond))
		if len(c.answers) > maxAccess {
			t.Fatalf("%d answers", len(c.answers))
		}
	}
	last := question{robot, "create", fmt.Sprint("t", 3*maxAccess-1)}
	if got, _ := c.look(last, now.Add(3*maxAccess*time.Millisecond)); got != allow {
		t.Errorf("the newest was dropped: %v", got)
	}
}
