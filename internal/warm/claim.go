package warm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"hearth/internal/env"
)

// Bounds of what a claim may carry.
const (
	MaxVariablesBytes = 64 << 10
	MaxMetadataBytes  = 64 << 10
	MaxLabels         = 64
	MaxLabelsBytes    = 4 << 10
	maxTenant         = 63
	maxHostname       = 63 // RFC 1123 label, and below the kernel's 64
	maxKey            = 128
	maxClaimDigest    = 64 // bytes of ClaimKey and of ClaimRequest
)

// Claim is what a caller asks of this node.
type Claim struct {
	Key        string // idempotency key; empty is never a repetition
	ID         env.ID // empty lets the node mint one
	Generation env.Generation
	Class      string
	Tenant     string
	Variables  map[string]string // secret
	Hostname   string            // empty is the id
	Metadata   []byte            // JSON, secret
	Egress     *env.EgressPolicy // may only narrow the class's
	Labels     map[string]string
	Snapshot   env.SnapshotID // restored before the first process; empty for none
	WarmOnly   bool           // refuse instead of waiting or starting a container
	Limits     env.Limits     `json:",omitzero"`  // in place of the class's
	TimeToLive time.Duration  `json:",omitempty"` // at most what the class allows; 0 is what it says
	Mounts     []env.Mount    `json:",omitempty"` // of directories that the node has and the class allows

	// Kept with the environment, so that a new controller knows the call that
	// made it. Who repeats a call may leave them out: they ask for nothing.
	ClaimKey     []byte `json:"-"`
	ClaimRequest []byte `json:"-"`

	// Fetch is where the snapshot is got from if this node does not have it.
	Fetch *FetchFrom `json:"-"`

	// Lifetime is of an environment that goes on here. It counts instead of
	// TimeToLive.
	Lifetime *Lifetime `json:"-"`

	binds  []Bind        // opened for Mounts
	forked bool          // the claim began the lineage of its environment
	waited time.Duration // in line; 0 if it did not
	// made makes the slot in the claim's turn, for an upgrade; nil for any other.
	made func(context.Context, *waiter) (*slot, error)
}

// Answer is a claim's outcome.
type Answer struct {
	Environment Environment
	Token       string
	Took        time.Duration
	Phases      []PhaseTime
}

// PhaseTime is how long one phase of the claim path took.
type PhaseTime struct {
	Name string
	Took time.Duration
}

// Environment is the public view of a claimed slot.
type Environment struct {
	ID         env.ID
	Slot       env.SlotID
	Class      string
	Revision   string // of the class, that it was made from
	Outdated   bool   // its class has another revision now
	Tenant     string
	Generation env.Generation
	Phase      env.Phase
	Message    string
	Warm       bool
	Snapshot   env.SnapshotID // restored from
	Claimed    time.Time
	Labels     map[string]string
	Address    string
	PID        int
	Ports      []env.Port
	Ephemeral  bool          // of its class: no controller stores it
	Resources  env.Resources // in force
	// Reason is a word for what the node did by itself: idle, of one that is paused
	// because it did nothing; expired, of one whose time to live ended.
	Reason     string
	Served     string        // how its claim was: ServedWarm, ServedQueued or ServedCold
	Waited     time.Duration // how long its claim stood in line; 0 if it did not
	Expires    time.Time     // when it is released; zero is never
	TimeToLive time.Duration // as asked for, from the claim; 0 is what the class says
	Mounts     []env.Mount

	ClaimKey     []byte
	ClaimRequest []byte
}

// Idle reports whether the environment is paused because it did nothing, so that
// it goes on when it is used.
func (e Environment) Idle() bool { return e.Reason == reasonIdle }

func (c *Claim) hostname() string { return cmp.Or(c.Hostname, string(c.ID)) }

// validate checks a claim's form; it cannot know whether the class exists.
func (c *Claim) validate() error {
	if c.ID != "" {
		if _, err := env.ParseID(string(c.ID)); err != nil {
			return err
		}
	}
	if c.Class == "" {
		return fmt.Errorf("%w: the claim names no class", env.ErrInvalid)
	}
	if len(c.Key) > maxKey {
		return fmt.Errorf("%w: idempotency key of %d bytes, at most %d", env.ErrInvalid, len(c.Key), maxKey)
	}
	if err := validHostname(c.Hostname); err != nil {
		return err
	}
	if err := errors.Join(c.Limits.Check(), env.CheckMounts(c.Mounts)); err != nil {
		return err
	}
	if n := max(len(c.ClaimKey), len(c.ClaimRequest)); n > maxClaimDigest {
		return fmt.Errorf("%w: claim key or request of %d bytes, at most %d", env.ErrInvalid, n, maxClaimDigest)
	}
	if len(c.Metadata) > MaxMetadataBytes {
		return fmt.Errorf("%w: metadata of %d bytes, at most %d", env.ErrInvalid, len(c.Metadata), MaxMetadataBytes)
	}
	if len(c.Metadata) > 0 && !json.Valid(c.Metadata) {
		return fmt.Errorf("%w: metadata is not JSON", env.ErrInvalid)
	}
	if len(c.Tenant) > maxTenant {
		return fmt.Errorf("%w: tenant of %d bytes, at most %d", env.ErrInvalid, len(c.Tenant), maxTenant)
	}
	if err := validLabels(c.Labels); err != nil {
		return err
	}
	return validVariables(c.Variables)
}

func validHostname(name string) error {
	if len(name) > maxHostname || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		return fmt.Errorf("%w: hostname %.80q: letters, digits and hyphens, at most %d", env.ErrInvalid, name, maxHostname)
	}
	return nil
}

func validLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("%w: %d labels, at most %d", env.ErrInvalid, len(labels), MaxLabels)
	}
	size := 0
	for key, value := range labels {
		size += len(key) + len(value)
	}
	if size > MaxLabelsBytes {
		return fmt.Errorf("%w: labels of %d bytes in all, at most %d", env.ErrInvalid, size, MaxLabelsBytes)
	}
	return nil
}

func validVariables(vars map[string]string) error {
	size := 0
	for name, value := range vars {
		if name == "" || strings.ContainsAny(name, "=\x00\n") {
			return fmt.Errorf("%w: variable name %.40q", env.ErrInvalid, name)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("%w: the value of variable %.40q holds a NUL byte", env.ErrInvalid, name)
		}
		size += len(name) + len(value) + 2
	}
	if size > MaxVariablesBytes {
		return fmt.Errorf("%w: variables of %d bytes in all, at most %d", env.ErrInvalid, size, MaxVariablesBytes)
	}
	return nil
}

// digest is equal for claims that ask for the same, so that a repeated
// idempotency key with another request is an error and not a wrong answer. It
// is keyed, because it goes into the journal and covers secrets.
func (c *Claim) digest(key []byte) (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode claim: %w", err)
	}
	h := sha256.New()
	h.Write(key)
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}
