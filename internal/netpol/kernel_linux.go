package netpol

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

// openKernel loads the programs over the pinned maps, or makes the maps. It
// attaches nothing. The map specification is that of one island's flows.
func openKernel(cfg Config) (*bpf.IslandObjects, *ebpf.MapSpec, error) {
	if err := preparePins(cfg.PinDir); err != nil {
		return nil, nil, err
	}
	spec, err := bpf.LoadIsland()
	if err != nil {
		return nil, nil, fmt.Errorf("read island programs: %w", err)
	}
	if err := configure(spec, cfg); err != nil {
		return nil, nil, err
	}
	for name, m := range spec.Maps {
		if name[0] == '.' { // .rodata is each load's own
			continue
		}
		m.Pinning = ebpf.PinByName
		if err := keepSize(m, filepath.Join(mapDir(cfg), name)); err != nil {
			return nil, nil, err
		}
	}
	objs := &bpf.IslandObjects{}
	err = spec.LoadAndAssign(objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: mapDir(cfg)}})
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return nil, nil, otherMaps(mapDir(cfg), err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return nil, nil, fmt.Errorf("load island programs: %w: %w", &env.UnsupportedError{Feature: "island programs", Needs: "Linux 6.1 with BPF"}, err)
	case err != nil:
		return nil, nil, fmt.Errorf("load island programs: %w", err)
	}
	return objs, spec.Maps[bpf.IslandMapFlows].InnerMap, nil
}

// CheckMaps says whether a Manager could take over the pinned maps, and changes
// nothing: env.ErrState if they are of another version. None is fine.
func CheckMaps(cfg Config) error {
	cfg = cfg.withDefaults()
	spec, err := bpf.LoadIsland()
	if err != nil {
		return fmt.Errorf("read island programs: %w", err)
	}
	if err := configure(spec, cfg); err != nil {
		return err
	}
	for name, s := range spec.Maps {
		if name[0] == '.' {
			continue
		}
		if err := checkMap(s, filepath.Join(mapDir(cfg), name)); err != nil {
			return err
		}
	}
	return nil
}

func checkMap(spec *ebpf.MapSpec, path string) error {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", path, err)
	}
	defer m.Close()
	spec.MaxEntries = m.MaxEntries() // see keepSize
	if err := spec.Compatible(m); err != nil {
		return otherMaps(filepath.Dir(path), err)
	}
	return nil
}

func otherMaps(dir string, err error) error {
	return fmt.Errorf("%w: the maps in %s are of another version: release the environments and clean the instance up: %w", env.ErrState, dir, err)
}

func mapDir(cfg Config) string  { return filepath.Join(cfg.PinDir, "maps") }
func linkDir(cfg Config) string { return filepath.Join(cfg.PinDir, "links") }

func preparePins(dir string) error {
	for _, d := range []string{"maps", "links"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w: mount a bpffs there (mount -t bpf bpf /sys/fs/bpf)", err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("stat pin directory %s: %w", dir, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin directory %s: %w", dir, &env.UnsupportedError{Feature: "pinning", Needs: "a bpffs there (mount -t bpf bpf /sys/fs/bpf)"})
	}
	return nil
}

func configure(spec *ebpf.CollectionSpec, cfg Config) error {
	unjudged := uint32(0)
	if cfg.UnsafeAllowOpen {
		unjudged = 1
	}
	flow := uint64(time.Second) / uint64(cfg.NewFlowRate)
	payload := uint64(time.Second) / uint64(cfg.PayloadRate)
	for name, value := range map[string]any{
		bpf.IslandVarGateway:           addrWord(cfg.gateway()),
		bpf.IslandVarAllowUnjudged:     unjudged,
		bpf.IslandVarFlowIntervalNs:    flow,
		bpf.IslandVarFlowBurstNs:       uint64(4 * time.Second),
		bpf.IslandVarPayloadIntervalNs: payload,
		bpf.IslandVarPayloadBurstNs:    uint64(time.Second),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("configure %s: %w", name, err)
		}
	}
	for _, name := range []string{bpf.IslandMapIslands, bpf.IslandMapStats, bpf.IslandMapFlows} {
		spec.Maps[name].MaxEntries = uint32(cfg.MaxIslands)
	}
	spec.Maps[bpf.IslandMapFlows].InnerMap.MaxEntries = uint32(cfg.FlowQuota)
	spec.Maps[bpf.IslandMapPayloads].MaxEntries = uint32(cfg.PayloadBytes)
	return nil
}

// keepSize lets a pinned map keep its room: a changed size takes effect when
// the last island is gone, not by refusing to start.
func keepSize(spec *ebpf.MapSpec, path string) error {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", path, err)
	}
	spec.MaxEntries = m.MaxEntries()
	return m.Close()
}
