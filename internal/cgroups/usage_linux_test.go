package cgroups

import (
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/env"
)

// The directories stand in for cgroups of kernels that no test machine runs.
func TestRefusedForksAreCountedOnceWhicheverCgroupTheKernelCountsThemIn(t *testing.T) {
	for name, tc := range map[string]struct {
		version               int
		slotEvents, ctrEvents string
		summed                bool
		want                  int64
	}{
		"v1: where the fork was":                 {1, "max 1\n", "max 4\n", false, 5},
		"v2 before 6.11: where the fork was":     {2, "max 0\n", "max 4\n", false, 4},
		"v2 since 6.11: summed up to the slot's": {2, "max 4\n", "max 4\n", true, 4},
	} {
		t.Run(name, func(t *testing.T) {
			slot := env.NewSlotID()
			root := t.TempDir()
			ctr := filepath.Join(root, string(slot), containerName)
			if err := os.MkdirAll(ctr, 0o755); err != nil {
				t.Fatal(err)
			}
			for dir, events := range map[string]string{filepath.Dir(ctr): tc.slotEvents, ctr: tc.ctrEvents} {
				place(t, filepath.Join(dir, "pids.events"), events)
				if tc.summed {
					place(t, filepath.Join(dir, "pids.events.local"), "max 0\n")
				}
			}
			dir, err := openDir(root)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dir.Close() }()
			g := &Group{slot: slot, tree: &Tree{roots: []treeRoot{{hierarchy{version: tc.version, controllers: []string{"pids"}}, dir}}}}
			u, err := g.Usage()
			if err != nil || u.PIDsRefused != tc.want {
				t.Errorf("refused %d, %v; want %d", u.PIDsRefused, err, tc.want)
			}
		})
	}
}

func place(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
