package detect

import (
	"io"
	"io/fs"
	"time"

	"hearth/internal/env"
)

// Config is what an engine needs beyond the kernel.
type Config struct {
	// Rules are directories of rule files on top of the built-in ones: a rule
	// of a later layer replaces the one of the same name.
	Rules []fs.FS
	// Events receives one line of JSON for every detection; nil means none.
	// Each line is one Write.
	Events io.Writer
	// Respond carries out a response stronger than an alert. It must be
	// idempotent and return when its context ends. Required.
	Respond Responder
	// Window is how long further findings of one rule in one slot count as the
	// same detection; 0 is one minute.
	Window time.Duration
	// Recent is how many detections are kept for Recent; 0 is 1024.
	Recent int
}

// Subject is a slot that is watched.
type Subject struct {
	Slot  env.SlotID
	NetID env.NetID
	// CgroupID is the cgroup v2 id (the inode number of the directory) of the
	// slot's own cgroup. Processes in it and below it are the slot's.
	CgroupID uint64
	Class    string
	Policy   env.DetectionPolicy
}

// Owner is the process that connected a TCP flow.
type Owner struct {
	PID      int // in the host's PID namespace
	Command  string
	CgroupID uint64 // of the subject's cgroup
	NetID    env.NetID
	// Since is CLOCK_MONOTONIC at the connect; 0 if it was found by the walk of
	// open files, which cannot know.
	Since time.Duration
}
