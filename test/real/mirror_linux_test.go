//go:build e2e

package real

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/test/stage"
)

// mirrorName is the host in the image's sources.list.
const mirrorName = "deb.debian.org"

// mirror stands in the stage's internet at the address that the machine knows of
// the real one, and fetches from there what it is asked for. Packages and lists
// are signed, so environments would notice if it lied.
type mirror struct{ addr netip.Addr }

func findMirror(ctx context.Context) (mirror, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", mirrorName)
	if err != nil {
		return mirror{}, fmt.Errorf("find the package mirror: %w", err)
	}
	return mirror{addrs[0].Unmap()}, nil
}

// serve listens in the network namespace of the process, and dials out in its
// own: no packet of an environment leaves the stage.
func (m mirror) serve(pid int) (end func() error, err error) {
	var web net.Listener
	var names net.PacketConn
	err = within(pid, func() (err error) {
		if web, err = net.Listen("tcp4", m.addr.String()+":80"); err != nil {
			return err
		}
		names, err = net.ListenPacket("udp4", stage.Resolver+":53")
		return err
	})
	if err != nil {
		return nil, err
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: mirrorName})
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.HasPrefix(r.URL.Path, "/debian/") {
			http.Error(w, "a package mirror", http.StatusForbidden)
			return
		}
		r.Host = mirrorName
		proxy.ServeHTTP(w, r)
	})}
	ended := make(chan error, 2)
	go func() { ended <- server.Serve(web) }()
	go func() { ended <- m.answer(names) }()
	return func() error {
		err := errors.Join(server.Close(), names.Close())
		for range 2 {
			if e := <-ended; !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, net.ErrClosed) {
				err = errors.Join(err, e)
			}
		}
		return err
	}, nil
}

// within runs f in the network namespace of a process.
func within(pid int, f func() error) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// answer tells the mirror's address to whoever asks for its name, and that of
// nothing else.
func (m mirror) answer(conn net.PacketConn) error {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if reply := m.reply(buf[:n]); reply != nil {
			if _, err := conn.WriteTo(reply, from); err != nil {
				return err
			}
		}
	}
}

// reply answers one question for an address (RFC 1035, sections 4.1 and 3.4.1).
func (m mirror) reply(query []byte) []byte {
	const header, typeA, refused = 12, 1, 5
	end := bytes.IndexByte(query[min(header, len(query)):], 0)
	if end < 0 || len(query) < header+end+5 {
		return nil
	}
	question := query[header : header+end+5]
	reply := append(append([]byte{}, query[:2]...), 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
	reply = append(reply, question...)
	if !strings.EqualFold(string(question[:end+1]), "\x03deb\x06debian\x03org\x00") {
		reply[3] |= refused
		return reply
	}
	if binary.BigEndian.Uint16(question[end+1:]) == typeA {
		reply[7] = 1
		addr := m.addr.As4()
		reply = append(reply, 0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 60, 0, 4)
		reply = append(reply, addr[:]...)
	}
	return reply
}
