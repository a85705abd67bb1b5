package cluster

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountDisk mounts the node's disk below its directory, in this mount namespace.
// What is deleted there is given back to the machine at once (discard).
func (n Node) mountDisk() error {
	device, err := attach(n.path(diskFile))
	if err != nil {
		return fmt.Errorf("attach the disk of %s: %w", n.Name, err)
	}
	defer device.Close() // the mount keeps it in use
	root := n.path("root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	return mount(device.Name(), root, "ext4", 0, "discard")
}

// attach binds a file to a free loop device, which is free again when nobody
// has it open or mounted. Direct I/O, so that nothing is cached twice.
func attach(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: diskBlock}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	for range 10 {
		i, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", i), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody was faster
			return nil, fmt.Errorf("configure %s: %w", device.Name(), err)
		}
	}
	return nil, errors.New("each free loop device was taken by somebody else")
}
