package main

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/guest/wire"
)

// awaitReady waits for the boot services' start and then for the probe.
func (m *services) awaitReady(ctx context.Context, limit time.Duration) error {
	m.mu.Lock()
	class, list := m.class, m.list
	m.mu.Unlock()
	if class == nil {
		return wire.Errorf(wire.CodeState, "no class is configured yet: configure comes before ready")
	}
	timeout, interval := timesOf(class.Probe, limit)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case <-m.prepared:
	case <-ctx.Done():
		return m.unready(nil, fmt.Sprintf("SSH host keys were not made within %v", timeout))
	}
	for _, s := range list {
		if startOf(s.spec) != wire.StartAtBoot {
			continue
		}
		select {
		case <-s.tried:
		case <-ctx.Done():
			return m.unready(list, fmt.Sprintf("service %q was not started within %v", s.spec.Name, timeout))
		}
	}
	told := ""
	for pause := firstPause(class.Probe, interval); ; pause = min(2*pause, interval) {
		missing := notStarted(list)
		if missing == "" {
			err := m.probe(ctx, class)
			if err == nil {
				return nil
			}
			missing = err.Error()
			// A try that our own limit cut short says less than the one before.
			if end, _ := ctx.Deadline(); told != "" && !time.Now().Before(end) {
				missing = told
			}
			told = missing
		} else if hopeless(list) {
			return m.unready(list, missing)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return m.unready(list, fmt.Sprintf("%s; gave up after %v", missing, timeout))
		}
	}
}

func notStarted(list []*service) string {
	for _, s := range list {
		if st, _ := s.status(); startOf(s.spec) == wire.StartAtBoot && st.Starts == 0 {
			return fmt.Sprintf("service %q did not start", s.spec.Name)
		}
	}
	return ""
}

func hopeless(list []*service) bool {
	for _, s := range list {
		if _, bad := s.status(); bad {
			return true
		}
	}
	return false
}

// unready words why, with what the services last said.
func (m *services) unready(list []*service, why string) error {
	message := why
	for _, s := range list {
		st, _ := s.status()
		if startOf(s.spec) != wire.StartAtBoot || st.PID != 0 && st.Starts < 2 && st.Output == "" {
			continue
		}
		message += fmt.Sprintf("; service %q: %d starts", st.Name, st.Starts)
		if st.LastExit != "" {
			message += ", last end: " + st.LastExit
		}
		if st.Output != "" {
			message += fmt.Sprintf(", last output: %q", lastBytes(st.Output, 512))
		}
	}
	return wire.Errorf(wire.CodeUnready, "%s", message)
}

func lastBytes(s string, n int) string { return s[max(0, len(s)-n):] }
