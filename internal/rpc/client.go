package rpc

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
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
	dial := func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
	t := transport(protocols)
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
	return &http.Client{Transport: byKind{calls: &unary{dial: dial}, streams: cutting{t}}}
}

// TLSClient makes an HTTP client that speaks HTTP/2 over TLS as cfg says, one
// lasting connection a host. The base URL is "https://host:port".
func TLSClient(cfg *tls.Config) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	t := transport(protocols)
	t.TLSClientConfig = cfg
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	return &http.Client{Transport: cutting{t}}
}

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
		TLSHandshakeTimeout: 5 * time.Second,
		IdleConnTimeout:     10 * time.Minute,
		MaxIdleConnsPerHost: 4,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     1 << 20,
			MaxReceiveBufferPerConnection: 4<<20 - 1,
			// A dead peer is noticed in 15 s even if no call's deadline ends first.
			SendPingTimeout: 10 * time.Second,
			PingTimeout:     5 * time.Second,
		},
	}
}
