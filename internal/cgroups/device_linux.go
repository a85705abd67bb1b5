package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// sysBlock has a link for each block device, by its number.
const sysBlock = "/sys/dev/block"

// devicesOf finds the whole block devices below the file systems that hold paths,
// as "major:minor", each once. A path whose file system has no such device (a
// network's, an overlay, btrfs and others with a number of their own) makes all of
// them useless: what is written there could not be bounded. Then why says which.
func devicesOf(paths []string, sys string) (devices []string, why string) {
	for _, p := range paths {
		d, err := deviceOf(p, sys)
		if err != nil {
			return nil, err.Error()
		}
		if !slices.Contains(devices, d) {
			devices = append(devices, d)
		}
	}
	if len(devices) == 0 {
		return nil, "no path is configured"
	}
	return devices, ""
}

// Devices are the disks that hold the paths' file systems, as "major:minor". The
// error, which says why there is none, matches env.ErrUnsupported.
func Devices(paths ...string) ([]string, error) {
	devices, why := devicesOf(paths, sysBlock)
	if len(devices) == 0 {
		return nil, &env.UnsupportedError{Feature: "resources.io", Needs: needsDevice + why}
	}
	return devices, nil
}

func deviceOf(path, sys string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", path, err)
	}
	return wholeDevice(path, fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), sys)
}

// wholeDevice is the disk of a partition: limits are of disks only
// (block/blk-cgroup.c, blkg_conf_open_bdev).
func wholeDevice(path, number, sys string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(sys, number))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the file system of %s (%s) has none", path, number)
	}
	if err != nil {
		return "", fmt.Errorf("find block device of %s: %w", path, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
		return number, nil //nolint:nilerr // a disk itself
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return "", fmt.Errorf("find disk of %s: %w", path, err)
	}
	return strings.TrimSpace(string(b)), nil
}
