package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// claimPath exists while the machine's cgroup of clusters is this one's.
func (o *Options) claimPath() string { return o.path("run/claim") }

// Stop ends every process of the cluster and removes all that it made. It works
// at any stage of starting, and for a cluster whose processes died. Another
// cluster on the machine is left alone.
func (c *Cluster) Stop() error {
	if _, err := os.Stat(c.claimPath()); errors.Is(err, fs.ErrNotExist) {
		return errors.Join(c.restore(), os.RemoveAll(c.Dir))
	}
	return c.ForceStop()
}

// ForceStop is Stop for a machine whose cluster has lost its directory: it ends
// whichever cluster runs there.
func (c *Cluster) ForceStop() error {
	if inside, err := c.inside(); err != nil || inside {
		return errors.Join(err, errors.New("stop cluster: this process runs inside a node and would end with it"))
	}
	begin := time.Now()
	if err := (machine{}).killCgroups(); err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	if err := waitDisksFree(10 * time.Second); err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	if err := c.restore(); err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	c.say("%6.2fs stopped", time.Since(begin).Seconds())
	return nil
}

// inside tells whether this process sees the files of a node. A cluster whose
// anchor is gone has no inside.
func (c *Cluster) inside() (bool, error) {
	pid, err := c.pid(internetHolder)
	if err != nil {
		return false, nil //nolint:nilerr // not running: nothing to be inside of
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, err
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return ours != theirs, err
}
