package main

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// session is one exec.
type session struct {
	s        *server
	p        *peer
	child    *child
	terminal *terminal // nil if it runs on pipes
	stdin    *os.File  // our end; the terminal's master if there is one
	outputs  []output
	feed     feed
}

// output is one stream of a process.
type output struct {
	file *os.File
	kind wire.Kind
}

// exec runs a process to its end. If the node goes away the process runs on,
// with its output discarded and its stdin ended.
func (s *server) exec(p *peer, req *wire.Exec) error {
	x := &session{s: s, p: p, feed: feed{wake: make(chan struct{}, 1)}}
	if err := x.begin(req); err != nil {
		return err
	}
	s.execs.Add(1)
	defer s.execs.Add(-1)
	_ = p.out.SendJSON(wire.KindReply, wire.ExecReply{Version: wire.Version, PID: x.child.pid})
	var input, outputs sync.WaitGroup
	input.Go(x.receive)
	input.Go(x.feedStdin)
	for _, o := range x.outputs {
		outputs.Go(func() { s.copyOutput(o, p, x.child.done) })
	}
	<-x.child.done
	x.feed.end()
	_ = x.stdin.SetWriteDeadline(time.Unix(1, 0)) // a write that nobody will read
	for _, o := range x.outputs {
		_ = o.file.SetReadDeadline(time.Unix(1, 0)) // from waiting to draining
	}
	outputs.Wait()
	if x.terminal != nil {
		x.terminal.release()
	}
	code, sig := x.child.code()
	_ = p.out.SendJSON(wire.KindExit, wire.Exit{Code: code, Signal: sig})
	halfClose(p.conn)
	_ = p.conn.SetReadDeadline(time.Unix(1, 0))
	input.Wait()
	if x.terminal == nil {
		_ = x.stdin.Close()
	}
	return nil
}

// begin checks the request, opens the streams and starts the process.
func (x *session) begin(req *wire.Exec) error {
	if len(req.Command) == 0 || req.Command[0] == "" {
		return wire.Errorf(wire.CodeInvalid, "command is empty")
	}
	if err := wire.CheckVariables(req.Variables); err != nil {
		return wire.Errorf(wire.CodeInvalid, "%v", err)
	}
	proc := process{
		argv: req.Command, dir: req.Dir, uid: req.UID, gid: req.GID, terminal: req.Terminal,
		environ: x.s.services.environ(req),
	}
	if req.Terminal {
		return x.startOnTerminal(proc, req.Size)
	}
	return x.startOnPipes(proc)
}

func (x *session) startOnTerminal(proc process, size wire.Size) error {
	t, werr := openTerminal(size)
	if werr != nil {
		return werr
	}
	if proc.uid != 0 || proc.gid != 0 {
		_ = t.held.Chown(int(proc.uid), int(proc.gid)) // or the program cannot reopen /dev/tty's device
	}
	fd := t.held.Fd()
	proc.files = [3]uintptr{fd, fd, fd}
	c, werr := x.s.reaper.spawn(proc)
	if werr != nil {
		t.release()
		_ = t.master.Close()
		return werr
	}
	x.child, x.terminal, x.stdin, x.outputs = c, t, t.master, []output{{t.master, wire.KindData}}
	return nil
}

func (x *session) startOnPipes(proc process) (err error) {
	var ours [3]*os.File
	theirs := [3]int{-1, -1, -1}
	defer func() {
		for i := range ours {
			if theirs[i] >= 0 {
				_ = unix.Close(theirs[i])
			}
			if err != nil && ours[i] != nil {
				_ = ours[i].Close()
			}
		}
	}()
	for i, open := range [3]func() (*os.File, int, error){inPipe, outPipe, outPipe} {
		if ours[i], theirs[i], err = open(); err != nil {
			return wire.Errorf(wire.CodeExhausted, "make pipe: %v", err)
		}
		proc.files[i] = uintptr(theirs[i])
	}
	c, werr := x.s.reaper.spawn(proc)
	if werr != nil {
		return werr
	}
	x.child, x.stdin = c, ours[0]
	x.outputs = []output{{ours[1], wire.KindData}, {ours[2], wire.KindStderr}}
	return nil
}

// receive obeys the node's frames until the connection or the process ends.
func (x *session) receive() {
	defer x.feed.end()
	for {
		f, err := x.p.in.Next()
		if err != nil {
			return
		}
		switch f.Kind {
		case wire.KindData:
			if !x.feed.add(f.Payload) {
				return // beyond the window: not a node of ours
			}
		case wire.KindEnd:
			x.feed.end()
		case wire.KindSignal:
			if n, err := f.Uint32(); err == nil && n >= 1 && n <= 64 {
				_ = x.s.reaper.signal(x.child, syscall.Signal(n))
			}
		case wire.KindResize:
			if size, err := f.Size(); err == nil && x.terminal != nil {
				x.terminal.resize(size)
			}
		case wire.KindHangup:
			_ = x.s.reaper.signal(x.child, unix.SIGHUP)
			_ = x.s.reaper.signal(x.child, unix.SIGCONT)
		}
	}
}

// endOfTransmission is a terminal's end of file (VEOF) unless a program
// changed it.
const endOfTransmission = 4

// feedStdin writes to the process what receive queued, and tells the node
// that there is room again. Input that the process will not take is dropped.
func (x *session) feedStdin() {
	for {
		b, ended := x.feed.take()
		if len(b) > 0 {
			_, _ = x.stdin.Write(b)
			if x.p.out.SendUint32(wire.KindWindow, uint32(len(b))) != nil {
				ended = true
			}
		}
		if ended {
			if x.terminal != nil {
				_, _ = x.stdin.Write([]byte{endOfTransmission})
			} else {
				_ = x.stdin.Close()
			}
			return
		}
	}
}

// feed is stdin on its way from the connection to the process: at most
// wire.Window bytes, so that signals behind them are always read.
type feed struct {
	wake chan struct{}
	// mu guards the fields below.
	mu    sync.Mutex
	buf   []byte
	ended bool
}

func (f *feed) add(b []byte) bool {
	f.mu.Lock()
	ok := len(f.buf)+len(b) <= wire.Window
	if ok && !f.ended {
		f.buf = append(f.buf, b...)
	}
	f.mu.Unlock()
	f.kick()
	return ok
}

func (f *feed) end() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.kick()
}

func (f *feed) kick() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// take waits for input. With ended, nothing follows.
func (f *feed) take() (b []byte, ended bool) {
	for {
		f.mu.Lock()
		b, ended = f.buf, f.ended
		f.buf = nil
		f.mu.Unlock()
		if len(b) > 0 || ended {
			return b, ended
		}
		<-f.wake
	}
}
