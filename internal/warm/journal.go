package warm

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"hearth/internal/env"
)

// The journal is the checkpoint of what this node owns: an append-only log of
// records, each the new state of one slot. The truth about what runs is the
// kernel and containerd; recovery.go compares. One write(2) per record, no
// fsync: a crash of the node ends the containers anyway.

// journalVersion is the format of the records below.
const journalVersion = 1

// record is one line of the journal. A record with Gone ends its slot.
type record struct {
	Version int       `json:"v"`
	Boot    string    `json:"boot"` // boot id of the kernel that the slot lived under
	Slot    slotState `json:"slot"`
	Gone    bool      `json:"gone,omitempty"`
}

// slotState is what must be known of a slot after the agent's death.
type slotState struct {
	ID       env.SlotID    `json:"id"`
	Phase    env.SlotPhase `json:"phase"`
	Class    string        `json:"class"`
	Revision string        `json:"revision"`
	Image    string        `json:"image"` // digest
	IDs      env.IDRange   `json:"ids"`
	PID      int           `json:"pid,omitempty"`
	PIDStart uint64        `json:"pidStart,omitempty"` // in clock ticks since boot: tells a reused pid
	Upper    string        `json:"upper,omitempty"`
	Island   []byte        `json:"island,omitempty"`
	Made     time.Time     `json:"made"`
	// Checking is set while a ready slot is thawed to be probed again, Proven
	// is when its readiness was seen last.
	Checking bool      `json:"checking,omitempty"`
	Proven   time.Time `json:"proven,omitzero"`
	// Swappable is set before a ready slot's memory may be swapped out, which
	// ends with its claim.
	Swappable bool `json:"swappable,omitempty"`
	// Filled is true of a ready slot that was made for an environment and has its
	// files: it is no pool's.
	Filled bool `json:"filled,omitempty"`
	// Replaces is the slot that its environment had before. A record that has it ends
	// that slot, whatever the slot's own last record says.
	Replaces env.SlotID `json:"replaces,omitempty"`
	Env      *envState  `json:"env,omitempty"`
}

// envState is what must be known of an environment. It holds no secret.
type envState struct {
	ID         env.ID            `json:"id"`
	Tenant     string            `json:"tenant,omitempty"`
	Generation env.Generation    `json:"generation"`
	Phase      env.Phase         `json:"phase"`
	Message    string            `json:"message,omitempty"`
	Warm       bool              `json:"warm,omitempty"`
	Waited     time.Duration     `json:"waited,omitempty"` // its claim, in line
	Snapshot   env.SnapshotID    `json:"snapshot,omitempty"`
	Claimed    time.Time         `json:"claimed"`
	Labels     map[string]string `json:"labels,omitempty"`
	Hostname   string            `json:"hostname,omitempty"` // as claimed; empty is the id
	Egress     *env.EgressPolicy `json:"egress,omitempty"`
	Epoch      uint64            `json:"epoch"` // of the token
	Key        string            `json:"key,omitempty"`
	Digest     string            `json:"digest,omitempty"`
	Took       time.Duration     `json:"took,omitempty"`
	Ports      []env.Port        `json:"ports,omitempty"`
	Ephemeral  bool              `json:"ephemeral,omitempty"`
	Limits     env.Limits        `json:"limits,omitzero"` // in place of the class's
	Mounts     []env.Mount       `json:"mounts,omitempty"`
	// Begun and Ends are its claim and its end by CLOCK_BOOTTIME; no end is 0.
	// Expires is the end by the wall clock, for people.
	Begun      time.Duration `json:"begun,omitempty"`
	Ends       time.Duration `json:"ends,omitempty"`
	Expires    time.Time     `json:"expires,omitzero"`
	TimeToLive time.Duration `json:"timeToLive,omitempty"` // as asked for; 0 is what the class says
	// Idle is true of one that is paused because it did nothing, also while it is
	// fenced or held.
	Idle bool `json:"idle,omitempty"`
	// Expired is when it was released because its time had come.
	Expired time.Time `json:"expired,omitzero"`
	// ClaimKey and ClaimRequest are kept for the controller.
	ClaimKey     []byte `json:"claimKey,omitempty"`
	ClaimRequest []byte `json:"claimRequest,omitempty"`
	// Before is the phase to which a fenced environment goes back, Held the one
	// to which an environment held for a move does.
	Before env.Phase `json:"before,omitempty"`
	Held   env.Phase `json:"held,omitempty"`
	// HeldAt is the snapshot of what has not changed since it is held.
	HeldAt env.SnapshotID `json:"heldAt,omitempty"`
	// Upgrading is true of one that is held for an upgrade, Upgrade the last one that
	// came about.
	Upgrading bool          `json:"upgrading,omitempty"`
	Upgrade   *upgradeState `json:"upgrade,omitempty"`
}

