package snapshot

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hearth/internal/env"
)

// Lineage names the chain of one environment's snapshots and the small store
// that holds it: the environment's id, or for offline use any name of lower
// case letters, digits and '-', at most 64 characters.
type Lineage string

// ID names one snapshot: "<lineage>/<sequence>".
type ID string

// MakeID is the id of a lineage's snapshot number seq, which starts at 1.
func MakeID(l Lineage, seq uint64) ID {
	return ID(string(l) + "/" + strconv.FormatUint(seq, 10))
}

// maxSeq has as many digits as a reference's name, so that names sort as
// numbers do.
const maxSeq = 1e16 - 1

// ParseID checks an id and takes it apart.
func ParseID(s string) (Lineage, uint64, error) {
	l, n, ok := strings.Cut(s, "/")
	seq, err := strconv.ParseUint(n, 10, 63)
	if !ok || err != nil || seq == 0 || seq > maxSeq || n[0] == '0' || n[0] == '+' {
		return "", 0, fmt.Errorf("%w: %.128q is not a snapshot id of the form <lineage>/<number>", env.ErrInvalid, s)
	}
	return Lineage(l), seq, Lineage(l).check()
}

const maxLineage = 64

func (l Lineage) check() error {
	bad := l == "" || len(l) > maxLineage || l[0] == '-' ||
		strings.Trim(string(l), "abcdefghijklmnopqrstuvwxyz0123456789-") != ""
	if bad {
		return fmt.Errorf("%w: %.80q is not a lineage: letters a-z, digits and '-', at most %d", env.ErrInvalid, string(l), maxLineage)
	}
	return nil
}

// freezer stops and continues what runs in the environment that is captured.
// Thaw is called after every Freeze that was called, also after one that
// failed, and on a context that is not cancelled.
type freezer interface {
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
}

// Root is one directory tree of an environment.
type Root struct {
	Name string // "upper", "workspace": the same rules as a Lineage
	Path string // of an existing directory on the host
	// Exclude names paths below the root, without a leading slash, that are
	// never captured, with all below them: "etc/machine-id".
	Exclude []string
}

// Source says what is captured, and into which lineage.
type Source struct {
	Lineage Lineage
	// Tenant owns the lineage from its first capture on. Another one's is
	// refused with env.ErrDenied.
	Tenant string
	Roots  []Root
	// IDs is the range of host ids that the environment sees as 0 to Size-1.
	// A zero Size means that ids are recorded as they are.
	IDs env.IDRange
	// Base is the digest of the image that the upper directory lies on; it is
	// recorded, and what Restore gives back in Info.
	Base string
	// Labels are recorded, kept over forks, and come back in Info: at most 16,
	// of at most 256 bytes each.
	Labels map[string]string
}

// Info describes a snapshot.
type Info struct {
	ID      ID        `json:"id"`
	Lineage Lineage   `json:"lineage"`
	Seq     uint64    `json:"seq"`
	Tenant  string    `json:"-"`                // of the lineage; empty if it was begun before they had one
	Parent  ID        `json:"parent,omitempty"` // the one before, or the one a fork began at
	Time    time.Time `json:"time"`             // when the environment was frozen
	Base    string    `json:"base,omitempty"`
	Roots   []string  `json:"roots"`

	Labels map[string]string `json:"labels,omitempty"`

	Files    int64 `json:"files"`     // entries of every kind, directories included
	Bytes    int64 `json:"bytes"`     // lengths of the regular files; a hard-linked one counts once per name
	NewBytes int64 `json:"new_bytes"` // written to the store for this snapshot: packs, indexes, reference

	FreezeTime time.Duration `json:"freeze_ns"` // from asking for the freeze to the end of the thaw
	Took       time.Duration `json:"took_ns"`

	Read    int64 `json:"read"`              // regular files whose data was read, each time counted
	Redone  int64 `json:"redone,omitempty"`  // reads or freezes that had to be repeated, since something changed meanwhile
	Racy    int64 `json:"racy,omitempty"`    // entries whose times cannot be trusted; read again next time
	Sockets int64 `json:"sockets,omitempty"` // skipped: a socket means nothing without its process
	Mounts  int64 `json:"mounts,omitempty"`  // mount points below a root, recorded as empty directories
	Foreign int64 `json:"foreign,omitempty"` // ids outside the range in what was read, recorded as 65534, as the environment sees them
	XAttrs  int64 `json:"xattrs,omitempty"`  // extended attributes in what was read, of kinds that are not kept
}

// RestoreStats counts what a restore made.
type RestoreStats struct {
	Info  Info
	Files int64
	Bytes int64 // data written
	Took  time.Duration
}

// VerifyStats counts what a verification read.
type VerifyStats struct {
	Files  int64
	Chunks int64
	Bytes  int64 // before compression
	Took   time.Duration
}
