package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SetBudget bounds all slots together. It kills nothing: while they use more
// memory than they are to have, their limit stays as it is, the kernel is asked
// to take back what it can, and done is false; call it again later.
func (t *Tree) SetBudget(b Budget) (done bool, err error) {
	t.remaking.Lock()
	defer t.remaking.Unlock()
	t.budget = b
	return t.setBudget(b)
}

// setBudget is SetBudget for whoever holds t.remaking.
func (t *Tree) setBudget(b Budget) (done bool, err error) {
	errs := []error{t.setShare(b.CPUMillis), t.setOwn("pids", b.PIDs, "pids.max", "pids.max")}
	done, err = t.setMemory(b.MemoryBytes)
	if err := errors.Join(append(errs, err)...); err != nil {
		return false, fmt.Errorf("set budget of %s: %w", t.root, err)
	}
	return done, nil
}

// controller finds the hierarchy that has a controller.
func (t *Tree) controller(name string) (treeRoot, bool) {
	for _, r := range t.roots {
		if slices.Contains(r.controllers, name) {
			return r, true
		}
	}
	return treeRoot{}, false
}

// setOwn writes a value into our root's own file of a controller, if the node
// has that.
func (t *Tree) setOwn(controller string, value int64, v1, v2 string) error {
	r, ok := t.controller(controller)
	if !ok || value <= 0 {
		return nil
	}
	file := v2
	if r.version == 1 {
		file = v1
	}
	return writeAt(r.dir, file, itoa(value))
}

func (t *Tree) setShare(millis int64) error {
	r, ok := t.controller("cpu")
	switch {
	case !ok || millis <= 0:
		return nil
	case t.parent != nil: // our own share would be of what the parent gives us
		return t.setParentShare(weightOf(millis))
	case r.version == 1:
		return writeAt(r.dir, "cpu.shares", itoa(sharesOf(millis)))
	default:
		return writeAt(r.dir, "cpu.weight", itoa(weightOf(millis)))
	}
}

func (t *Tree) setParentShare(weight int64) error {
	if t.weight == weight {
		return nil
	}
	if err := t.parent.SetWeight(context.Background(), weight); err != nil {
		return err
	}
	t.weight = weight
	return nil
}

func (t *Tree) setMemory(limit int64) (done bool, err error) {
	r, ok := t.controller("memory")
	if !ok || limit <= 0 {
		return true, nil
	}
	if r.version == 1 {
		return setMemoryV1(r.dir, limit)
	}
	used, err := readNumber(r.dir, "memory.current")
	if err == nil && used > limit { // the limit would kill for what cannot be taken back
		_ = writeAt(r.dir, "memory.reclaim", itoa(used-limit)) // EAGAIN: less than that
		used, err = readNumber(r.dir, "memory.current")
	}
	if err != nil || used > limit {
		return false, err
	}
	// Each slot has its own limit of swap, which is none unless its class asks for
	// some: one here would take that away. An earlier agent may have set it.
	if err := vanished(writeAt(r.dir, "memory.swap.max", "max")); err != nil {
		return false, err
	}
	return true, writeAt(r.dir, "memory.max", itoa(limit))
}

// setMemoryV1 writes the limit of memory and that of memory and swap, which may
// never be the lower one: which comes first depends on where they stand. The
// kernel refuses a limit below what it cannot take back.
func setMemoryV1(dir *os.File, limit int64) (done bool, err error) {
	files := []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	var refused []string
	for _, file := range files {
		switch err := writeAt(dir, file, itoa(limit)); {
		case errors.Is(err, unix.EBUSY):
			return false, nil // in use after all
		case errors.Is(err, unix.EINVAL):
			refused = append(refused, file)
		case errors.Is(err, unix.ENOENT) && file != files[0]:
		case err != nil:
			return false, err
		}
	}
	for _, file := range refused {
		if err := writeAt(dir, file, itoa(limit)); err != nil {
			return false, err
		}
	}
	return true, nil
}

func readNumber(dir *os.File, file string) (int64, error) {
	text, err := readAt(dir, file)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", file, err)
	}
	return v, nil
}
