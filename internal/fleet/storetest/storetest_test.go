package storetest

import (
	"testing"

	"hearth/internal/fleet"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	stores := map[*testing.T]*Memory{}
	Run(t, func(t *testing.T) fleet.Store {
		t.Helper()
		if stores[t] == nil {
			stores[t] = NewMemory()
		}
		return stores[t]
	})
}
