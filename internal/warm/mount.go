package warm

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"hearth/internal/env"
)

// A claim may have directories of the node mounted into its environment: those
// that the node's configuration names and the class allows. Each is a tree of its
// own, cloned from the node's and mapped to the slot's ids, so that root inside is
// root of what lies there and of nothing else of the node. It is moved into the
// slot's mount namespace while the slot is frozen, and ends with that namespace.

// MountRoot is a directory of this node that classes may let claims mount.
type MountRoot struct {
	Path     string // absolute
	Writable bool
	// PerTenant gives each tenant a directory of its own below, made when it is
	// first asked for.
	PerTenant bool
}

// Bind is a directory of the node to mount into a slot.
type Bind struct {
	Dir      *os.File // what to mount
	Name     string   // of its root, for errors
	Path     string   // where, inside
	ReadOnly bool
}

// openBinds opens what a claim wants mounted, before it takes a slot. The caller
// closes them.
func (n *Node) openBinds(c *Claim) (binds []Bind, err error) {
	if len(c.Mounts) == 0 {
		return nil, nil
	}
	n.mu.Lock()
	class := n.classes[c.Class]
	n.mu.Unlock()
	if class == nil {
		return nil, nil // which is told where it is looked up to be used
	}
	defer func() {
		if err != nil {
			closeBinds(binds)
			binds = nil
		}
	}()
	for _, m := range c.Mounts {
		root, err := n.allowed(class, c, m)
		if err != nil {
			return binds, err
		}
		dir, err := openMount(root, c.Tenant, m)
		if err != nil {
			return binds, fmt.Errorf("mount %s on %s: %w", m.Name, m.Path, err)
		}
		binds = append(binds, Bind{Dir: dir, Name: m.Name, Path: m.Path, ReadOnly: m.ReadOnly || !root.Writable})
	}
	return binds, nil
}

func closeBinds(binds []Bind) {
	for _, b := range binds {
		b.Dir.Close()
	}
}

// allowed finds the directory of a mount, if the class lets claims have it. What
// goes on from another node was allowed there.
func (n *Node) allowed(class *env.Class, c *Claim, m env.Mount) (MountRoot, error) {
	if c.Lifetime == nil && !slices.Contains(class.Mounts, m.Name) {
		return MountRoot{}, fmt.Errorf("%w: class %s lets claims mount %s, not %.80q", env.ErrDenied, class.Name, listed(class.Mounts), m.Name)
	}
	root, ok := n.cfg.Mounts[m.Name]
	switch {
	case !ok:
		return MountRoot{}, fmt.Errorf("%w: this node has no directory %.80q for mounts; it has %s (mounts of its configuration)",
			env.ErrUnsupported, m.Name, listed(slices.Sorted(maps.Keys(n.cfg.Mounts))))
	case !root.Writable && !m.ReadOnly:
		return MountRoot{}, fmt.Errorf("%w: %s cannot be written to on this node: ask for it read-only", env.ErrDenied, m.Name)
	case root.PerTenant && (c.Tenant == "" || c.Tenant == "." || c.Tenant == ".." || strings.ContainsAny(c.Tenant, "/\x00")):
		return MountRoot{}, fmt.Errorf("%w: each tenant has its own directory in %s, and none can be called %.80q", env.ErrInvalid, m.Name, c.Tenant)
	}
	return root, nil
}

func listed(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// checkRoots says at the start what claims would be told later.
func (n *Node) checkRoots() {
	for _, name := range slices.Sorted(maps.Keys(n.cfg.Mounts)) {
		dir, err := openRoot(n.cfg.Mounts[name])
		if err != nil {
			n.log.Error("directory for mounts cannot be used", "mount", name, "error", err)
			continue
		}
		dir.Close()
	}
}
