package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Each node has a disk of its own: an ext4 file system in a sparse file, on a
// loop device. Kubelet measures the file system that its directories are on,
// and evicts pods when that is short of space or inodes. Nodes that shared the
// machine's would come under pressure together, by what anybody else writes,
// and a test could not fill one without filling all.
//
// The disk is mounted in the node's mount namespace alone, and the loop device
// frees itself after its last mount. So whatever ends the node's processes
// gives it back, also for a cluster whose directory is lost.

// diskFile is a name that no other loop device's file has.
const diskFile = "hearth-cluster-disk.ext4"

const (
	// defaultNodeDisk is that of an ordinary node. Marks are parts of the whole,
	// so on a small disk a process writes past them between two looks.
	defaultNodeDisk = 64 << 30
	leastNodeDisk   = 1 << 30
	// diskBlock is also what the device asks of direct I/O.
	diskBlock = 4096
	// diskInodes are few for the size, so that a test uses them up in seconds.
	// Images and pods need a few thousand.
	diskInodes = 512 << 10
)

// makeDisks makes a file system for each node. A new file reads as zeros, so
// nothing of it is written but what differs.
func (o *Options) makeDisks() error {
	for _, n := range o.nodes() {
		path := n.path(diskFile)
		if err := sparse(path, o.NodeDisk); err != nil {
			return err
		}
		mke2fs := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", fmt.Sprint(diskBlock), "-N", fmt.Sprint(diskInodes),
			"-L", n.Name, "-E", "assume_storage_prezeroed=1", path)
		if _, err := output(mke2fs); err != nil {
			return fmt.Errorf("make file system of %s: %w", n.Name, err)
		}
	}
	return nil
}

// sparse makes a file of a size that takes no space.
func sparse(path string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}

// waitDisksFree waits until the kernel has let go of the nodes' disks: the
// namespaces that they are mounted in end a little after the last process.
func waitDisksFree(most time.Duration) error {
	for end := time.Now().Add(most); ; time.Sleep(10 * time.Millisecond) {
		used, err := disksInUse()
		if err != nil || len(used) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("a process outside of the cluster holds the disks of its nodes: %s", strings.Join(used, ", "))
		}
	}
}

// disksInUse names the loop devices of nodes, and their files, which may have
// been deleted. There is one cluster on a machine, so they are its own.
func disksInUse() (used []string, err error) {
	const pattern = "/sys/block/loop*/loop/backing_file"
	attached, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	for _, name := range attached {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // freed meanwhile
		}
		if file := strings.TrimSpace(string(b)); strings.HasSuffix(strings.TrimSuffix(file, " (deleted)"), "/"+diskFile) {
			used = append(used, strings.Split(name, "/")[3]+" of "+file)
		}
	}
	return used, nil
}
