package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// liar returns a client whose peer is behave, on the other end of a
// connected pair of unix sockets, after the request was read.
func liar(t *testing.T, behave func(conn *net.UnixConn, req []byte)) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "liar-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if f, err := wire.NewReader(c).Next(); err == nil {
				behave(c, f.Payload)
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return NewWithDial(func(ctx context.Context) (Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "unix", dir+"/s")
		if err != nil {
			return nil, err
		}
		return c.(*net.UnixConn), nil
	})
}

func frames(parts ...any) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	for i := 0; i < len(parts); i += 2 {
		kind := parts[i].(wire.Kind)
		if raw, ok := parts[i+1].([]byte); ok {
			_ = w.Send(kind, raw)
		} else {
			_ = w.SendJSON(kind, parts[i+1])
		}
	}
	return b.Bytes()
}

func entry(name string) wire.FileInfo { return wire.FileInfo{Name: []byte(name)} }

func TestLiesFromInsideAreErrorsThatNameTheProtocol(t *testing.T) {
	ok := wire.StatReply{Version: 1, Info: entry("f")}
	list := func(c *Client, ctx context.Context) error { _, err := c.ListDir(ctx, "/d", "b", 3); return err }
	stat := func(c *Client, ctx context.Context) error { _, err := c.Stat(ctx, "/f"); return err }
	read := func(c *Client, ctx context.Context) error {
		f, err := c.ReadFile(ctx, "/f", 0, 4)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	}
	exec := func(c *Client, ctx context.Context) error {
		_, err := c.Run(ctx, Command{Args: []string{"x"}}, nil, io.Discard, io.Discard)
		return err
	}
	write := func(c *Client, ctx context.Context) error {
		_, err := c.WriteFile(ctx, WriteOptions{Path: "/f"}, strings.NewReader("abc"))
		return err
	}
	started := frames(wire.KindReply, wire.ExecReply{Version: 1, PID: 5})
	for name, c := range map[string]struct {
		call   func(*Client, context.Context) error
		answer []byte
	}{
		"not a frame":         {stat, []byte("HTTP/1.1 200 OK\r\n\r\n")},
		"wrong kind":          {stat, frames(wire.KindExit, wire.Exit{})},
		"not JSON":            {stat, frames(wire.KindReply, []byte("]["))},
		"name with slash":     {stat, frames(wire.KindReply, wire.StatReply{Info: entry("../../etc/passwd")})},
		"name of no bytes":    {stat, frames(wire.KindReply, wire.StatReply{})},
		"negative size":       {stat, frames(wire.KindReply, wire.StatReply{Info: wire.FileInfo{Name: []byte("f"), Size: -1}})},
		"entries unsorted":    {list, frames(wire.KindEntries, []wire.FileInfo{entry("d"), entry("c")})},
		"entries twice":       {list, frames(wire.KindEntries, []wire.FileInfo{entry("d"), entry("d")})},
		"entries before":      {list, frames(wire.KindEntries, []wire.FileInfo{entry("a")})},
		"entries too many":    {list, frames(wire.KindEntries, []wire.FileInfo{entry("c"), entry("d"), entry("e"), entry("f")})},
		"entries none, twice": {list, frames(wire.KindEntries, []wire.FileInfo{}, wire.KindEntries, []wire.FileInfo{})},
		"more than asked":     {read, frames(wire.KindReply, ok, wire.KindData, []byte("12345"))},
		"stderr in a file":    {read, frames(wire.KindReply, ok, wire.KindStderr, []byte("1"))},
		"exit code 700":       {exec, append(bytes.Clone(started), frames(wire.KindExit, wire.Exit{Code: 700})...)},
		"window not sent":     {exec, append(bytes.Clone(started), frames(wire.KindWindow, []byte{0, 0, 0, 1})...)},
		"window of 3 bytes":   {exec, append(bytes.Clone(started), frames(wire.KindWindow, []byte{0, 0, 1})...)},
		"entries from exec":   {exec, append(bytes.Clone(started), frames(wire.KindEntries, []byte("[]"))...)},
		"size not written":    {write, frames(wire.KindReply, wire.WriteReply{}, wire.KindReply, wire.WriteReply{Size: 2})},
	} {
		t.Run(name, func(t *testing.T) {
			client := liar(t, func(conn *net.UnixConn, _ []byte) {
				_, _ = conn.Write(c.answer)
				_, _ = io.Copy(io.Discard, conn)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := c.call(client, ctx); !errors.Is(err, env.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
		})
	}
}

func TestHangingPeerCostsNoMoreThanTheContext(t *testing.T) {
	client := liar(t, func(conn *net.UnixConn, _ []byte) { _, _ = io.Copy(io.Discard, conn) })
	for name, call := range map[string]func(context.Context) error{
		"stat":    func(ctx context.Context) error { _, err := client.Stat(ctx, "/f"); return err },
		"list":    func(ctx context.Context) error { _, err := client.ListDir(ctx, "/", "", 0); return err },
		"read":    func(ctx context.Context) error { _, err := client.ReadFile(ctx, "/f", 0, 0); return err },
		"exec":    func(ctx context.Context) error { _, err := client.Exec(ctx, Command{Args: []string{"x"}}); return err },
		"connect": func(ctx context.Context) error { _, err := client.Connect(ctx, 80); return err },
		"ready":   client.AwaitReady,
		"claimed": client.Claimed,
		"write": func(ctx context.Context) error {
			_, err := client.WriteFile(ctx, WriteOptions{Path: "/f"}, strings.NewReader("x"))
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		begun := time.Now()
		err := call(ctx)
		cancel()
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
			t.Errorf("%s: %v after %v", name, err, took)
		}
	}
}

func TestHangupToAPeerThatDoesNotReadEndsSoon(t *testing.T) {
	release := make(chan struct{})
	client := liar(t, func(conn *net.UnixConn, _ []byte) {
		_, _ = conn.Write(frames(wire.KindReply, wire.ExecReply{PID: 1}))
		<-release
	})
	defer close(release)
	p, err := client.Exec(t.Context(), Command{Args: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = p.Write(make([]byte, wire.Window)) }()
	time.Sleep(50 * time.Millisecond)
	begun := time.Now()
	_ = p.Hangup()
	p.Close()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestEndlessOutputDoesNotAccumulate(t *testing.T) {
	client := liar(t, func(conn *net.UnixConn, _ []byte) {
		_, _ = conn.Write(frames(wire.KindReply, wire.ExecReply{PID: 1}))
		data := frames(wire.KindData, make([]byte, wire.MaxPayload))
		for {
			if _, err := conn.Write(data); err != nil {
				return
			}
		}
	})
	p, err := client.Exec(t.Context(), Command{Args: []string{"yes"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 2000 { // 125 MiB
		if _, err := p.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// Ten thousand links may name forty megabytes: a page ends before that, and says
// that there is more.
func TestADirectoryOfLongLinksComesInSmallPages(t *testing.T) {
	target := bytes.Repeat([]byte("t"), 4000)
	client := liar(t, func(conn *net.UnixConn, _ []byte) {
		for i := 0; i < wire.MaxEntries; {
			var batch []wire.FileInfo
			for range 8 {
				batch = append(batch, wire.FileInfo{Name: fmt.Appendf(nil, "%06d", i), Target: target})
				i++
			}
			if _, err := conn.Write(frames(wire.KindEntries, batch)); err != nil {
				return
			}
		}
		_, _ = conn.Write(frames(wire.KindEnd, wire.End{}))
	})
	page, err := client.ListDir(t.Context(), "/d", "", 0)
	if err != nil || !page.More || len(page.Entries) == 0 {
		t.Fatalf("%d entries, more %t, %v", len(page.Entries), page.More, err)
	}
	size := 0
	for _, e := range page.Entries {
		size += len(e.Name) + len(e.Target)
	}
	if size > maxPage+wire.MaxPayload {
		t.Errorf("a page of %d bytes", size)
	}
}

func TestErrorsFromInsideAreCutAndCleaned(t *testing.T) {
	client := liar(t, func(conn *net.UnixConn, _ []byte) {
		_, _ = conn.Write(frames(wire.KindError, wire.Error{Code: "strange", Message: "\x1b[31mred\nforged line\u202e" + strings.Repeat("x", 50_000)}))
	})
	_, err := client.Stat(t.Context(), "/f")
	if !errors.Is(err, env.ErrUnavailable) || len(err.Error()) > maxMessage+200 || strings.ContainsAny(err.Error(), "\x1b\n\u202e") {
		t.Errorf("%.200q (%d bytes)", err, len(err.Error()))
	}
}

func TestClassTravelsAsTheVocabularySpellsIt(t *testing.T) {
	service := env.Service{Name: "a", Command: []string{"x", "y"}, Dir: "/d", Env: map[string]string{"K": "v"}, Start: env.StartAfterClaim, Restart: env.RestartNever}
	probe := env.Probe{Command: []string{"c"}, TCPPort: 1, HTTP: &env.HTTPProbe{Port: 2, Path: "/"}, Timeout: 3, Interval: 4}
	for _, pair := range [][2]any{{service, serviceOf(service)}, {probe, probeOf(probe)}} {
		a, _ := json.Marshal(pair[0])
		b, _ := json.Marshal(pair[1])
		if diff := cmp.Diff(string(a), string(b)); diff != "" {
			t.Error(diff)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add(frames(wire.KindReply, wire.StatReply{Info: entry("f")}, wire.KindData, []byte("x"), wire.KindEnd, wire.End{}))
	f.Add(frames(wire.KindEntries, []wire.FileInfo{entry("a"), entry("b")}, wire.KindEnd, wire.End{More: true}))
	f.Add(frames(wire.KindError, wire.Error{Code: wire.CodeInvalid, Message: "no"}))
	f.Add(frames(wire.KindReply, wire.ExecReply{PID: 3}, wire.KindWindow, []byte{0, 0, 0, 1}, wire.KindExit, wire.Exit{}))
	f.Fuzz(func(t *testing.T, answer []byte) {
		client := NewWithDial(func(context.Context) (Conn, error) { return &script{in: bytes.NewReader(answer)}, nil })
		ctx := t.Context()
		if info, err := client.Stat(ctx, "/f"); err == nil && (info.Name == "" || len(info.Name) > maxName) {
			t.Fatalf("accepted %+v", info)
		}
		if page, err := client.ListDir(ctx, "/", "", 2); err == nil && len(page.Entries) > 2 {
			t.Fatalf("accepted %d entries", len(page.Entries))
		}
		if file, err := client.ReadFile(ctx, "/f", 0, 5); err == nil {
			if n, _ := io.Copy(io.Discard, file); n > 5 {
				t.Fatalf("accepted %d bytes", n)
			}
			_ = file.Close()
		}
		_, _ = client.Run(ctx, Command{Args: []string{"x"}}, nil, nil, nil)
		_, _ = client.Status(ctx)
	})
}

// script is a connection that answers what it was given.
type script struct {
	net.Conn
	in io.Reader
}

func (s *script) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error)      { return len(b), nil }
func (s *script) Close() error                     { return nil }
func (s *script) CloseWrite() error                { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// Whoever answers that the slot is ready and then keeps the connection delays nothing
// for long.
func TestAnEnvinitThatDoesNotHangUpIsLeftSoon(t *testing.T) {
	left := make(chan struct{})
	defer close(left)
	client := liar(t, func(conn *net.UnixConn, _ []byte) {
		_, _ = conn.Write(frames(wire.KindReply, wire.ReadyReply{}))
		<-left
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := client.AwaitReady(ctx); err != nil {
		t.Error(err)
	}
}