// afterBoot is what a reboot leaves of a slot of an earlier boot: the files of an
// environment that was answered. ok is false if nothing is to be kept of it: a slot
// that nobody had, or an environment whose class says that it may be lost.
func (st slotState) afterBoot(now moment) (_ slotState, ok bool) {
	if st.Phase != env.SlotClaimed || st.Env == nil || st.Env.Ephemeral ||
		!slices.Contains(living, st.Env.Phase) && st.Env.Phase != env.PhaseFailed {
		return slotState{}, false
	}
	e := *st.Env
	e.Begun = 0 // by a clock that begins anew: its age is known by the wall clock only
	if e.Ends != 0 {
		e.endIn(e.Expires.Sub(now.wall), now)
	}
	st.PID, st.PIDStart, st.Island, st.Env = 0, 0, nil, &e
	return st, true
}

// shut reports whether the environment's island must be locked.
func (e *envState) shut() bool {
	return e.Held != "" || !e.obedient()
}

// obedient reports whether its owner decides what it does: it runs, or could.
func (e *envState) obedient() bool {
	return e.Phase == env.PhaseRunning || e.Phase == env.PhasePaused || e.Phase == env.PhaseStalled
}

// replay folds journal records into the newest state of each slot.
type replay struct {
	boot  string
	slots map[env.SlotID]slotState
	// stale are slots of an earlier boot: nothing of them runs, but files and
	// containerd's objects remain.
	stale map[env.SlotID]slotState
	// expired are environments that were released because their time came, oldest
	// first.
	expired []slotState
	// replaced are slots whose environments have others, also those of which nothing
	// else is known any more.
	replaced map[env.SlotID]bool
}

func newReplay(boot string) *replay {
	return &replay{boot: boot, slots: map[env.SlotID]slotState{}, stale: map[env.SlotID]slotState{}, replaced: map[env.SlotID]bool{}}
}

// visit takes one record. Bytes that are not a record of a known version are
// an error: an older agent must not guess about a newer one's slots.
func (r *replay) visit(b []byte) error {
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return fmt.Errorf("%w: journal record: %v", env.ErrCorrupt, err)
	}
	if rec.Version != journalVersion {
		return fmt.Errorf("%w: journal record of version %d, this agent reads %d; start the newer agent, or release its environments and remove the journal",
			env.ErrUnsupported, rec.Version, journalVersion)
	}
	if _, err := env.ParseSlotID(string(rec.Slot.ID)); err != nil {
		return fmt.Errorf("%w: journal record: %v", env.ErrCorrupt, err)
	}
	into := r.slots
	if rec.Boot != r.boot {
		into = r.stale
	}
	if rec.Slot.Replaces != "" {
		r.replaced[rec.Slot.Replaces] = true
	}
	if rec.Gone {
		delete(into, rec.Slot.ID)
		if e := rec.Slot.Env; e != nil && !e.Expired.IsZero() {
			r.expired = append(r.expired, rec.Slot)
		}
		return nil
	}
	into[rec.Slot.ID] = rec.Slot
	return nil
}

func encodeRecord(boot string, s slotState, gone bool) ([]byte, error) {
	b, err := json.Marshal(record{Version: journalVersion, Boot: boot, Slot: s, Gone: gone})
	if err != nil {
		return nil, fmt.Errorf("encode journal record: %w", err)
	}
	return b, nil
}
