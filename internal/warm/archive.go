package warm

import (
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

// archiveClasses keeps the revisions of the classes that this agent has.
func (n *Node) archiveClasses() error {
	for _, c := range n.classes {
		b, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("encode class %s: %w", c.Name, err)
		}
		if err := n.state.WriteFile(opArchive, archiveName(c.Name, c.Revision), b, 0o600); err != nil {
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

// pruneArchive forgets the revisions of which no slot lives.
func (n *Node) pruneArchive() error {
	names, err := n.state.List()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	n.mu.Lock()
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
