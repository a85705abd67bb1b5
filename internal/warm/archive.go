package warm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hearth/internal/env"
)

// A slot is treated all its life by the class that it was made from: its limits
// count, its egress policy holds, its snapshot at release is taken, though the
// manifest has changed or gone since. So each revision is kept in a file for as
// long as a slot of it lives.

const (
	archivePrefix = "class."
	archiveSuffix = ".json"
	maxArchived   = 1 << 20
)

func archiveName(class, revision string) string {
	return archivePrefix + class + "." + revision + archiveSuffix
}

// archiveClasses keeps the revisions of classes that slots are about to be made
// from. The caller holds archiving until the node has the classes.
func (n *Node) archiveClasses(classes []*env.Class) error {
	for _, c := range classes {
		b, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("encode class %s: %w", c.Name, err)
		}
		name := archiveName(c.Name, c.Revision)
		if have, err := n.state.ReadFile(name, maxArchived); err == nil && bytes.Equal(have, b) {
			continue
		}
		if err := n.state.WriteFile(opArchive, name, b, 0o600); err != nil {
			return fmt.Errorf("keep class %s: %w", c.Name, err)
		}
	}
	return nil
}

// classOf is the class that a slot was made from.
func (n *Node) classOf(st slotState) (*env.Class, error) {
	if c := n.classes[st.Class]; c != nil && c.Revision == st.Revision {
		return c, nil
	}
	b, err := n.state.ReadFile(archiveName(st.Class, st.Revision), maxArchived)
	if err != nil {
		return nil, fmt.Errorf("class %s of slot %s: %w", st.Class, st.ID, err)
	}
	var c env.Class
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: class %s of slot %s: %v", env.ErrCorrupt, st.Class, st.ID, err)
	}
	return &c, nil
}

// pruneArchive forgets the revisions of which no slot lives. While a slot is
// being made that does not count itself yet, it forgets nothing.
func (n *Node) pruneArchive() error {
	n.archiving.Lock()
	defer n.archiving.Unlock()
	names, err := n.state.List()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	n.mu.Lock()
	if n.reserved > 0 {
		n.mu.Unlock()
		return nil
	}
	for _, c := range n.classes {
		used[archiveName(c.Name, c.Revision)] = true
	}
	for _, s := range n.slots {
		used[archiveName(s.state.Class, s.state.Revision)] = true
	}
	n.mu.Unlock()
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, archivePrefix) && strings.HasSuffix(name, archiveSuffix) && !used[name] {
			errs = append(errs, n.state.Remove(opArchive, name))
		}
	}
	return errors.Join(errs...)
}
