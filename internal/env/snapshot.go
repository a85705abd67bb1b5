package env

import "time"

// SnapshotID names an acknowledged snapshot: "<lineage>/<sequence>". A lineage
// carries the id of the environment that it belongs to.
type SnapshotID string

// Snapshot describes an acknowledged state of an environment's files.
type Snapshot struct {
	ID      SnapshotID
	Parent  SnapshotID // empty for the first of a lineage
	Lineage ID
	Tenant  string // of the lineage; empty if it was begun before they had one
	Class   string
	Base    string // digest of the image that the changes lie upon
	Time    time.Time
	Stats   SnapshotStats
}

// SnapshotStats says what a snapshot cost.
type SnapshotStats struct {
	Files    uint64 // entries of every kind in the tree
	Bytes    uint64 // of file content in the tree
	NewBytes uint64 // written to the store for this snapshot
	Freeze   time.Duration
	Took     time.Duration
	Redone   uint64 // walks repeated inside the freeze because of a miss
}
