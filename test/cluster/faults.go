package cluster

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// StartComponent starts a component that does not run. It returns when an API
// server or a containerd answers; the others are started and no more. A kubelet
// ends at once if its containerd does not answer.
func (c *Cluster) StartComponent(ctx context.Context, name string) error {
	if err := c.startComponent(name); err != nil {
		return err
	}
	if name == APIServer {
		return c.WaitAPI(ctx)
	}
	if node, ok := strings.CutSuffix(name, "/containerd"); ok {
		return c.waitContainerd(ctx, node)
	}
	return nil
}

func (c *Cluster) startComponent(name string) error {
	comp, err := c.component(name)
	if err != nil {
		return err
	}
	if r, err := c.running(name); err != nil || r != nil {
		if err == nil {
			err = fmt.Errorf("%s runs already as process %d", name, r.PID)
		}
		return err
	}
	return c.launch(name, c.inNode(comp.node.Name, "/", comp.argv))
}

// StopComponent ends a component by SIGTERM, or SIGKILL after ten seconds.
// Containers outlive their kubelet and their containerd. Stopping what does not
// run is no error.
func (c *Cluster) StopComponent(name string) error {
	if _, err := c.component(name); err != nil {
		return err
	}
	return c.stop(name, 10*time.Second)
}

// Kill ends a component by SIGKILL.
func (c *Cluster) Kill(name string) error {
	if _, err := c.component(name); err != nil {
		return err
	}
	r, err := c.running(name)
	if err != nil {
		return err
	}
	if r == nil {
		return fmt.Errorf("%s does not run", name)
	}
	if err := r.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !waitGone(*r, 10*time.Second) {
		return fmt.Errorf("process %d (%s) does not end", r.PID, name)
	}
	return nil
}

// Components lists the names that can be started, stopped and killed, and the
// pid of each that runs; 0 for one that does not.
func (c *Cluster) Components() (names []string, pids map[string]int, err error) {
	pids = map[string]int{}
	for _, comp := range c.components() {
		r, err := c.running(comp.name)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, comp.name)
		if r != nil {
			pids[comp.name] = r.PID
		}
	}
	return names, pids, nil
}
