package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// probe tries once. Its error says which part failed and what it said.
func (m *services) probe(ctx context.Context, class *wire.Configure) error {
	deadline := time.Now().Add(probeAttempt)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	p := class.Probe
	switch {
	case len(p.Command) > 0:
		return m.probeCommand(ctx, class, deadline)
	case p.TCPPort != 0:
		conn, err := dialLoopback(p.TCPPort, deadline)
		if err != nil {
			return fmt.Errorf("probe of TCP port %d: %w", p.TCPPort, err)
		}
		return conn.Close()
	case p.HTTP != nil:
		if err := probeHTTP(p.HTTP, deadline); err != nil {
			return fmt.Errorf("probe of http://127.0.0.1:%d%s: %w", p.HTTP.Port, p.HTTP.Path, err)
		}
	case p.File != nil:
		if err := probeFile(p.File); err != nil {
			return fmt.Errorf("probe of file: %w", err)
		}
	}
	return nil
}

// probeFile opens nothing: a fifo or a device must not notice.
func probeFile(p *wire.FileProbe) error {
	info, err := os.Stat(p.Path)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file but %s", p.Path, info.Mode().Type())
	case p.NonEmpty && info.Size() == 0:
		return fmt.Errorf("%s is empty", p.Path)
	}
	return nil
}

func (m *services) probeCommand(ctx context.Context, class *wire.Configure, deadline time.Time) error {
	out, theirs, err := outPipe()
	if err != nil {
		return fmt.Errorf("probe command: make pipe: %w", err)
	}
	defer out.Close()
	c, werr := m.reaper.spawn(process{
		argv: class.Probe.Command, environ: environ(accountOf(0), class.Variables),
		files: [3]uintptr{m.null.Fd(), uintptr(theirs), uintptr(theirs)},
	})
	_ = unix.Close(theirs)
	if werr != nil {
		return fmt.Errorf("probe command: %w", werr)
	}
	var said tail
	_ = out.SetReadDeadline(deadline)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(&said, onlyReader{out})
	}()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	late := false
	select {
	case <-c.done:
	case <-timer.C:
		late = true
	case <-ctx.Done():
		late = true
	}
	if late {
		_ = m.reaper.signal(c, unix.SIGKILL)
		<-c.done
	}
	// What it left in the background may hold the pipe open.
	_ = out.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	<-copied
	code, sig := c.code()
	switch {
	case late:
		return fmt.Errorf("probe command %.128q ran for too long; last output: %q", class.Probe.Command, said.String())
	case sig != 0:
		return fmt.Errorf("probe command %.128q: signal %d; last output: %q", class.Probe.Command, sig, said.String())
	case code != 0:
		return fmt.Errorf("probe command %.128q: code %d; last output: %q", class.Probe.Command, code, said.String())
	}
	return nil
}

// maxStatusLine bounds what is read of an HTTP answer, in bytes.
const maxStatusLine = 1 << 10

// probeHTTP asks by hand: package net/http would be three times this program.
func probeHTTP(p *wire.HTTPProbe, deadline time.Time) error {
	conn, err := dialLoopback(p.Port, deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	path := p.Path
	if path == "" {
		path = "/"
	}
	request := "GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1:" + strconv.Itoa(int(p.Port)) +
		"\r\nUser-Agent: envinit\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	line, err := readLine(conn)
	if err != nil {
		return err
	}
	status, err := parseStatus(line)
	if err != nil {
		return err
	}
	if status < 200 || status > 399 {
		return fmt.Errorf("status %d", status)
	}
	return nil
}

func readLine(r io.Reader) ([]byte, error) {
	var line []byte
	buf := make([]byte, 256)
	for len(line) < maxStatusLine {
		n, err := r.Read(buf)
		line = append(line, buf[:n]...)
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			return line[:i], nil
		}
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("answer ended before its first line did: %.64q", line)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("answer has no line in its first %d bytes: %.64q", maxStatusLine, line)
}
