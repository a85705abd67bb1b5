package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// Restarts wait between these, doubling; a service that ran for a while
// starts from the first again.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 10 * time.Second
	longEnough   = 10 * time.Second
)

// services is what the class says and what became of it.
type services struct {
	reaper *reaper
	null   *os.File
	logDir string
	log    io.Writer
	ending chan struct{} // closed by stop
	// prepared is closed when boot services may start.
	prepared chan struct{}
	hygiene  *hygiene

	// mu guards the fields below. list is fixed once class is set.
	mu      sync.Mutex
	class   *wire.Configure
	list    []*service
	claimed bool
	stopped bool
}

// service is one of them.
type service struct {
	spec  wire.Service
	tail  *tail
	tried chan struct{} // closed after the first attempt to start

	// mu guards the fields below.
	mu       sync.Mutex
	pid      int
	starts   int
	lastExit string
	hopeless bool // it could not be started, and trying again will not help
}

func newServices(r *reaper, null *os.File, logDir string, log io.Writer) *services {
	return &services{
		reaper: r, null: null, logDir: logDir, log: log,
		ending: make(chan struct{}), prepared: make(chan struct{}), hygiene: &hygiene{root: "/"},
	}
}

// configure takes the class, once, and starts its boot services.
func (m *services) configure(c *wire.Configure) error {
	if err := checkClass(c); err != nil {
		return err
	}
	m.mu.Lock()
	if m.class != nil {
		same := reflect.DeepEqual(*m.class, *c)
		m.mu.Unlock()
		if !same {
			return wire.Errorf(wire.CodeState, "another class was configured already: a slot keeps its class; make a new one")
		}
		return nil
	}
	removed, err := m.renew(c)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	m.class = c
	for _, spec := range c.Services {
		m.list = append(m.list, &service{spec: spec, tail: new(tail), tried: make(chan struct{})})
	}
	list := m.list
	m.mu.Unlock()
	if err := os.MkdirAll(m.logDir, 0o755); err != nil {
		fmt.Fprintf(m.log, "envinit: services' output is not kept: %v\n", err)
	}
	go func() {
		m.makeKeys(removed, c.Variables)
		close(m.prepared)
		m.start(list, wire.StartAtBoot)
	}()
	return nil
}

// claim starts the services that waited for it, once. It may come before
// configure, though no node does that.
func (m *services) claim() {
	m.mu.Lock()
	again := m.claimed || m.class == nil
	m.claimed = m.class != nil
	list := m.list
	m.mu.Unlock()
	if !again {
		m.start(list, wire.StartAfterClaim)
	}
}

func (m *services) start(list []*service, when string) {
	for _, s := range list {
		if startOf(s.spec) == when {
			go m.keep(s)
		}
	}
}

func startOf(spec wire.Service) string {
	if spec.Start == "" {
		return wire.StartAtBoot
	}
	return spec.Start
}

// stop ends restarting. The processes are the caller's to end.
func (m *services) stop() {
	m.mu.Lock()
	again := m.stopped
	m.stopped = true
	m.mu.Unlock()
	if !again {
		close(m.ending)
	}
}

// keep is one service's life.
func (m *services) keep(s *service) {
	out, theirs, err := outPipe()
	if err != nil {
		s.fail(wire.Errorf(wire.CodeExhausted, "make pipe: %v", err))
		close(s.tried)
		return
	}
	// One pipe for all its lives: what an earlier one left in the background
	// goes on writing to the same log.
	defer unix.Close(theirs)
	go m.copyLog(s, out)
	backoff := firstBackoff
	for first := true; ; first = false {
		begun := time.Now()
		c, werr := m.reaper.spawn(m.processOf(s, uintptr(theirs)))
		if werr != nil {
			s.fail(werr)
		} else {
			s.started(c.pid)
		}
		if first {
			close(s.tried)
		}
		if werr == nil {
			<-c.done
			s.ended(c.code())
		}
		if s.spec.Restart == wire.RestartNever {
			return
		}
		if time.Since(begun) >= longEnough {
			backoff = firstBackoff
		}
		select {
		case <-m.ending:
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

func (m *services) processOf(s *service, out uintptr) process {
	layers := []map[string]string{m.class.Variables, s.spec.Env}
	if startOf(s.spec) == wire.StartAfterClaim {
		layers = append(layers, m.claimEnv())
	}
	return process{
		argv: s.spec.Command, dir: s.spec.Dir,
		environ: environ(accountOf(0), layers...),
		files:   [3]uintptr{m.null.Fd(), out, out},
	}
}

// claimEnv is the claim's variables. A file that cannot be read counts as
// empty and shows in the status: its owner must still be able to repair it.
func (m *services) claimEnv() map[string]string {
	vars, err := claimVariables()
	if err != nil {
		fmt.Fprintf(m.log, "envinit: %v\n", err)
	}
	return vars
}

// environ is what an exec'd process gets: the class's variables, then the
// claim's, then the call's.
func (m *services) environ(req *wire.Exec) []string {
	m.mu.Lock()
	class := m.class
	m.mu.Unlock()
	terminal := map[string]string{}
	if req.Terminal {
		terminal["TERM"] = "xterm-256color"
	}
	var ofClass map[string]string
	if class != nil {
		ofClass = class.Variables
	}
	return environ(accountOf(req.UID), terminal, ofClass, m.claimEnv(), req.Variables)
}

func (m *services) copyLog(s *service, out *os.File) {
	defer out.Close()
	w := newLogFile(filepath.Join(m.logDir, s.spec.Name), shareOf(len(m.list)))
	defer w.close()
	buf := make([]byte, 4<<10)
	for {
		n, err := out.Read(buf)
		s.tail.add(buf[:n])
		w.write(buf[:n])
		if err != nil {
			return
		}
	}
}

func (s *service) started(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid, s.hopeless = pid, false
	s.starts++
}

func (s *service) ended(code, sig int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = 0
	s.lastExit = fmt.Sprintf("code %d", code)
	if sig != 0 {
		s.lastExit = fmt.Sprintf("signal %d", sig)
	}
}

func (s *service) fail(e *wire.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastExit = e.Message
	s.hopeless = e.Code == wire.CodeNotFound || e.Code == wire.CodeDenied || e.Code == wire.CodeInvalid
}

func (s *service) status() (st wire.ServiceStatus, hopeless bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.ServiceStatus{
		Name: s.spec.Name, PID: s.pid, Starts: s.starts, LastExit: s.lastExit, Output: s.tail.String(),
	}, s.hopeless
}

func (m *services) status() (claimed bool, all []wire.ServiceStatus) {
	m.mu.Lock()
	list := m.list
	claimed = m.claimed
	m.mu.Unlock()
	for _, s := range list {
		st, _ := s.status()
		// 64 services must fit one frame, whatever they print.
		st.Output = st.Output[max(0, len(st.Output)-maxStatusOutput/max(1, len(list))):]
		all = append(all, st)
	}
	return claimed, all
}

// maxStatusOutput bounds all output in a status, in bytes before JSON, which
// can make six of one.
const maxStatusOutput = 6 << 10
