package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"hearth/internal/guest/wire"
)

// turn answers an operation on an environment that is claimed:
//
//	none     does a little of what it is asked
//	garbage  answers with random bytes
//	hang     never answers
//	flood    begins as it should and goes on without end
//	hand     gives descriptors away with every byte
//	squat    lets another process have the socket's name
//	quit     ends
func (s *liar) turn(conn net.Conn, how string, req *wire.Request) {
	out := wire.NewWriter(conn)
	if req.Op == wire.OpReady || req.Op == wire.OpClaimed || req.Op == wire.OpConfigure {
		_ = out.SendJSON(wire.KindReply, wire.ReadyReply{Version: wire.Version})
		return
	}
	switch how {
	case "garbage":
		_, _ = io.CopyN(conn, rand.Reader, 1<<20)
	case "hang":
		time.Sleep(time.Hour)
	case "flood":
		floodOf(conn, out, req)
	case "hand":
		hand(conn)
	case "squat":
		cmd := exec.Command("/proc/self/exe", "squat")
		if cmd.Start() == nil {
			_ = s.listener.Close()
		}
	case "quit":
		os.Exit(0)
	default:
		_ = out.SendJSON(wire.KindReply, wire.ExecReply{Version: wire.Version, PID: 7})
		_ = out.Send(wire.KindData, []byte("well\n"))
		_ = out.SendJSON(wire.KindExit, wire.Exit{})
	}
}

// floodOf begins an answer to what was asked, and never ends it.
func floodOf(conn net.Conn, out *wire.Writer, req *wire.Request) {
	info := wire.FileInfo{Name: []byte("f"), Mode: syscall.S_IFREG | 0o644}
	data := bytes.Repeat([]byte("lies "), wire.MaxPayload/5)
	next := func(int) error { return out.Send(wire.KindData, data) }
	switch req.Op {
	case wire.OpExec:
		_ = out.SendJSON(wire.KindReply, wire.ExecReply{Version: wire.Version, PID: 7})
	case wire.OpRead:
		_ = out.SendJSON(wire.KindReply, wire.StatReply{Version: wire.Version, Info: info})
	case wire.OpList:
		target := bytes.Repeat([]byte("t"), 4000)
		next = func(i int) error {
			var batch []wire.FileInfo
			for k := range 8 {
				batch = append(batch, wire.FileInfo{Name: fmt.Appendf(nil, "%09d", 8*i+k), Mode: syscall.S_IFLNK | 0o777, Target: target})
			}
			return out.SendJSON(wire.KindEntries, batch)
		}
	case wire.OpWrite:
		_ = out.SendJSON(wire.KindReply, wire.WriteReply{Version: wire.Version})
		next = func(int) error { time.Sleep(time.Second); return nil } // and reads nothing
	case wire.OpConnect:
		_ = out.SendJSON(wire.KindReply, wire.Reply{Version: wire.Version})
		next = func(int) error {
			_, err := conn.Write(data)
			return err
		}
	default:
		flood(conn)
		return
	}
	for i := 0; next(i) == nil; i++ {
	}
}

// hand sends an exec's answer, and with every byte of it descriptors of a file.
func hand(conn net.Conn) {
	var frames bytes.Buffer
	out := wire.NewWriter(&frames)
	_ = out.SendJSON(wire.KindReply, wire.ExecReply{Version: wire.Version, PID: 7})
	_ = out.Send(wire.KindData, bytes.Repeat([]byte("take\n"), 200))
	_ = out.SendJSON(wire.KindExit, wire.Exit{})
	f, err := os.Open("/")
	if err != nil {
		return
	}
	defer f.Close()
	fds := make([]int, 64)
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	rights := syscall.UnixRights(fds...)
	for _, b := range frames.Bytes() {
		// Too many may be under way (ETOOMANYREFS).
		if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte{b}, rights, nil); err != nil {
			_, _ = conn.Write([]byte{b})
		}
	}
}
