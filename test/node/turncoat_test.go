package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/test/stage"
)

// turns are the ways in which test/node/liar betrays an environment that was
// claimed, and what whoever uses it must see.
var turns = map[string]func(t *testing.T, a *agent, c stage.Claimed){
	"garbage": seesGarbage,
	"hang":    seesSilence,
	"flood":   seesNoEnd,
	"hand":    takesNoGifts,
	"squat":   seesTheSquatter,
	"quit":    seesTheEnd,
}

// betray claims an environment of each kind and uses it while it turns. over waits
// until all of that has been seen, while a neighbour answers as ever, and releases
// them.
func (a *agent) betray(t *testing.T) (over func()) {
	t.Helper()
	neighbour := a.claim(t, "turn-none")
	well := func() {
		t.Helper()
		if out, err := a.Hearthctl.Run("exec", neighbour.ID(), "--", "x"); err != nil || out != "well\n" {
			t.Errorf("the neighbour says %q: %v", out, err)
		}
	}
	well()
	all := []stage.Claimed{neighbour}
	var wg sync.WaitGroup
	for how, sees := range turns {
		c := a.claim(t, "turn-"+how)
		all = append(all, c)
		wg.Go(func() {
			begun := time.Now()
			sees(t, a, c)
			t.Logf("turn-%s: %d ms", how, time.Since(begun).Milliseconds())
		})
	}
	return func() {
		t.Helper()
		seen := make(chan struct{})
		go func() { wg.Wait(); close(seen) }()
		for done := false; !done; {
			select {
			case <-seen:
				done = true
			case <-time.After(200 * time.Millisecond):
				well()
			}
		}
		for _, c := range all {
			a.release(t, c)
		}
	}
}

func turncoat(how string) string {
	return "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi}\n" +
		"  services:\n  - {name: turn-" + how + ", command: [\"true\"]}\n" +
		"  ports:\n  - {name: echo, port: 9000, protocol: tcp}\n"
}

// within is a context of a test for one call, far longer than that may take.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// execOf runs a command through the Guest API and returns its first messages, at
// most so many, and the error.
func execOf(ctx context.Context, g hearthv1connect.GuestServiceClient, most int, command ...string) (got []*hearthv1.ExecResponse, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := g.Exec(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.CloseResponse() }()
	_ = s.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Start{Start: &hearthv1.ExecStart{Command: command}}})
	for len(got) < most {
		m, err := s.Receive()
		if err != nil {
			return got, err
		}
		got = append(got, m)
		if m.GetExit() != nil {
			break
		}
	}
	return got, nil
}

// every calls each operation of the Guest API once.
func every(ctx context.Context, g hearthv1connect.GuestServiceClient) map[string]error {
	errs := map[string]error{}
	_, errs["exec"] = execOf(ctx, g, 1000, "x")
	_, errs["list"] = g.ListDir(ctx, &hearthv1.ListDirRequest{Path: "/"})
	r, err := g.ReadFile(ctx, &hearthv1.ReadFileRequest{Path: "/f"})
	if err == nil {
		for r.Receive() {
		}
		err = errors.Join(r.Err(), r.Close())
	}
	errs["read"] = err
	w, err := g.WriteFile(ctx)
	if err == nil {
		_ = w.Send(&hearthv1.WriteFileRequest{Open: &hearthv1.WriteFileRequest_Open{Path: "/f"}})
		_, err = w.CloseAndReceive()
	}
	errs["write"] = err
	_, errs["connect"] = converse(ctx, g.Connect, 9000, "x")
	return errs
}

func seesGarbage(t *testing.T, _ *agent, c stage.Claimed) {
	t.Helper()
	for op, err := range every(within(t), guest(t, c, c.ID(), c.Access.Token)) {
		if !errors.Is(err, env.ErrCorrupt) || !strings.Contains(err.Error(), "breaks the protocol") {
			t.Errorf("garbage, %s: %v", op, err)
		}
	}
}

