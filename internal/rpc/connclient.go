package rpc

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"hearth/internal/env"
)

// ConnClient is a UnixClient over a connection that is there already. When it
// ends, every further call is env.ErrUnavailable: another peer may serve the
// path by then. CloseIdleConnections closes it if a call was made.
func ConnClient(conn net.Conn) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	only := make(chan net.Conn, 1)
	only <- conn
	t := transport(protocols)
	t.DialContext = func(context.Context, string, string) (net.Conn, error) {
		select {
		case c := <-only:
			return c, nil
		default:
			return nil, fmt.Errorf("%w: the connection has ended", env.ErrUnavailable)
		}
	}
	return &http.Client{Transport: cutting{t}}
}
