package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

// Two agents of one instance follow each other without a gap like this: the new
// one asks the old one over its socket; that one ends what is under way, stops
// everything that a second may not do (pools, detection, reports, the journal)
// and lets go of the lock; it goes on answering names until the new one does,
// and carries the streams that are open, until it is told to stop or its time
// is over. If either dies on the way, the lock is free, the journal is whole,
// and the next start is as after a crash.

const (
	// patience is how long operations under way may take to end by themselves,
	// and again when they were told to.
	patience = 10 * time.Second
	// linger is how long open streams are carried after a hand-over.
	linger = time.Minute
	// orphaned is how long nobody may hold the lock after a hand-over: then
	// this process ends with an error, so that its supervisor starts anew.
	orphaned = 5 * time.Second
	// takeOverTime bounds the wait for an old agent.
	takeOverTime = 90 * time.Second
	lockPoll     = 5 * time.Millisecond
)

// errHandedOver is what callers of a retired agent meet.
var errHandedOver = fmt.Errorf("%w: this node's agent hands over to a newer one: try again in a moment", env.ErrUnavailable)

// handOver is how an agent goes.
type handOver struct {
	mu       sync.Mutex    // guards begun
	begun    bool          // a hand-over is under way or over
	retired  chan struct{} // closed when everything is let go
	served   chan struct{} // closed when the successor answers names
	servedBy sync.Once
}

func newHandOver() *handOver {
	return &handOver{retired: make(chan struct{}), served: make(chan struct{})}
}

// over reports whether everything is let go.
func (h *handOver) over() bool {
	select {
	case <-h.retired:
		return true
	default:
		return false
	}
}

func (h *handOver) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.begun {
		return false
	}
	h.begun = true
	return true
}

func (h *handOver) cancel() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begun = false
}

// HandOver implements nodeapi's orders. Until operations under way have ended
// it can fail, and then nothing has changed. What comes after ends the process
// if it fails.
func (a *agent) HandOver(ctx context.Context) error {
	if !a.going.begin() {
		return fmt.Errorf("%w: this agent has handed over already", env.ErrState)
	}
	begun := time.Now()
	a.orders.close()
	if err := a.node.Quiesce(ctx, patience); err != nil {
		a.orders.open()
		a.going.cancel()
		return err
	}
	quiet := time.Since(begun)
	err := a.group.Retire(func() error {
		close(a.going.retired)
		if err := a.api.front.letGo(); err != nil {
			return err
		}
		a.close()
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: hand over: %w", env.ErrUnavailable, err)
	}
	a.log.Info("handed over", "quiet_after", quiet, "took", time.Since(begun))
	return nil
}

// Served implements nodeapi's orders.
func (a *agent) Served() error {
	if !a.going.over() {
		return fmt.Errorf("%w: this agent has not handed over", env.ErrState)
	}
	a.going.servedBy.Do(func() { close(a.going.served) })
	return nil
}

// lingering ends a retired agent when its time is over, or at once if no other
// took its place.
func (a *agent) lingering(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.going.retired:
	}
	over := time.NewTimer(linger)
	defer over.Stop()
	look := time.NewTicker(orphaned / 10)
	defer look.Stop()
	held := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-over.C:
			a.log.Info("streams are left to their callers", "after", linger)
			a.stop()
			<-ctx.Done()
			return nil
		case now := <-look.C:
			if _, is, err := durable.Holder(lockPath(a.cfg)); is || err != nil {
				held = now
			} else if now.Sub(held) > orphaned {
				return fmt.Errorf("%w: no agent took over: start one", env.ErrUnavailable)
			}
		}
	}
}

// predecessor is the agent that ran before, while it lingers.
type predecessor struct {
	node  hearthv1connect.NodeServiceClient
	leave func()
}

// predecessorAt connects to whoever listens on the socket now. Its only
// connection is made here: later the path is this process's own.
func predecessorAt(path string) (*predecessor, error) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", env.ErrUnavailable, err)
	}
	h := rpc.ConnClient(conn)
	return &predecessor{
		node: hearthv1connect.NewNodeServiceClient(h, rpc.UnixURL, rpc.ClientOptions()...),
		leave: func() {
			h.CloseIdleConnections()
			_ = conn.Close() // closed already, if it was used
		},
	}, nil
}

