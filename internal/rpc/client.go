package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// UnixURL is the base URL for clients made by UnixClient.
const UnixURL = "http://hearth"

// UnixClient makes an HTTP client that speaks HTTP/2 over one lasting
// connection to the Unix socket at path. It connects at the first call; close it
// with CloseIdleConnections.
func UnixClient(path string) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	var d net.Dialer
	t := transport(protocols)
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", path)
	}
	return &http.Client{Transport: t}
}

// TLSClient makes an HTTP client that speaks HTTP/2 over TLS as cfg says, one
// lasting connection a host. The base URL is "https://host:port".
func TLSClient(cfg *tls.Config) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	t := transport(protocols)
	t.TLSClientConfig = cfg
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	return &http.Client{Transport: t}
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
