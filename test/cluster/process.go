package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A record names a process that we started. A pid alone may be another's by
// now; with the time at which it started (clock ticks since boot) it is ours or
// gone.
type record struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func (o *Options) recordPath(name string) string {
	return o.path("run/" + strings.ReplaceAll(name, "/", "-") + ".pid")
}

func (o *Options) logPath(name string) string {
	return o.path("log/" + strings.ReplaceAll(name, "/", "-") + ".log")
}

// launch starts a process that outlives this one, in a session of its own, with
// its output in the log of its name, and writes its record.
func (o *Options) launch(name string, cmd *exec.Cmd) error {
	log, err := os.OpenFile(o.logPath(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }() // reaps it whenever it ends; the record tells who it was
	_, start, err := stat(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("%s ended at once, see %s: %w", name, log.Name(), err)
	}
	b, err := json.Marshal(record{cmd.Process.Pid, start})
	if err != nil {
		return err
	}
	return os.WriteFile(o.recordPath(name), b, 0o600)
}

// running finds the process of a name; nil if it ended or never was.
func (o *Options) running(name string) (*record, error) {
	b, err := os.ReadFile(o.recordPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", o.recordPath(name), err)
	}
	if !r.alive() {
		return nil, nil
	}
	return &r, nil
}

// alive is false for a zombie: whoever reaps it may take its time.
func (r record) alive() bool {
	state, start, err := stat(r.PID)
	return err == nil && start == r.Start && state != 'Z' && state != 'X'
}

// signal reaches this very process or none: the descriptor that
// os.FindProcess opens pins it before its start time is compared.
func (r record) signal(s os.Signal) error {
	p, err := os.FindProcess(r.PID)
	if err != nil {
		return nil // gone
	}
	defer func() { _ = p.Release() }()
	if !r.alive() {
		return nil
	}
	if err := p.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", r.PID, err)
	}
	return nil
}

// stop ends the process of a name: SIGTERM, and SIGKILL after the grace.
func (o *Options) stop(name string, grace time.Duration) error {
	r, err := o.running(name)
	if err != nil || r == nil {
		return err
	}
	if err := r.signal(syscall.SIGTERM); err != nil {
		return err
	}
	if waitGone(*r, grace) {
		return nil
	}
	if err := r.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !waitGone(*r, 10*time.Second) {
		return fmt.Errorf("process %d (%s) does not end", r.PID, name)
	}
	return nil
}

func waitGone(r record, most time.Duration) bool {
	for end := time.Now().Add(most); r.alive(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// stat reads the state and the start time of a process, proc_pid_stat(5). The
// program's name, in parentheses, may contain anything.
func stat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0, err
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest)
	const stateField, startField = 0, 19 // fields 3 and 22 of the page, which counts from 1
	if len(fields) <= startField {
		return 0, 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	return fields[stateField][0], start, err
}
