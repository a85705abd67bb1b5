package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// sysctls are those of the whole machine that kubelet sets. While a cluster
// runs, an oops reboots the machine.
var sysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// memory is what Start changes on the machine itself, to be undone by Stop.
type memory struct {
	Sysctls map[string]string `json:"sysctls"`
	// Made are directories that exist only as places to mount the nodes' own.
	Made []string `json:"made"`
}

// remember notes the machine's state before anything changes it.
func (c *Cluster) remember() error {
	m := memory{Sysctls: map[string]string{}}
	for _, name := range sysctls {
		b, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return err
		}
		m.Sysctls[name] = strings.TrimSpace(string(b))
	}
	for _, dir := range private {
		m.Made = append(m.Made, missing(dir)...)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("machine.json"), b, 0o600); err != nil {
		return err
	}
	for _, dir := range private {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// missing lists the directories that MkdirAll would make, outermost first.
func missing(dir string) (list []string) {
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			slices.Reverse(list)
			return list
		}
		list = append(list, dir)
	}
}

// restore undoes what remember foresaw. A directory that somebody uses by now
// stays.
func (c *Cluster) restore() error {
	b, err := os.ReadFile(c.path("machine.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var m memory
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("read machine.json: %w", err)
	}
	for name, value := range m.Sysctls {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	for _, dir := range slices.Backward(m.Made) {
		if err := rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

// lock takes the machine's turn, or nothing if none is asked for.
func (o *Options) lock(ctx context.Context) (*os.File, error) {
	if o.Lock == "" {
		return nil, nil
	}
	f, err := os.OpenFile(o.Lock, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for waited := false; ; waited = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", o.Lock, err)
		}
		if !waited {
			who, _ := os.ReadFile(o.Lock)
			o.say("waiting for %s, held for %s", o.Lock, strings.TrimSpace(string(who)))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", o.Lock, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	_, err = fmt.Fprintf(f, "%s since %s\n", o.Dir, time.Now().Format(time.RFC3339))
	return f, err
}
