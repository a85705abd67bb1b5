package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// ServeInternet answers on every address of its network namespace until ctx
// ends: HTTP on 80 and 8080, echo by TCP on 7 and 3333 and by UDP on 7 and 443,
// and DNS on 53, where the name ip-10-0-0-1.test has the address 10.0.0.1,
// names below nowhere.test do not exist, and every other name is that of
// a public host.
func ServeInternet(ctx context.Context) error {
	s := servers{ctx: ctx, failed: make(chan error, 16)}
	for _, port := range []int{HTTPPort, 8080} {
		s.http(port)
	}
	for _, port := range []int{EchoPort, StratumPort} {
		s.tcp(port, func(conn net.Conn) {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // ends when the peer does
		})
	}
	for _, port := range []int{EchoPort, 443} {
		s.udp(port, func(msg []byte) []byte { return msg })
	}
	handle := func(query []byte) []byte { return respond(query, internetName) }
	s.udp(DNSPort, handle)
	s.tcp(DNSPort, func(conn net.Conn) { serveDNSStream(conn, handle) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// internetName is the internet's whole directory.
func internetName(name string) ([]netip.Addr, byte) {
	if strings.HasSuffix("."+name, ".nowhere.test") {
		return nil, rcodeNoName
	}
	if rest, ok := strings.CutPrefix(strings.TrimSuffix(name, ".test"), "ip-"); ok {
		if a, err := netip.ParseAddr(strings.ReplaceAll(rest, "-", ".")); err == nil && a.Is4() {
			return []netip.Addr{a}, rcodeOK
		}
	}
	return []netip.Addr{netip.MustParseAddr(PublicAddresses[2])}, rcodeOK
}

// servers share an end and a place for the first fault. They live as long as
// the process, whose end is theirs.
type servers struct {
	ctx    context.Context
	failed chan error
}

func (s *servers) listen(port int) net.Listener {
	l, err := new(net.ListenConfig).Listen(s.ctx, "tcp4", fmt.Sprintf(":%d", port))
	if err != nil {
		s.failed <- err
		return nil
	}
	return l
}

func (s *servers) http(port int) {
	l := s.listen(port)
	if l == nil {
		return
	}
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
			fmt.Fprintf(w, "internet %v from %s %s %s\n", local, r.RemoteAddr, r.Method, r.URL.Path)
		}),
	}
	go func() { s.failed <- server.Serve(l) }()
}

func (s *servers) tcp(port int, serve func(net.Conn)) {
	l := s.listen(port)
	if l == nil {
		return
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				s.failed <- err
				return
			}
			go serve(conn)
		}
	}()
}

// udp answers each datagram from the address that it was sent to, which for a
// socket on all addresses is for us to say.
func (s *servers) udp(port int, handle func([]byte) []byte) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err == nil {
		err = wantDestination(conn)
	}
	if err != nil {
		s.failed <- err
		return
	}
	go func() {
		buf, oob := make([]byte, maxDNS), make([]byte, 128)
		for {
			n, oobn, _, peer, err := conn.ReadMsgUDPAddrPort(buf, oob)
			if err != nil {
				s.failed <- err
				return
			}
			if reply := handle(buf[:n]); reply != nil {
				_, _, err := conn.WriteMsgUDPAddrPort(reply, fromDestination(oob[:oobn]), peer)
				if err != nil && errors.Is(err, net.ErrClosed) {
					return
				}
			}
		}
	}()
}
