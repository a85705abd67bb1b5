// Command liar takes the place of envinit and does not do its work. What it
// does instead is the name of the class's first service:
//
//	garbage    answers with random bytes
//	hang       takes the request and never answers
//	dribble    promises a large frame and sends a byte of it now and then
//	flood      answers with frames of nonsense, without end
//	bloat      announces frames larger than the protocol allows
//	unready    takes its configuration and floods when asked whether it is ready
//	quit       ends when it is configured
//
// With turn- before one of the names of turn, it is honest until the environment
// has been claimed. As a namespace holder, with the argument "hold", it is honest.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"hearth/internal/guest/wire"
)

func main() {
	s := &liar{}
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "hold":
			_, _ = os.Stdout.Write([]byte{1})
			_, _ = io.Copy(io.Discard, os.Stdin)
			return
		case "squat":
			s.turned.Store("none")
			time.Sleep(200 * time.Millisecond) // until the name is free
		case "turned": // pid 1 was something else
			s.turned.Store("flood")
		}
	}
	l, err := net.Listen("unix", wire.SocketName)
	if err != nil {
		os.Exit(1)
	}
	s.listener = l
	for {
		conn, err := l.Accept()
		if err != nil {
			time.Sleep(time.Hour) // the name is another's now
			os.Exit(1)
		}
		go s.lie(conn)
	}
}

// liar is one in the place of an envinit.
type liar struct {
	listener net.Listener
	turned   atomic.Value // string: how it lies once it is claimed
}

func (s *liar) lie(conn net.Conn) {
	defer conn.Close()
	f, err := wire.NewReader(conn).Next()
	var req wire.Request
	if err != nil || json.Unmarshal(f.Payload, &req) != nil {
		return
	}
	if how, is := s.turned.Load().(string); is {
		s.turn(conn, how, &req)
		return
	}
	if req.Configure == nil {
		flood(conn)
		return
	}
	name := ""
	if s := req.Configure.Services; len(s) > 0 {
		name = s[0].Name
	}
	if how, is := strings.CutPrefix(name, "turn-"); is {
		s.turned.Store(how)
		_ = wire.NewWriter(conn).SendJSON(wire.KindReply, wire.Reply{Version: wire.Version})
		return
	}
	switch name {
	case "garbage":
		_, _ = io.CopyN(conn, rand.Reader, 1<<20)
	case "hang":
		time.Sleep(time.Hour)
	case "dribble":
		_, _ = conn.Write([]byte{byte(wire.KindReply), 0, 0xff, 0xff})
		for {
			if _, err := conn.Write([]byte(" ")); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	case "flood":
		flood(conn)
	case "bloat":
		for {
			if _, err := conn.Write(append([]byte{byte(wire.KindReply), 0xff, 0xff, 0xff}, make([]byte, 1<<20)...)); err != nil {
				return
			}
		}
	case "unready":
		_ = wire.NewWriter(conn).SendJSON(wire.KindReply, wire.Reply{Version: wire.Version})
	case "quit":
		os.Exit(0)
	}
}

// flood sends the largest error frames that the protocol allows.
func flood(conn net.Conn) {
	out := wire.NewWriter(conn)
	text := bytes.Repeat([]byte("\x1b[31mlies "), 3000)
	for {
		if err := out.SendJSON(wire.KindError, wire.Error{Code: "no such code", Message: string(text)}); err != nil {
			return
		}
	}
}
