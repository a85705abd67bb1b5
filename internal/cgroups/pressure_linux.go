package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// PressureBounds are parts of the last ten seconds, in percent, in which some
// task of the node waited for the resource (avg10 of "some";
// Documentation/accounting/psi.rst). 100 or more is no bound.
type PressureBounds struct{ CPU, Memory, IO int }

// Pressure reads how much the node's tasks wait for its resources.
type Pressure struct {
	dir    string
	bounds PressureBounds
}

// pressureDir is where the kernel tells it.
const pressureDir = "/proc/pressure"

// OpenPressure tries to read the node's pressure once. A kernel that does not
// tell it is an env.UnsupportedError.
func OpenPressure(bounds PressureBounds) (*Pressure, error) {
	p := &Pressure{dir: pressureDir, bounds: bounds}
	_, err := p.Pressed()
	return p, err
}

// Pressed says which resource the node is short of by the bounds, and by how
// much; "" is none.
func (p *Pressure) Pressed() (string, error) {
	for _, r := range []struct {
		name  string
		bound int
	}{{"memory", p.bounds.Memory}, {"io", p.bounds.IO}, {"cpu", p.bounds.CPU}} {
		got, err := p.read(r.name)
		if err != nil {
			return "", err
		}
		if got > float64(r.bound) {
			return fmt.Sprintf("the node's tasks wait for %s in %.0f %% of their time, more than refill.%sPressure (%d %%)", r.name, got, r.name, r.bound), nil
		}
	}
	return "", nil
}

// read returns one resource's avg10 in percent.
func (p *Pressure) read(resource string) (float64, error) {
	b, err := os.ReadFile(filepath.Join(p.dir, resource))
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return 0, &env.UnsupportedError{Feature: "pressure stall information", Needs: "CONFIG_PSI, and psi=1 on the kernel's command line where it is off by default"}
	case err != nil:
		return 0, fmt.Errorf("read pressure: %w", err)
	}
	got, ok := avg10(string(b))
	if !ok {
		return 0, fmt.Errorf("read pressure of %s: %.64q has no avg10", resource, b)
	}
	return got, nil
}

// avg10 reads "some avg10=0.12 avg60=…".
func avg10(text string) (float64, bool) {
	for line := range strings.Lines(text) {
		rest, some := strings.CutPrefix(line, "some avg10=")
		if !some {
			continue
		}
		value, _, _ := strings.Cut(rest, " ")
		got, err := strconv.ParseFloat(value, 64)
		return got, err == nil
	}
	return 0, false
}