// takeOver waits for the lock, and asks who holds it to let go. What cannot be
// had by waiting is an error at once.
func (a *agent) takeOver(ctx context.Context) (*durable.FileLock, error) {
	ctx, cancel := context.WithTimeout(ctx, takeOverTime)
	defer cancel()
	path := lockPath(a.cfg)
	for {
		before, refusal := predecessorAt(a.cfg.API.Socket)
		lock, err := durable.Lock(path)
		switch {
		case err == nil:
			a.before = before // if it is there, it handed over to one that is no more
			return lock, nil
		case !errors.Is(err, env.ErrState):
			return nil, err
		}
		if refusal == nil {
			a.log.Info("another agent runs; asking it to hand over", "socket", a.cfg.API.Socket, "holder", err.Error())
			port := listenEarly(ctx, a.cfg.API.Listen)
			_, refusal = before.node.HandOver(ctx, &hearthv1.HandOverRequest{})
			a.listener = port(refusal == nil)
			if refusal == nil {
				a.before = before
				return awaitLock(ctx, path)
			}
			before.leave()
		}
		if errors.Is(refusal, env.ErrUnsupported) {
			return nil, fmt.Errorf("%w; it is too old to hand over: stop it first", err)
		}
		a.log.Warn("the other agent did not hand over", "error", refusal)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("take over: %w; it did not let go within %s: %w", err, takeOverTime, refusal)
		case <-time.After(20 * lockPoll):
		}
	}
}

// portWait is how long a port may take to be free after a hand-over.
const portWait = time.Second

// listenEarly listens as soon as the port is free, which it is when the other
// agent is about to let go: whoever connects from then on waits, and is not
// refused. The returned function ends the trying, with or without a listener.
func listenEarly(ctx context.Context, address string) (end func(wanted bool) net.Listener) {
	ctx, cancel := context.WithCancel(ctx)
	got := make(chan net.Listener, 1)
	go func() {
		for {
			l, err := net.Listen("tcp", address)
			if err == nil {
				got <- l
				return
			}
			select {
			case <-ctx.Done():
				got <- nil
				return
			case <-time.After(lockPoll):
			}
		}
	}()
	return func(wanted bool) net.Listener {
		defer cancel()
		if wanted {
			defer time.AfterFunc(portWait, cancel).Stop()
		} else {
			cancel()
		}
		l := <-got
		if l != nil && !wanted {
			_ = l.Close() // the other agent goes on, and may want it
			return nil
		}
		return l
	}
}

// awaitLock takes a lock that was let go, or is about to be.
func awaitLock(ctx context.Context, path string) (*durable.FileLock, error) {
	for {
		lock, err := durable.Lock(path)
		if err == nil || !errors.Is(err, env.ErrState) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("take over: %w", err)
		case <-time.After(lockPoll):
		}
	}
}

// relieve tells the agent before this one that names are answered here now.
func (a *agent) relieve(ctx context.Context) error {
	if a.before != nil {
		asking, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := a.before.node.HandOver(asking, &hearthv1.HandOverRequest{Serving: true})
		cancel()
		a.before.leave()
		if err != nil { // it has ended, or will soon
			a.log.Info("the agent before this one was not told", "error", err)
		}
	}
	<-ctx.Done()
	return nil
}

// retiredLocal lets a retired agent's socket answer nothing but what its
// successor says, and sends everybody else to that one.
func (h *handOver) retiredLocal(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.over() && r.URL.Path != hearthv1connect.NodeServiceHandOverProcedure {
			w.Header().Set("Connection", "close") // the path may lead to the successor already
		}
		next.ServeHTTP(w, r)
	})
}

// gate is the rpc.Gate of retiredLocal.
func (h *handOver) gate(ctx context.Context, procedure string, _ http.Header) (context.Context, error) {
	if h.over() && procedure != hearthv1connect.NodeServiceHandOverProcedure {
		return ctx, errHandedOver
	}
	return ctx, nil
}
