package env

import (
	"fmt"
	"path"
	"strings"
)

// Mount is a directory of the node that a claim has mounted into its environment.
// What lies there is the node's: no snapshot has it, and a release leaves it.
type Mount struct {
	Name      string `json:"name"`                // of a directory in the node's configuration
	Directory string `json:"directory,omitempty"` // below that; empty is all of it
	Path      string `json:"path"`                // where, inside: absolute
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// MaxMounts is how many mounts one claim may ask for.
const MaxMounts = 16

// maxMountPath bounds both paths of a mount, in bytes.
const maxMountPath = 1024

// CheckMounts refuses with ErrInvalid mounts that no node could make.
func CheckMounts(mounts []Mount) error {
	if len(mounts) > MaxMounts {
		return fmt.Errorf("%w: %d mounts, at most %d", ErrInvalid, len(mounts), MaxMounts)
	}
	for i, m := range mounts {
		if err := m.check(); err != nil {
			return fmt.Errorf("%w: mount %.80q on %.80q: %s", ErrInvalid, m.Name, m.Path, err)
		}
		for _, before := range mounts[:i] {
			if m.Path == before.Path || within(before.Path, m.Path) {
				return fmt.Errorf("%w: the mount on %.80q hides that on %.80q: name it first, or choose another path", ErrInvalid, m.Path, before.Path)
			}
		}
	}
	return nil
}

func (m Mount) check() error {
	switch {
	case m.Name == "":
		return fmt.Errorf("no name of a directory of the node")
	case len(m.Path) > maxMountPath || len(m.Directory) > maxMountPath:
		return fmt.Errorf("a path of more than %d bytes", maxMountPath)
	case strings.ContainsRune(m.Path+m.Directory, 0):
		return fmt.Errorf("a path with a NUL byte")
	case m.Path == "/" || !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path:
		return fmt.Errorf("the path inside must be absolute and clean, such as /data")
	case m.Directory != "" && (path.IsAbs(m.Directory) || path.Clean(m.Directory) != m.Directory || m.Directory == "." || m.Directory == ".." || strings.HasPrefix(m.Directory, "../")):
		return fmt.Errorf("the directory %.80q must be clean and below the node's, such as images/2026", m.Directory)
	}
	for _, taken := range []string{"/proc", "/sys", "/dev", "/run/hearth"} {
		if m.Path == taken || within(m.Path, taken) || within(taken, m.Path) {
			return fmt.Errorf("%s is the node's own", taken)
		}
	}
	if m.Path == "/workspace" {
		return fmt.Errorf("/workspace is the environment's own; choose a path below it or another one")
	}
	return nil
}

// within reports whether the clean path p lies below dir.
func within(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }
