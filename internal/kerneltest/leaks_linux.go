package kerneltest

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// NoLeaks fails the test if, when all later cleanups have run, it leaves
// descriptors, goroutines, links or pins that were not there before. Call it
// first.
func NoLeaks(t testing.TB) {
	t.Helper()
	before := inventory()
	t.Cleanup(func() {
		var left []string
		for range 100 { // what was told to end may take a moment
			left = before.missing(inventory())
			if len(left) == 0 {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("left behind: %s", strings.Join(left, ", "))
	})
}

// holdings counts what a test may leave, by name.
type holdings map[string]int

func inventory() holdings {
	h := holdings{"goroutine": runtime.NumGoroutine()}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The runtime opens its poller once, when first needed; and this listing is open.
		if err != nil || strings.Contains(target, "eventpoll") || strings.Contains(target, "eventfd") || strings.HasSuffix(target, "/fd") {
			continue
		}
		kind, _, _ := strings.Cut(target, ":[")
		h["descriptor "+kind]++
	}
	_ = filepath.WalkDir("/sys/fs/bpf", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			h["pin "+path]++
		}
		return nil
	})
	links, _ := netlink.LinkList()
	for _, l := range links {
		h["link "+l.Attrs().Name]++
	}
	return h
}

// missing lists what now has more of than h.
func (h holdings) missing(now holdings) []string {
	var out []string
	for name, n := range now {
		if n > h[name] {
			out = append(out, name)
		}
	}
	return out
}
