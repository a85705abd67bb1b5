package ctrd

import (
	"errors"
	"slices"
	"testing"

	"hearth/internal/env"
)

func TestNodeForgetLeavesNothingInTheNamespace(t *testing.T) {
	n := startNode(t)
	ctx := t.Context()
	m := n.run()
	if _, err := n.r.Forget(ctx); !errors.Is(err, env.ErrState) {
		t.Errorf("forget beside a container = %v, want ErrState", err)
	}
	n.release(m)
	for _, want := range [][]string{{testRef}, nil} { // it may be repeated
		names, err := n.r.Forget(ctx)
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("forget = %v, %v; want %v", names, err, want)
		}
	}
	all, err := n.r.client.NamespaceService().List(ctx)
	if err != nil || slices.Contains(all, n.cfg.Instance) {
		t.Errorf("namespaces = %v, %v", all, err)
	}
}
