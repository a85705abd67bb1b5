package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"hearth/test/cluster"
	"hearth/test/stage"
)

// loaded are environments in which the probe's watch runs, and into which
// somebody runs commands all the time.
type loaded struct {
	w     *world
	envs  []stage.Claimed
	first map[string]report
	execs atomic.Int64
	fails atomic.Int64
	stop  chan struct{}
	work  sync.WaitGroup

	nodes map[string]standstill // by check, of each node
}

// standstill is for how many milliseconds a whole node had no names, and no
// network. No agent has a part in the network: on a busy machine both stand still
// for as long as nobody gets the processor.
type standstill struct{ names, net int64 }

// report is what the probe's watch has seen; see test/demo/probe.
type report struct {
	PID       int   `json:"pid"`
	Started   int64 `json:"started"`
	Sent      int   `json:"sent"`
	Answered  int   `json:"answered"`
	Forbidden int   `json:"forbidden"`
	Refused   int   `json:"refused"`
	Names     int   `json:"names"`
	NetGap    int64 `json:"netGapMs"`
	NameGap   int64 `json:"nameGapMs"`
}

// load claims n environments of a class and keeps them busy.
func (w *world) load(ctx context.Context, class string, n int) (*loaded, error) {
	l := &loaded{w: w, first: map[string]report{}, stop: make(chan struct{})}
	for range n {
		c, err := w.claim(w.ctl(), class)
		if err != nil {
			return l, errors.Join(err, l.end())
		}
		l.envs = append(l.envs, c)
		if err := w.installProbe(w.ctl(), c.ID(), "/probe"); err != nil {
			return l, errors.Join(err, l.end())
		}
		watch := fmt.Sprintf("/probe watch /workspace/seen %s:%d %s:%d %s:%d >/dev/null 2>&1 &", cluster.PublicAddresses[1], cluster.EchoPort,
			cluster.MetadataAddresses[0], cluster.EchoPort, cluster.PrivateAddresses[0], cluster.EchoPort)
		if _, err := w.ctl().Sh(c, watch); err != nil {
			return l, errors.Join(err, l.end())
		}
	}
	for _, c := range l.envs {
		if err := eventually(ctx, short, func() error {
			r, err := l.report(c)
			if err == nil && (r.Answered == 0 || r.Names == 0) {
				err = fmt.Errorf("watch has reached nothing yet: %+v", r)
			}
			l.first[c.ID()] = r
			return err
		}); err != nil {
			return l, errors.Join(err, l.end())
		}
	}
	for i := range 2 {
		l.work.Go(func() { l.run(i) })
	}
	return l, nil
}

// run is a steady stream of commands. One that fails is counted: while an agent
// is replaced, calls may be refused.
func (l *loaded) run(offset int) {
	for i := offset; ; i++ {
		select {
		case <-l.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		c := l.envs[i%len(l.envs)]
		if out, _, code := l.w.ctl().Try("exec", c.ID(), "--", "echo", "here"); code != 0 || out != "here\n" {
			l.fails.Add(1)
		}
		l.execs.Add(1)
	}
}

func (l *loaded) report(c stage.Claimed) (r report, err error) {
	out, err := l.w.ctl().Run("exec", c.ID(), "--", "cat", "/workspace/seen")
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(out), &r)
}

// check compares every environment with what it was: the same process still
// sends, and nothing forbidden ever answered.
//
// Each environment asks for names all the time, so while its node answers none,
// all that live there get no answer. What one alone waits for is its own: the
// processor, mostly.
func (l *loaded) check(ctx context.Context, f *facts) error {
	var worst report
	l.nodes = map[string]standstill{}
	for _, c := range l.envs {
		var r report
		if err := eventually(ctx, short, func() (err error) {
			r, err = l.report(c)
			return err
		}); err != nil {
			return fmt.Errorf("environment %s is lost: %w", c.ID(), err)
		}
		was := l.first[c.ID()]
		switch {
		case r.PID != was.PID || r.Started != was.Started:
			return fmt.Errorf("environment %s was restarted: %+v before, %+v after", c.ID(), was, r)
		case r.Sent <= was.Sent || r.Answered <= was.Answered:
			return fmt.Errorf("environment %s stood still: %+v before, %+v after", c.ID(), was, r)
		case r.Forbidden > 0:
			return fmt.Errorf("environment %s had %d answers of forbidden addresses", c.ID(), r.Forbidden)
		}
		worst.NetGap, worst.NameGap = max(worst.NetGap, r.NetGap), max(worst.NameGap, r.NameGap)
		worst.Refused += r.Refused
		node := c.Access.Address
		least, ok := l.nodes[node]
		if !ok {
			least = standstill{r.NameGap, r.NetGap}
		}
		l.nodes[node] = standstill{min(least.names, r.NameGap), min(least.net, r.NetGap)}
	}
	f.add("environments", len(l.envs))
	f.add("forbidden_probes", worst.Refused)
	f.add("forbidden_answers", 0)
	for _, s := range l.nodes {
		f.add("node_dns_gap_ms", s.names)
		f.add("node_net_gap_ms", s.net)
	}
	f.add("worst_dns_gap_ms", worst.NameGap)
	f.add("worst_net_gap_ms", worst.NetGap)
	f.add("execs", l.execs.Load())
	f.add("execs_refused", l.fails.Load())
	return nil
}

// end stops the load and releases the environments.
func (l *loaded) end() error {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.work.Wait()
	err := l.w.releaseAll(l.w.ctl(), l.envs...)
	l.envs = nil
	return err
}
