package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// Bounds of the server.
const (
	maxOperations  = 512              // connections served at once
	requestTimeout = 10 * time.Second // from accept to the whole request
	defaultGrace   = 10 * time.Second
)

// server is pid 1's state.
type server struct {
	log      io.Writer
	reaper   *reaper
	services *services
	null     *os.File

	operations atomic.Int64
	execs      atomic.Int64
	discarding atomic.Int64 // streams of background processes; see copyOutput
	shutdown   chan time.Duration
}

// serve is pid 1's life. It returns when the environment has been shut down.
func serve(log io.Writer) error {
	if pid := os.Getpid(); pid != 1 {
		return fmt.Errorf("this is pid %d: envinit must be pid 1 of a pid namespace of its own", pid)
	}
	l, err := listen(wire.SocketName)
	if err != nil {
		return err
	}
	unix.Umask(0o022)
	sigchld, sigterm := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(sigchld, unix.SIGCHLD)
	signal.Notify(sigterm, unix.SIGTERM)
	shrugOff()
	s := &server{log: log, reaper: newReaper(), shutdown: make(chan time.Duration, 1)}
	reserveThreads(spareThreads)
	go s.reaper.run(sigchld)
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(log, "envinit:", err)
	}
	if s.null, err = devNull(); err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	s.services = newServices(s.reaper, s.null, wire.LogDir, log)
	refused := make(chan error, 1)
	go func() { refused <- s.acceptAll(l) }()
	select {
	case <-sigterm:
		s.stop(defaultGrace)
	case grace := <-s.shutdown:
		s.stop(grace)
	case err := <-refused:
		return err
	}
	return nil
}

// shrugOff keeps signals that end or stop an ordinary Go program, sent by
// someone inside, from ending the environment. They are caught, not ignored,
// since children would inherit that.
func shrugOff() {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE,
		unix.SIGALRM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGABRT, unix.SIGTRAP, unix.SIGSYS,
		unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGPWR, unix.SIGXCPU, unix.SIGXFSZ,
		unix.SIGVTALRM, unix.SIGPROF, unix.SIGIO, unix.SIGSTKFLT)
}

// acceptAll serves until the listener fails.
func (s *server) acceptAll(l *listener) error {
	for {
		conn, err := l.accept()
		switch {
		case err == nil:
			go s.handle(conn)
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			time.Sleep(100 * time.Millisecond) // descriptors come back when operations end
		default:
			return fmt.Errorf("accept: %w", err)
		}
	}
}

// peer is one operation's connection.
type peer struct {
	conn *os.File
	in   *wire.Reader
	out  *wire.Writer
}

// fail sends the last frame of an operation that went wrong.
func (p *peer) fail(err error) {
	var e *wire.Error
	if !errors.As(err, &e) {
		e = wire.Errorf(wire.CodeInternal, "%v", err)
	}
	if len(e.Message) > 8<<10 {
		e = wire.Errorf(e.Code, "%s…", e.Message[:8<<10])
	}
	_ = p.out.SendJSON(wire.KindError, e)
}

