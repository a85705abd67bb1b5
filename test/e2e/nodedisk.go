package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// share is the part of a disk that is available, from 0 to 1.
type share struct{ bytes, inodes float64 }

func (s share) least(t share) share {
	return share{min(s.bytes, t.bytes), min(s.inodes, t.inodes)}
}

func percent(ratio float64) string { return fmt.Sprintf("%.1f", 100*ratio) }

// nodeDisk is the one disk of a node, on which pods, images and environments lie.
type nodeDisk struct {
	w     *world
	node  string
	path  string // on it, as this process reaches it
	marks share  // the kubelet evicts pods where less is available
	books string // every pod and its restarts when this began
}

func (w *world) diskOf(ctx context.Context, node string) (*nodeDisk, error) {
	root, err := w.cluster.Root(node)
	if err != nil {
		return nil, err
	}
	d := &nodeDisk{w: w, node: node, path: root + "/var/lib/kubelet"}
	if d.marks, err = d.readMarks(ctx); err != nil {
		return nil, err
	}
	if d.books, err = w.restarts(ctx); err != nil {
		return nil, err
	}
	return d, d.calm(ctx)
}

// now asks the kernel.
func (d *nodeDisk) now() (share, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.path, &s); err != nil {
		return share{}, fmt.Errorf("disk of %s: %w", d.node, err)
	}
	return share{float64(s.Bavail) / float64(s.Blocks), float64(s.Ffree) / float64(s.Files)}, nil
}

// watch asks the kernel all the time, until the function that it returns is
// called: that gives the least that was ever available.
func (d *nodeDisk) watch() (stop func() (share, error)) {
	least, fault := share{1, 1}, error(nil)
	end := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			s, err := d.now()
			if err != nil {
				fault = err
				return
			}
			least = least.least(s)
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return sync.OnceValues(func() (share, error) {
		close(end)
		work.Wait()
		return least, fault
	})
}

// size is the disk's, in bytes.
func (d *nodeDisk) size() (int64, error) {
	var s syscall.Statfs_t
	err := syscall.Statfs(d.path, &s)
	return int64(s.Blocks) * s.Frsize, err
}

// leave takes so much of the disk that this part stays available, as files of
// others would, or gives back what it has taken. forget gives all back.
func (d *nodeDisk) leave(part float64) error {
	now, err := d.now()
	if err != nil {
		return err
	}
	whole, err := d.size()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	has, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	want := has + int64((now.bytes-part)*float64(whole))
	switch {
	case want < 0:
		return fmt.Errorf("only %s %% of the disk of %s are available", percent(now.bytes), d.node)
	case want < has:
		return f.Truncate(want)
	default:
		return syscall.Fallocate(int(f.Fd()), 0, 0, want)
	}
}

func (d *nodeDisk) forget() error { return os.Remove(d.ballast()) }

func (d *nodeDisk) ballast() string { return filepath.Join(d.path, "ballast") }

// low compares whether the agent says that the disk is short.
func (d *nodeDisk) low(ctx context.Context, resource string, want float64) error {
	got, err := d.metric(ctx, "hearth_disk_low", `resource="`+resource+`"`)
	if err == nil && got != want {
		err = fmt.Errorf("hearth_disk_low of %s is %v, not %v", resource, got, want)
	}
	return err
}

// metric is the sum of the agent's samples that have a label.
func (d *nodeDisk) metric(ctx context.Context, name, label string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.w.cluster.IP(d.node)+":7402/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	found := false
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		sample, value, _ := strings.Cut(lines.Text(), "} ")
		if !strings.HasPrefix(sample, name+"{") || !strings.Contains(sample, label) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if err := lines.Err(); err != nil || !found {
		return 0, errors.Join(err, fmt.Errorf("no metric %s with %s", name, label))
	}
	return sum, nil
}
