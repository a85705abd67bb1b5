package cgroups

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime is what the slot's processes have used of the CPUs so far, those that
// have ended too. Cgroup2 counts it in every cgroup, whoever has the controllers
// (cgroup_base_files in kernel/cgroup/cgroup.c). It is one opening and one short
// read.
func (g *Group) CPUTime() (time.Duration, error) {
	f, err := openAt(g.dir, "cpu.stat", unix.O_RDONLY)
	if err != nil {
		return 0, g.gone("open cpu.stat", err)
	}
	defer f.Close()
	var buf [512]byte // the line is the first of a file of some 200 bytes
	n, err := f.Read(buf[:])
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, g.gone("read cpu.stat", err)
	}
	v, ok := number(string(buf[:n]), "usage_usec")
	if !ok {
		return 0, fmt.Errorf("read cpu.stat of slot %s: no usage_usec in it", g.slot)
	}
	return micros(v), nil
}
