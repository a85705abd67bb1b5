package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// UnixURL is the base URL for clients made by UnixClient.
const UnixURL = "http://hearth"

// UnixClient makes an HTTP client of the Unix socket at path: calls over lasting
// connections of HTTP/1.1, of which each has one at a time, streams over one of
// HTTP/2. It connects at the first call; close it with CloseIdleConnections.
func UnixClient(path string) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	var d net.Dialer
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
	t := transport(protocols)
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "") }
	return &http.Client{Transport: byKind{calls: &unary{dial: dial}, streams: cutting{t}}}
}

// tlsLines is how many calls to a host have a connection of their own at once. A
// handshake takes milliseconds of a processor, so that more would cost a burst more
// than they save.
const tlsLines = 4

// TLSClient makes an HTTP client that speaks TLS as cfg says. Calls go over a few
// lasting connections of HTTP/1.1, of which each has one at a time; streams, and
// calls beyond those, over one of HTTP/2. The base URL is "https://host:port".
func TLSClient(cfg *tls.Config) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	d := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	t := transport(protocols)
	t.TLSClientConfig = cfg
	t.DialContext = d.DialContext
	return &http.Client{Transport: byKind{calls: &unary{dial: dialTLS(d, cfg), most: tlsLines}, streams: cutting{t}}}
}

// Writes sends requests that change something to a server that speaks TLS as cfg
// says, as TLSClient sends calls. Every other request goes by rest, and so do those
// for which there is no connection.
func Writes(cfg *tls.Config, rest http.RoundTripper) http.RoundTripper {
	d := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	return writes{calls: &unary{dial: dialTLS(d, cfg), most: tlsLines}, rest: rest}
}

// dialTLS makes connections for HTTP/1.1.
func dialTLS(d *net.Dialer, cfg *tls.Config) func(ctx context.Context, host string) (net.Conn, error) {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	over := &tls.Dialer{NetDialer: d, Config: cfg}
	return func(ctx context.Context, host string) (net.Conn, error) {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), "443")
		}
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		c, err := over.DialContext(ctx, "tcp", host)
		if err != nil {
			return nil, err
		}
		if err := boundSilence(c, silence); err != nil {
			return nil, errors.Join(fmt.Errorf("bound the silence of %s: %w", host, err), c.Close())
		}
		return c, nil
	}
}

const (
	handshakeTimeout = 5 * time.Second
	// silence is how long a peer may leave unacknowledged what was sent to it: a dead
	// one is noticed even if no call's deadline ends first.
	silence = 15 * time.Second
)

// cutting ends streams whose context has ended. The HTTP/2 client of net/http
// looks at the context again only when the request's body gives it something,
// which of a stream that waits for its peer is never.
type cutting struct{ *http.Transport }

func (c cutting) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.ContentLength >= 0 {
		return c.Transport.RoundTrip(r)
	}
	// Closed, and not ended: the peer sees a stream that was reset, not one that
	// was complete.
	stop := context.AfterFunc(r.Context(), func() { _ = r.Body.Close() })
	resp, err := c.Transport.RoundTrip(r)
	if err != nil {
		stop()
		return nil, err
	}
	resp.Body = watched{resp.Body, stop}
	return resp, nil
}

// watched lets go of the context when the stream is closed.
type watched struct {
	io.ReadCloser
	stop func() bool
}

func (w watched) Close() error {
	w.stop()
	return w.ReadCloser.Close()
}

func transport(p *http.Protocols) *http.Transport {
	return &http.Transport{
		Protocols:           p,
		DisableCompression:  true,
		TLSHandshakeTimeout: handshakeTimeout,
		IdleConnTimeout:     10 * time.Minute,
		MaxIdleConnsPerHost: 4,
		HTTP2: &http.HTTP2Config{
			// Of a connection there is no bound but that of its streams: one that its
			// caller does not read must not hold up the others.
			MaxReceiveBufferPerStream: 1 << 20,
			SendPingTimeout:           silence - 5*time.Second,
			PingTimeout:               5 * time.Second,
		},
	}
}
