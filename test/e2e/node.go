package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
	"hearth/test/stage"
)

// agent is the operator's access to one node: its socket, as root there.
type agent struct {
	hearthv1connect.NodeServiceClient
	http *http.Client
}

// agentOf reaches the socket through the root directory of a process of the
// node. It connects anew each time, since agents come and go.
func (w *world) agentOf(node string) (agent, error) {
	root, err := w.cluster.Root(node)
	if err != nil {
		return agent{}, err
	}
	client := rpc.UnixClient(root + "/run/hearth/node.sock")
	return agent{hearthv1connect.NewNodeServiceClient(client, rpc.UnixURL, rpc.ClientOptions()...), client}, nil
}

func (a agent) close() { a.http.CloseIdleConnections() }

// drops are the packets of an environment that were refused on the way out, by
// reason.
func (a agent) drops(ctx context.Context, id string) (map[string]uint64, error) {
	r, err := a.Flows(ctx, &hearthv1.FlowsRequest{Environment: id})
	return r.GetDrops(), err
}

// where is the node on which an environment runs, and its address there.
func (w *world) where(ctl stage.Hearthctl, id string) (node, address string, err error) {
	var e struct {
		Node    string `json:"node"`
		Address string `json:"address"`
	}
	out, err := ctl.Run("get", id, "-o", "json")
	if err != nil {
		return "", "", err
	}
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		return "", "", fmt.Errorf("hearthctl get: %w", err)
	}
	return e.Node, e.Address, nil
}

// installProbe puts the probe into an environment.
func (w *world) installProbe(ctl stage.Hearthctl, id, path string) error {
	if _, err := ctl.Run("cp", w.cluster.Probe(), id+":"+path); err != nil {
		return err
	}
	_, err := ctl.Run("exec", id, "--", "chmod", "755", path)
	return err
}

// dial tries TCP addresses from inside an environment and returns those that
// accepted.
func (w *world) dial(ctl stage.Hearthctl, id string, addrs ...string) (open []string, err error) {
	out, err := ctl.Run(append([]string{"exec", id, "--", "/probe", "dial"}, addrs...)...)
	return opened(out), err
}

func opened(out string) (open []string) {
	for l := range strings.Lines(out) {
		if addr, ok := strings.CutSuffix(strings.TrimSpace(l), " open"); ok {
			open = append(open, addr)
		}
	}
	return open
}

const short = 10 * time.Second
