package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hearth/internal/rpc/pki"
)

// Server serves one handler on one or more listeners.
type Server struct {
	http     *http.Server
	stop     context.CancelFunc // ends every stream
	stopping context.Context    // ends by stop
	active   atomic.Int64       // requests in a handler
	retiring sync.WaitGroup
}

// NewServer makes a server that has no listener yet. The handler's contexts
// answer CallerFrom.
func NewServer(log *slog.Logger, handler http.Handler) *Server {
	stopping, stop := context.WithCancel(context.Background())
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // curl
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // only Unix sockets come without TLS
	s := &Server{stop: stop, stopping: stopping}
	s.http = &http.Server{
		Handler:           s.counted(StreamsEnd(stopping, withCaller(handler))),
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       10 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 1024,
			// Streams whose input nobody takes keep so much each of what their
			// connection has, which serves the calls about other environments too.
			MaxReceiveBufferPerStream:     128 << 10,
			MaxReceiveBufferPerConnection: 4<<20 - 1,
			// A peer that vanished without a word is found within a minute.
			SendPingTimeout: 45 * time.Second,
			PingTimeout:     15 * time.Second,
		},
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: callerOfConn,
	}
	return s
}

// counted lets Shutdown see when the last request has ended.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.active.Add(1)
		defer s.active.Add(-1)
		next.ServeHTTP(w, r)
	})
}

// Serve answers on l until Shutdown, and then returns nil. The listener must be
// one of ListenUnix or ListenTLS.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Retire stops listening, and tells the peers of open connections to make their
// next call elsewhere. Calls and streams under way go on until Shutdown, which
// must follow.
func (s *Server) Retire() {
	s.retiring.Go(func() { _ = s.http.Shutdown(s.stopping) }) // Shutdown closes what is left
}

// flushed is how long a finished answer may take to leave this process.
const flushed = 50 * time.Millisecond

// Shutdown stops listening, ends the streams, lets unary calls finish until ctx
// ends, and then closes the connections. It does not wait for idle HTTP/2
// connections, which net/http keeps for another second.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	s.retiring.Wait()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.http.Shutdown(ctx) }()
	tick := time.NewTicker(flushed)
	defer tick.Stop()
	idle := 0
	for {
		select {
		case err := <-done:
			cancel()
			if err != nil {
				return errors.Join(err, s.http.Close())
			}
			return nil
		case <-tick.C:
			if s.active.Load() > 0 {
				idle = 0
				continue
			}
			if idle++; idle < 2 {
				continue // a request may be between the connection and its handler
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				return errors.Join(err, s.http.Close())
			}
			return s.http.Close()
		}
	}
}

// StreamsEnd cancels the context of every stream, and ends its reads, when
// stopping ends. Without it one open stream would hold up the whole shutdown.
func StreamsEnd(stopping context.Context, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !streams(r) {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		rc := http.NewResponseController(w)
		stopped := make(chan struct{})
		undo := context.AfterFunc(stopping, func() {
			defer close(stopped)
			cancel()
			_ = rc.SetReadDeadline(time.Now()) // HTTP/1.1 may refuse; the context has ended anyway
		})
		defer func() {
			if !undo() {
				<-stopped // w must not be used once this handler returned
			}
		}()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func streams(r *http.Request) bool {
	ct := r.Header.Get("Content-Type")
	return strings.HasPrefix(ct, "application/connect+") || strings.HasPrefix(ct, "application/grpc")
}

// ListenTLS listens on a TCP address with TLS 1.3. The server's certificate is
// asked of source at each handshake, so that rotation needs no restart. A
// client's certificate is verified if it gives one; whether one is needed is
// each handler's decision (see CallerFrom).
func ListenTLS(addr string, source *pki.Source) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return OverTLS(l, source), nil
}

// OverTLS is ListenTLS with a TCP listener that is there already.
func OverTLS(l net.Listener, source *pki.Source) net.Listener {
	return tls.NewListener(l, source.ServerConfig("h2", "http/1.1"))
}
