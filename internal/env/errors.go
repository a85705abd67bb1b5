package env

import (
	"errors"
	"fmt"
)

// The sentinels name what a caller may act on. Each is mapped once to an RPC
// code and once to an exit code; packages wrap them with the name of the thing
// and its mend.
var (
	// ErrInvalid: the request or configuration is wrong; repeating it is useless.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: no such environment, class, slot, snapshot or file.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken by something else.
	ErrExists = errors.New("already exists")
	// ErrExhausted: this node has no room (slots, addresses, ids, disk, memory).
	ErrExhausted = errors.New("exhausted")
	// ErrState: the thing is in a state that refuses this operation (paused,
	// released, claimed by another).
	ErrState = errors.New("wrong state")
	// ErrFenced: a newer generation or controller epoch exists.
	ErrFenced = errors.New("fenced")
	// ErrSuperseded: this controller's epoch is not the newest that the node has
	// obeyed. It matches ErrFenced, and says nothing of any generation.
	ErrSuperseded = fmt.Errorf("%w: superseded", ErrFenced)
	// ErrDenied: the caller may not do this.
	ErrDenied = errors.New("denied")
	// ErrUnavailable: a part that is needed does not answer now; try again.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnsupported: this node cannot do it. See UnsupportedError.
	ErrUnsupported = errors.New("unsupported")
	// ErrCorrupt: stored bytes are damaged or were never ours.
	ErrCorrupt = errors.New("corrupt")
)

// UnsupportedError says that this node lacks a feature. It matches
// ErrUnsupported.
type UnsupportedError struct {
	Feature string // "tcx", "memory.reclaim"
	Needs   string // the least version or set-up that has it: "Linux 6.6"
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s is not available on this node: needs %s", e.Feature, e.Needs)
}

// Is makes errors.Is(err, ErrUnsupported) true.
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }
