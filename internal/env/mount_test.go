package env

import (
	"errors"
	"strings"
	"testing"
)

func TestMountsThatNoNodeCouldMakeAreRefused(t *testing.T) {
	good := Mount{Name: "data", Path: "/data"}
	with := func(change func(*Mount)) []Mount {
		m := good
		change(&m)
		return []Mount{m}
	}
	for name, mounts := range map[string][]Mount{
		"no name":             with(func(m *Mount) { m.Name = "" }),
		"no path":             with(func(m *Mount) { m.Path = "" }),
		"relative path":       with(func(m *Mount) { m.Path = "data" }),
		"path with dots":      with(func(m *Mount) { m.Path = "/data/../etc" }),
		"path with a slash":   with(func(m *Mount) { m.Path = "/data/" }),
		"the root":            with(func(m *Mount) { m.Path = "/" }),
		"proc":                with(func(m *Mount) { m.Path = "/proc" }),
		"below sys":           with(func(m *Mount) { m.Path = "/sys/fs" }),
		"above /run/hearth":   with(func(m *Mount) { m.Path = "/run" }),
		"the workspace":       with(func(m *Mount) { m.Path = "/workspace" }),
		"NUL":                 with(func(m *Mount) { m.Path = "/a\x00b" }),
		"long":                with(func(m *Mount) { m.Path = "/" + strings.Repeat("a", maxMountPath) }),
		"absolute directory":  with(func(m *Mount) { m.Directory = "/etc" }),
		"directory above":     with(func(m *Mount) { m.Directory = "../etc" }),
		"directory itself":    with(func(m *Mount) { m.Directory = "." }),
		"directory with dots": with(func(m *Mount) { m.Directory = "a/../../etc" }),
		"twice":               {good, good},
		"hidden":              {{Name: "data", Path: "/data/deep"}, good},
		"too many":            make([]Mount, MaxMounts+1),
	} {
		if err := CheckMounts(mounts); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, mounts := range map[string][]Mount{
		"none":         nil,
		"plain":        {good},
		"one in other": {good, {Name: "more", Path: "/data/more", Directory: "a/b", ReadOnly: true}},
		"in workspace": {{Name: "data", Path: "/workspace/data"}},
		"dots in name": with(func(m *Mount) { m.Directory = "..a/b.." }),
	} {
		if err := CheckMounts(mounts); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
