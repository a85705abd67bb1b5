package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"hearth/test/stage"
)

func writeFile(path, content string) error { return os.WriteFile(path, []byte(content), 0o600) }

// nothingLeft compares every node with what it was with full pools.
func (w *world) nothingLeft(ctx context.Context) (left int, err error) {
	for _, n := range w.cluster.Nodes() {
		if err := eventually(ctx, 30*time.Second, func() error {
			now, err := w.inventory(n)
			if err != nil {
				return err
			}
			if diff := stage.Compare(w.clean[n], now, w.released); diff != "" {
				return fmt.Errorf("node %s is not as before: %s", n, diff)
			}
			return nil
		}); err != nil {
			return 1, err
		}
	}
	return 0, nil
}
