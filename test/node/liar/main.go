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
// As a namespace holder, with the argument "hold", it is honest.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"os"
	"time"

	"hearth/internal/guest/wire"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "hold" {
		_, _ = os.Stdout.Write([]byte{1})
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	l, err := net.Listen("unix", wire.SocketName)
	if err != nil {
		os.Exit(1)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		go lie(conn)
	}
}

func lie(conn net.Conn) {
	defer conn.Close()
	f, err := wire.NewReader(conn).Next()
	var req wire.Request
	if err != nil || json.Unmarshal(f.Payload, &req) != nil {
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
