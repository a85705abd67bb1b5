package preflight

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/cgroups"
)

// The limits that only classes ask for: a node without one makes no slots of a
// class that does, and is good for all others.

// cgroupLimit looks for a limit's file, of cgroup v2 or v1; v1 is empty for what
// only v2 has. Nothing is changed to find out: a child has the file only if its
// parent hands the controller down.
func cgroupLimit(mount, controller, v2, v1, since string) result {
	path, hybrid, err := core(mount)
	if err != nil {
		return no(err, cgroupMend)
	}
	mend := cgroupMend + "; classes that ask for it get no slots here"
	if since != "" {
		mend = "boot " + since + " or newer; classes that ask for it get no slots here"
	}
	for _, glob := range []string{filepath.Join(path, "*", v2), filepath.Join(path, "*", "*", v2)} {
		if found, _ := filepath.Glob(glob); len(found) > 0 {
			return result{state: OK, tier: "v2"}
		}
	}
	switch {
	case !hybrid:
		return no(fmt.Errorf("no cgroup has %s", v2), mend)
	case v1 == "":
		return no(errors.New("hybrid layout: the controller "+controller+" is of cgroup v1, which has no such limit"), cgroupMend)
	}
	if unix.Access(filepath.Join(mount, controller, v1), unix.F_OK) != nil {
		return no(fmt.Errorf("no cgroup has %s", v1), mend)
	}
	return result{state: OK, tier: "v1"}
}

// cgroupIO also wants a disk below the environments' files.
func cgroupIO(mount, stateDir string) result {
	res := cgroupLimit(mount, "io", "io.max", "", "")
	if _, hybrid, err := core(mount); err == nil && hybrid {
		res = cgroupLimit(mount, "blkio", "io.max", "blkio.throttle.read_bps_device", "a kernel with CONFIG_BLK_DEV_THROTTLING")
	}
	if res.state != OK || stateDir == "" {
		return res
	}
	devices, err := cgroups.Devices(existing(stateDir))
	if err != nil {
		return no(err, "keep the state directory on a disk of its own or on ext4 or xfs; classes that ask for limits of input and output get no slots here")
	}
	res.detail = fmt.Sprint(devices)
	if res.tier == "v1" {
		res.state, res.mend = Degraded, cgroupMend
		res.detail += ": what goes through the page cache is not bounded when it is written"
	}
	return res
}

// openFiles is how many descriptors a process of an environment can have at most.
func openFiles() result {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return no(err, "")
	}
	return yes(fmt.Sprint(r.Max))
}
