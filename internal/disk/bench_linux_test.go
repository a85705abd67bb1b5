package disk

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

// benchPages is what one round writes.
const benchPages = 4096

// rewrite writes a file of benchPages pages anew as often as asked, cut before
// each time so that every page is taken again, and prints nanoseconds a page.
func rewrite(name string, rounds int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	var took time.Duration
	for range rounds {
		if err := f.Truncate(0); err != nil {
			return err
		}
		begun := time.Now()
		for i := range benchPages {
			if _, err := f.WriteAt(page, int64(i*len(page))); err != nil {
				return err
			}
		}
		took += time.Since(begun)
	}
	fmt.Println(took.Nanoseconds() / int64(rounds*benchPages))
	return nil
}

// BenchmarkKernelWrite is a page written to a file, by a process of no slot
// without a guard and with one, and by a watched slot.
func BenchmarkKernelWrite(b *testing.B) {
	kerneltest.Require(b, kerneltest.BPF())
	dir := diskDir(b)
	run := func(b *testing.B, c *cgroup) {
		b.Helper()
		cmd := exec.Command("/proc/self/exe", dir)
		if c != nil {
			cmd = c.command("rewrite", dir)
		}
		cmd.Env = append(os.Environ(), "DISK_TEST_ROLE=rewrite", "DISK_TEST_ROUNDS="+strconv.Itoa(b.N))
		out, err := cmd.Output()
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(ns, "ns/page")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("unguarded", func(b *testing.B) { run(b, nil) })
	c := newCgroup(b, "bench")
	g, err := Open(Config{Paths: []string{dir}}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	b.Run("others", func(b *testing.B) { run(b, nil) })
	if err := g.Watch("s", c.id, "demo"); err != nil {
		b.Fatal(err)
	}
	b.Run("counted", func(b *testing.B) { run(b, &c) })
}

// BenchmarkKernelLook is one look at the disks with 200 slots, as ten times a
// second, with room and without.
func BenchmarkKernelLook(b *testing.B) {
	kerneltest.Require(b, kerneltest.BPF())
	for _, short := range []bool{false, true} {
		b.Run(map[bool]string{false: "room", true: "short"}[short], func(b *testing.B) {
			cfg := Config{
				Paths:   []string{diskDir(b)},
				Stall:   func(context.Context, env.SlotID, string) error { return nil },
				Relieve: func(context.Context) error { return nil },
			}
			if short {
				cfg.KeepFree = Mark{Percent: 100}
			}
			g, err := Open(cfg, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			for i := range 200 {
				if err := g.Watch(env.SlotID(strconv.Itoa(i)), uint64(1<<40+i), "demo"); err != nil {
					b.Fatal(err)
				}
			}
			now := time.Now()
			for b.Loop() {
				now = now.Add(lookEvery)
				g.step(b.Context(), now)
			}
		})
	}
}

// playRewrite is the child's part of BenchmarkKernelWrite.
func playRewrite(dir string) error {
	rounds, err := strconv.Atoi(os.Getenv("DISK_TEST_ROUNDS"))
	if err != nil {
		return err
	}
	return rewrite(filepath.Join(dir, "rewritten"), rounds)
}