// handle serves one connection.
func (s *server) handle(conn *os.File) {
	defer conn.Close()
	p := &peer{conn: conn, in: wire.NewReader(conn), out: wire.NewWriter(conn)}
	if s.operations.Add(1) > maxOperations {
		p.fail(wire.Errorf(wire.CodeExhausted, "%d operations are under way in this environment, no more are possible", maxOperations))
		s.operations.Add(-1)
		return
	}
	defer s.operations.Add(-1)
	_ = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	f, err := p.in.Next()
	if err != nil {
		p.fail(wire.Errorf(wire.CodeInvalid, "read request: %v", err))
		return
	}
	var req wire.Request
	if f.Kind != wire.KindRequest {
		p.fail(wire.Errorf(wire.CodeInvalid, "the first frame is of kind %d, not a request", f.Kind))
		return
	}
	if err := f.Decode(&req); err != nil {
		p.fail(wire.Errorf(wire.CodeInvalid, "read request: %v", err))
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if _, refusal := wire.Choose(req.Version, req.Least); refusal != nil {
		p.fail(refusal)
		return
	}
	if err := s.dispatch(p, &req); err != nil {
		p.fail(err)
	}
}

// dispatch is the table of operations.
func (s *server) dispatch(p *peer, req *wire.Request) error {
	s.services.follow() // what comes first after a claim must find its name
	switch {
	case req.Op == wire.OpConfigure && req.Configure != nil:
		return s.configure(p, req.Configure)
	case req.Op == wire.OpReady && req.Ready != nil:
		return s.ready(p, req.Ready)
	case req.Op == wire.OpClaimed:
		s.services.claim()
		return p.out.SendJSON(wire.KindReply, wire.Reply{Version: wire.Version})
	case req.Op == wire.OpStatus:
		return p.out.SendJSON(wire.KindReply, s.status())
	case req.Op == wire.OpExec && req.Exec != nil:
		return s.exec(p, req.Exec)
	case req.Op == wire.OpStat && req.Stat != nil:
		return statFile(p, string(req.Stat.Path))
	case req.Op == wire.OpRead && req.Read != nil:
		return readFile(p, req.Read)
	case req.Op == wire.OpWrite && req.Write != nil:
		return writeFile(p, req.Write)
	case req.Op == wire.OpList && req.List != nil:
		return listDir(p, req.List)
	case req.Op == wire.OpConnect && req.Connect != nil:
		return connect(p, req.Connect)
	case req.Op == wire.OpShutdown && req.Shutdown != nil:
		return s.requestShutdown(p, req.Shutdown)
	default:
		return wire.Errorf(wire.CodeInvalid, "operation %.32q is not known, or came without its body", string(req.Op))
	}
}

func (s *server) configure(p *peer, c *wire.Configure) error {
	if err := s.services.configure(c); err != nil {
		return err
	}
	return p.out.SendJSON(wire.KindReply, wire.Reply{Version: wire.Version})
}

func (s *server) ready(p *peer, req *wire.Ready) error {
	ctx, stop := p.whileConnected()
	defer stop()
	begun := time.Now()
	if err := s.services.awaitReady(ctx, req.Timeout); err != nil {
		return err
	}
	runtime.GC() // now, and not in the midst of the first command after a claim
	return p.out.SendJSON(wire.KindReply, wire.ReadyReply{Version: wire.Version, Elapsed: time.Since(begun)})
}

// whileConnected returns a context that ends when the node hangs up. stop
// waits for its goroutine.
func (p *peer) whileConnected() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		_, _ = p.in.Next() // nothing may come
		cancel()
	}()
	return ctx, func() {
		_ = p.conn.SetReadDeadline(time.Unix(1, 0))
		<-watched
	}
}

func (s *server) status() wire.StatusReply {
	r := wire.StatusReply{Version: wire.Version, Execs: int(s.execs.Load()), Orphans: s.reaper.adopted()}
	r.Claimed, r.Services = s.services.status()
	if _, err := claimVariables(); err != nil {
		r.EnvError = err.Error()
	}
	return r
}

func (s *server) requestShutdown(p *peer, req *wire.Shutdown) error {
	grace := req.Grace
	if grace <= 0 {
		grace = defaultGrace
	}
	err := p.out.SendJSON(wire.KindReply, wire.Reply{Version: wire.Version})
	select {
	case s.shutdown <- grace:
	default: // one is under way
	}
	return err
}

// stop ends every process of the pid namespace: politely, then not.
func (s *server) stop(grace time.Duration) {
	s.services.stop()
	deadline := time.Now().Add(grace)
	_ = unix.Kill(-1, unix.SIGTERM)
	_ = unix.Kill(-1, unix.SIGCONT)
	for time.Now().Before(deadline) {
		if errors.Is(unix.Kill(-1, syscall.Signal(0)), unix.ESRCH) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = unix.Kill(-1, unix.SIGKILL)
}
