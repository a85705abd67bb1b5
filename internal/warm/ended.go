package warm

import (
	"fmt"

	"hearth/internal/env"
)

// endedInit stands for an init that a restart did not find any more.
type endedInit struct{ pid int }

func (i endedInit) PID() int                       { return i.pid }
func (i endedInit) Started() uint64                { return 0 }
func (i endedInit) Alive() bool                    { return false }
func (i endedInit) Close()                         {}
func (i endedInit) OpenIdentity(env.IDRange) error { return i.err() }

func (i endedInit) Personalise([]IdentityFile, string) error { return i.err() }

func (i endedInit) Mount([]Bind) error { return i.err() }

func (i endedInit) Recall(string, int) ([]byte, error) { return nil, i.err() }

func (i endedInit) err() error {
	return fmt.Errorf("%w: init %d has ended", env.ErrState, i.pid)
}
