package netpol

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"hearth/internal/env"
)

func TestKernelMapsOfAnotherVersionAreFoundWithoutTouchingThem(t *testing.T) {
	s := newSite(t, func(*Config) {})
	if err := CheckMaps(s.cfg); err != nil {
		t.Errorf("the maps of a Manager that runs: %v", err)
	}
	larger := s.cfg
	larger.MaxIslands *= 2
	if err := CheckMaps(larger); err != nil {
		t.Errorf("with more room configured: %v", err)
	}
	none := s.cfg
	none.PinDir = filepath.Join(s.cfg.PinDir, "none")
	if err := CheckMaps(none); err != nil {
		t.Errorf("without any: %v", err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	other := s.cfg
	other.PinDir = filepath.Join(s.cfg.PinDir, "other")
	path := filepath.Join(mapDir(other), "islands")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
	if err := CheckMaps(other); !errors.Is(err, env.ErrState) {
		t.Errorf("maps of another version: %v, want ErrState", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the map: %v", err)
	}
}