// seesSilence waits for the agent's own limit on what must answer at once.
func seesSilence(t *testing.T, _ *agent, c stage.Claimed) {
	t.Helper()
	g := guest(t, c, c.ID(), c.Access.Token)
	if long() { // thirty seconds for files
		for op, err := range every(within(t), g) {
			if !errors.Is(err, env.ErrUnavailable) {
				t.Errorf("hang, %s: %v", op, err)
			}
		}
		return
	}
	_, err := execOf(within(t), g, 1, "x")
	fails(t, err, env.ErrUnavailable, "does not answer")
	// A caller who waits no longer waits no longer.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := g.ListDir(ctx, &hearthv1.ListDirRequest{Path: "/"}); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("hang, a list of 200 ms: %v", err)
	}
}

// seesNoEnd takes a part of what never ends, and leaves, at once and after a while
// of not reading.
func seesNoEnd(t *testing.T, a *agent, c stage.Claimed) {
	t.Helper()
	g := guest(t, c, c.ID(), c.Access.Token)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := execOf(within(t), g, 100, "x"); err != nil || len(got) != 100 {
				t.Errorf("flood, exec: %d messages, %v", len(got), err)
			}
		})
		wg.Go(func() {
			page, err := g.ListDir(within(t), &hearthv1.ListDirRequest{Path: "/"})
			if err != nil || page.GetNextPageToken() == "" || len(page.GetEntries()) > 1000 {
				t.Errorf("flood, list: %d entries, more %q, %v", len(page.GetEntries()), page.GetNextPageToken(), err)
			}
		})
		wg.Go(func() { // reads nothing
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if r, err := g.ReadFile(ctx, &hearthv1.ReadFileRequest{Path: "/f"}); err == nil {
				<-ctx.Done()
				_ = r.Close()
			}
		})
		wg.Go(func() { // is not read
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			w, err := g.WriteFile(ctx)
			if err != nil {
				t.Error("flood, write:", err)
				return
			}
			_ = w.Send(&hearthv1.WriteFileRequest{Open: &hearthv1.WriteFileRequest_Open{Path: "/f"}})
			for ctx.Err() == nil && w.Send(&hearthv1.WriteFileRequest{Data: make([]byte, 256<<10)}) == nil {
			}
			if _, err := w.CloseAndReceive(); err == nil {
				t.Error("flood, write: said to be written")
			}
		})
		wg.Go(func() {
			if got, err := converse(within(t), g.Connect, 9000, "x"); err != nil || got == "" {
				t.Errorf("flood, connect: %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

// takesNoGifts reads what came with descriptors, which must not become the agent's.
func takesNoGifts(t *testing.T, a *agent, c stage.Claimed) {
	t.Helper()
	before := a.descriptors(t)
	for range 4 {
		if out, err := a.Hearthctl.Run("exec", c.ID(), "--", "x"); err != nil || !strings.HasPrefix(out, "take\ntake\n") {
			t.Errorf("hand: %.20q, %v", out, err)
		}
	}
	if now := a.descriptors(t); now > before+200 { // the others have some meanwhile
		t.Errorf("hand: the agent has %d descriptors, before %d", now, before)
	}
}

// seesTheSquatter finds another process behind the name of pid 1's socket.
func seesTheSquatter(t *testing.T, _ *agent, c stage.Claimed) {
	t.Helper()
	g := guest(t, c, c.ID(), c.Access.Token)
	if _, err := execOf(within(t), g, 1, "x"); err == nil {
		t.Error("squat: the first exec was answered")
	}
	eventually(t, 10*time.Second, func() error {
		_, err := execOf(within(t), g, 1, "x")
		if !errors.Is(err, env.ErrDenied) || !strings.Contains(err.Error(), "poses as its init") {
			return fmt.Errorf("squat: %w", err)
		}
		return nil
	})
}

func seesTheEnd(t *testing.T, a *agent, c stage.Claimed) {
	t.Helper()
	if _, err := execOf(within(t), guest(t, c, c.ID(), c.Access.Token), 1, "x"); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("quit: %v", err)
	}
	eventually(t, 10*time.Second, func() error {
		e, err := a.Node.Get(t.Context(), &hearthv1.NodeGetRequest{Environment: c.ID()})
		if err != nil || e.GetEnvironment().GetPhase() != hearthv1.Phase_PHASE_FAILED {
			return fmt.Errorf("quit: the environment is %s: %w", e.GetEnvironment().GetPhase(), err)
		}
		return nil
	})
}
