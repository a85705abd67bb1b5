package storetest

import (
	"testing"

	"hearth/internal/fleet"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	for name, without := range map[string]bool{"with join tokens": false, "without": true} {
		t.Run(name, func(t *testing.T) {
			stores := map[*testing.T]*Memory{}
			Run(t, Options{
				NoJoinTokens: without,
				Open: func(t *testing.T) fleet.Store {
					t.Helper()
					if stores[t] == nil {
						stores[t] = NewMemory()
						stores[t].NoJoinTokens = without
					}
					return stores[t]
				},
				Crash: func(_ *testing.T, s fleet.Store) { s.(*Memory).Crash() },
			})
		})
	}
}
