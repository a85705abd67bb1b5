package agentlink

import (
	"crypto/tls"
	"net/http"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
)

// line is one way to a controller: a client that keeps its connection.
type line struct {
	address string
	http    *http.Client
	fleet   hearthv1connect.FleetServiceClient
}

func newLine(address string, cfg *tls.Config) *line {
	client := rpc.TLSClient(cfg)
	return &line{address, client, hearthv1connect.NewFleetServiceClient(client, "https://"+address, rpc.ClientOptions()...)}
}

// hangUp closes the connection; the next call opens another.
func (l *line) hangUp() { l.http.CloseIdleConnections() }
