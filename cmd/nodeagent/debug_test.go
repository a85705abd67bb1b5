package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

const debugID = "e-01ktz0000000000000000000zz"

// askedNode answers the questions of debug.
type askedNode struct {
	hearthv1connect.UnimplementedNodeServiceHandler
}

func (askedNode) List(context.Context, *hearthv1.NodeListRequest) (*hearthv1.NodeListResponse, error) {
	return &hearthv1.NodeListResponse{Environments: []*hearthv1.Environment{{
		Id: debugID, Slot: "s-1", Class: "base", Phase: hearthv1.Phase_PHASE_QUARANTINED, Message: "mining.stratum", Pid: 42,
		ClaimedAt: timestamppb.Now(),
	}}}, nil
}

func (askedNode) Inventory(context.Context, *hearthv1.InventoryRequest) (*hearthv1.InventoryResponse, error) {
	return &hearthv1.InventoryResponse{
		Node: "node-1", Instance: "hearth", Room: &hearthv1.Room{SlotsMax: 8, SlotsUsed: 3, MemoryMaxBytes: 4 << 30, MemoryReservedBytes: 1 << 30},
		Pools: []*hearthv1.Pool{{Class: "base", Revision: strings.Repeat("ab", 32), Want: 2, Ready: 1, Preparing: 1, Message: "image\nnot found"}},
	}, nil
}

func (askedNode) Inspect(_ context.Context, r *hearthv1.InspectRequest) (*hearthv1.InspectResponse, error) {
	if r.GetName() != debugID {
		return nil, fmt.Errorf("%w: %s is neither a slot nor an environment here", env.ErrNotFound, r.GetName())
	}
	return &hearthv1.InspectResponse{Json: []byte(`{"slot":"s-1"}`)}, nil
}

func (askedNode) ClaimProfile(context.Context, *hearthv1.ClaimProfileRequest) (*hearthv1.ClaimProfileResponse, error) {
	return &hearthv1.ClaimProfileResponse{Phases: []*hearthv1.PhaseProfile{{
		Name: "thaw", Claims: 200, P50: durationpb.New(40 * time.Microsecond), Max: durationpb.New(1250 * time.Microsecond),
	}}}, nil
}

func (askedNode) Flows(context.Context, *hearthv1.FlowsRequest) (*hearthv1.FlowsResponse, error) {
	return &hearthv1.FlowsResponse{
		Flows:          []*hearthv1.Flow{{Protocol: "tcp", Source: "100.96.0.2:5000", Destination: "198.51.100.1:443", PacketsOut: 7}},
		Drops:          map[string]uint64{"metadata": 3, "private": 0},
		AllowedPackets: 11,
	}, nil
}

func (askedNode) Detections(_ context.Context, r *hearthv1.DetectionsRequest, s *connect.ServerStream[hearthv1.DetectionsResponse]) error {
	return s.Send(&hearthv1.DetectionsResponse{Detection: &hearthv1.Detection{
		Time: timestamppb.New(time.Unix(0, 0)), Rule: "mining.stratum_v1", Severity: "high", Environment: debugID, Pid: 42,
		Command: "xm\x1b[2Jrig", Response: "freeze",
	}})
}

// debugOutput runs debug against a served socket.
func debugOutput(t *testing.T, args ...string) (string, error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "n.sock")
	l, err := rpc.ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	mux := http.NewServeMux()
	mux.Handle(hearthv1connect.NewNodeServiceHandler(askedNode{}, rpc.HandlerOptions(log, rpc.NewMetrics(prometheus.NewRegistry()))...))
	server := rpc.NewServer(log, mux)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	defer func() { _ = server.Shutdown(context.Background()); <-served }()
	return runDebug(socket, args...)
}

func runDebug(socket string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := debugCommand(debugIO{stdout: &out, stderr: &out}, func() (string, error) { return socket, nil })
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(&out)
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func TestDebugAnswersFromTheSocket(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"ps":            {[]string{"ps"}, []string{"ENVIRONMENT", debugID, "quarantined (mining.stratum)", "42"}},
		"pools":         {[]string{"pools"}, []string{"abababababab  ", "image?not found", "slots 3 of 8, memory 1024 of 4096 MiB"}},
		"claim-profile": {[]string{"claim-profile"}, []string{"PHASE", "CLAIMS", "thaw", "200", "0.040", "1.250"}},
		"inspect":       {[]string{"inspect", debugID}, []string{"{\n  \"slot\": \"s-1\"\n}"}},
		"flows":         {[]string{"flows", debugID}, []string{"198.51.100.1:443", "allowed packets: 11", "refused (metadata): 3"}},
		"detections":    {[]string{"detections"}, []string{"1970-01-01T00:00:00Z high     mining.stratum_v1 " + debugID, `command="xm\x1b[2Jrig"`, `response="freeze"`}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := debugOutput(t, tc.args...)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range tc.want {
				if !strings.Contains(out, w) {
					t.Errorf("output lacks %q:\n%s", w, out)
				}
			}
			if strings.Contains(out, "\x1b") {
				t.Errorf("a control character from inside reached the terminal: %q", out)
			}
		})
	}
}

func TestDebugDetectionsAreOneJSONLineEach(t *testing.T) {
	out, err := debugOutput(t, "detections", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Rule, Environment string }
	if err := json.Unmarshal([]byte(out), &d); err != nil || strings.Count(out, "\n") != 1 || d.Rule != "mining.stratum_v1" || d.Environment != debugID {
		t.Errorf("line = %q, %v", out, err)
	}
}

func TestDebugNamesWhatFails(t *testing.T) {
	if _, err := debugOutput(t, "inspect", "nothing"); !errors.Is(err, env.ErrNotFound) || !strings.Contains(err.Error(), "inspect nothing") {
		t.Errorf("unknown name: %v", err)
	}
	if _, err := debugOutput(t, "ps", "-o", "xml"); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("unknown format: %v", err)
	}
	_, err := runDebug(filepath.Join(t.TempDir(), "none.sock"), "ps")
	if !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("no agent: %v", err)
	}
}
