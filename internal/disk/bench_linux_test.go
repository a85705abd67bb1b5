package disk

import (
	"context"
	"fmt"
	"log/slog"
	"os"
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

// BenchmarkKernelWrite is a page written to a file from one cgroup: without a
// guard, with one that watches others, and with one that watches it.
func BenchmarkKernelWrite(b *testing.B) {
	kerneltest.Require(b, kerneltest.BPF())
	dir := diskDir(b)
	c := newCgroup(b, "bench")
	run := func(b *testing.B) {
		b.Helper()
		cmd := c.command("rewrite", dir)
		cmd.Env = append(cmd.Env, "DISK_TEST_ROUNDS="+strconv.Itoa(b.N))
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
	b.Run("unguarded", run)
	g, err := Open(Config{Paths: []string{dir}}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	b.Run("others", run)
	if err := g.Watch("s", c.id, "demo"); err != nil {
		b.Fatal(err)
	}
	b.Run("counted", run)
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
