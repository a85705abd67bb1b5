package cgroups

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestPressureNamesTheResourceThatIsShort(t *testing.T) {
	dir := t.TempDir()
	put := func(name, avg string) {
		t.Helper()
		text := "some avg10=" + avg + " avg60=0.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &Pressure{dir: dir, bounds: PressureBounds{CPU: 90, Memory: 25, IO: 100}}
	put("cpu", "90.00")
	put("memory", "0.00")
	put("io", "100.00")
	if got, err := p.Pressed(); got != "" || err != nil {
		t.Errorf("at the bounds: %q, %v", got, err)
	}
	put("cpu", "90.01")
	if got, err := p.Pressed(); !strings.Contains(got, "wait for cpu in 90 %") || !strings.Contains(got, "refill.cpuPressure") || err != nil {
		t.Errorf("cpu: %q, %v", got, err)
	}
	put("memory", "25.10")
	if got, err := p.Pressed(); !strings.Contains(got, "wait for memory") || err != nil {
		t.Errorf("memory: %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pressed(); err == nil {
		t.Error("nonsense was read as pressure")
	}
	if err := os.Remove(filepath.Join(dir, "memory")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pressed(); !errors.Is(err, env.ErrUnsupported) {
		t.Errorf("without pressure: %v", err)
	}
}

func TestKernelTellsItsPressure(t *testing.T) {
	p, err := OpenPressure(PressureBounds{CPU: 100, Memory: 100, IO: 100})
	if errors.Is(err, env.ErrUnsupported) {
		t.Skip(err)
	}
	if got, err := p.Pressed(); got != "" || err != nil {
		t.Errorf("without bounds: %q, %v", got, err)
	}
}
