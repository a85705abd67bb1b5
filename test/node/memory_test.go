package node

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// long is set for the tests that take minutes: `make test-endurance`. The others
// then have their long form.
func long() bool { return os.Getenv("HEARTH_ENDURANCE") != "" }

// either is a number of the short or of the long form.
func either(short, endless int) int {
	if long() {
		return endless
	}
	return short
}

const mib = 1 << 20

// gauge watches the agent's resident memory.
type gauge struct {
	agent  *agent
	before int64
	most   atomic.Int64
	stop   func()
}

// sofar is the most until now.
func (g *gauge) sofar() int64 { return g.most.Load() }

// watch begins to watch the agent's memory.
func (a *agent) watch(t *testing.T) *gauge {
	t.Helper()
	g := &gauge{agent: a, before: a.rss(t)}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if now := a.rss(t); now > g.most.Load() {
				g.most.Store(now)
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	g.stop = func() { close(stop); <-done }
	return g
}

// grewAtMost ends the watch: at no moment may the agent have had more than so much
// more than at its begin.
func (g *gauge) grewAtMost(t *testing.T, limit int64) {
	t.Helper()
	g.stop()
	t.Logf("the agent's memory: %d MiB before, %d MiB at most", g.before/mib, g.sofar()/mib)
	if grown := g.sofar() - g.before; grown > limit {
		t.Errorf("the agent's memory grew by %d MiB, at most %d are allowed", grown/mib, limit/mib)
	}
}

// heap is what the agent's heap holds in bytes once its garbage is collected, and
// how many goroutines it has.
func (a *agent) heap(t *testing.T) (bytes int64, goroutines int) {
	t.Helper()
	for range 2 { // the first collection may leave what was waiting to be finalized
		bytes = a.profile(t, "heap?gc=1&debug=1", "# HeapAlloc = ")
	}
	return bytes, int(a.profile(t, "goroutine?debug=1", "goroutine profile: total "))
}

// profile reads one number of a profile on the agent's socket.
func (a *agent) profile(t *testing.T, path, before string) (n int64) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", a.Socket())
		},
	}}
	resp, err := client.Get("http://hearth/debug/pprof/" + path)
	ok(t, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, mib)
	for lines.Scan() {
		if rest, found := strings.CutPrefix(lines.Text(), before); found {
			_, err := fmt.Sscan(rest, &n)
			ok(t, err)
			return n
		}
	}
	t.Fatalf("profile %s says no %q: %v", path, before, lines.Err())
	return 0
}
