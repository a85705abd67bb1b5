package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"hearth/internal/detect"
	"hearth/internal/disk"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/kerneltest"
	"hearth/internal/netpol"
	"hearth/internal/obs"
	"hearth/internal/obs/obstest"
	"hearth/internal/rpc"
	"hearth/internal/warm"
)

// TestMain gives the kernel tests namespaces and a bpffs of their own.
func TestMain(m *testing.M) { kerneltest.Main(m) }

// emptyRuntime and emptyCgroups are a node on which nothing runs.
type emptyRuntime struct{ runtimeAdapter }

func (emptyRuntime) List(context.Context) (map[env.SlotID]int, error) { return nil, nil }

type emptyCgroups struct{ cgroupsAdapter }

func (emptyCgroups) List() ([]env.SlotID, error) { return nil, nil }

// The islands and the sensors load their programs before they describe their
// metrics, so this needs a kernel; it needs the tree as well, so it is no kernel
// test, which would run in the VM without it.
func TestNodeEveryMetricIsDocumented(t *testing.T) {
	kerneltest.Require(t, kerneltest.BPF())
	kerneltest.NoLeaks(t)
	log := slog.New(slog.DiscardHandler)
	islands, err := netpol.Open(netpol.Config{Instance: "hearth-metrics", InitPath: "/proc/self/exe", PayloadBytes: 4096}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := netpol.Remove(context.Background(), netpol.Config{Instance: "hearth-metrics"}, log)
		if err := errors.Join(islands.Close(), err); err != nil {
			t.Error(err)
		}
	})
	engine, err := detect.Open(detect.Config{Respond: func(context.Context, env.Detection) error { return nil }}, islands.PayloadMap(), log)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := durable.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	disks, err := disk.Open(disk.Config{Paths: []string{t.TempDir()}}, log)
	if err != nil {
		t.Fatal(err)
	}
	node, err := warm.Open(t.Context(), warm.Config{
		Node: "n", Instance: "hearth-metrics", BootID: "b", IDBase: 1 << 20, IDCount: 1, MaxSlots: 1,
		WorkDir: t.TempDir(), PrepareTimeout: time.Second, UndoTimeout: time.Second,
	}, dir, nil, warm.Parts{Runtime: emptyRuntime{}, Cgroups: emptyCgroups{}, Islands: islandsAdapter{islands}}, log)
	if err != nil {
		t.Fatal(err)
	}
	reg := obs.NewRegistry(version)
	rpc.NewMetrics(reg)
	reg.MustRegister(node, islands.Collector(), engine, disks, newOwnMetrics()) // as assemble does
	obstest.Documented(t, reg, "../../docs/metrics.md", "The agent")
	for name, err := range map[string]error{"engine": engine.Close(), "disks": disks.Close(), "node": node.Close(), "state": dir.Close()} {
		if err != nil {
			t.Errorf("close %s: %v", name, err)
		}
	}
}
