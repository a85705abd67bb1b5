package snapshot

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hearth/internal/env"
)

// benchTree is 64 MB in 2,560 files: half text, half random.
func benchTree(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	for i := range 2500 {
		write(b, filepath.Join(dir, fmt.Sprintf("d%d/e%d/f%d", i%10, i%50, i)), text(uint64(i), 4<<10+i))
	}
	for i := range 60 {
		write(b, filepath.Join(dir, "big", fmt.Sprint(i)), random(uint64(i), 1<<20))
	}
	return dir
}

func BenchmarkChunker(b *testing.B) {
	data := random(1, 64<<20)
	gear := newGearTable(random(2, 2048))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			rest = rest[gear.cut(rest):]
		}
	}
}

func BenchmarkCaptureFirst(b *testing.B) {
	dir := benchTree(b)
	s := newStore(b)
	info := capture1(b, s, source(dir), &recorder{})
	b.SetBytes(info.Bytes)
	i := 0
	for b.Loop() {
		i++
		src := source(dir)
		src.Lineage = Lineage(fmt.Sprintf("e-%d", i))
		capture1(b, s, src, &recorder{})
	}
}

func BenchmarkCaptureUnchanged(b *testing.B) {
	dir := benchTree(b)
	s := newStore(b)
	time.Sleep(2 * settleTime)
	capture1(b, s, source(dir), &recorder{})
	var freeze time.Duration
	var read int64
	n := 0
	for b.Loop() {
		info := capture1(b, s, source(dir), &recorder{})
		freeze += info.FreezeTime
		read += info.Read
		n++
	}
	b.ReportMetric(float64(freeze.Microseconds())/float64(n)/1000, "freeze-ms")
	b.ReportMetric(float64(read)/float64(n), "files-read/op")
}

func BenchmarkCaptureIncremental(b *testing.B) {
	dir := benchTree(b)
	s := newStore(b)
	capture1(b, s, source(dir), &recorder{})
	var freeze time.Duration
	var fresh int64
	n := 0
	for b.Loop() {
		b.StopTimer()
		for k := range 20 {
			must(b, os.WriteFile(filepath.Join(dir, "d1/e1", fmt.Sprintf("new%d", k)), text(uint64(n*100+k), 8000), 0o644))
		}
		b.StartTimer()
		info := capture1(b, s, source(dir), &recorder{})
		freeze += info.FreezeTime
		fresh += info.NewBytes
		n++
	}
	b.ReportMetric(float64(freeze.Microseconds())/float64(n)/1000, "freeze-ms")
	b.ReportMetric(float64(fresh)/float64(n), "new-bytes/op")
}

func BenchmarkRestore(b *testing.B) {
	dir := benchTree(b)
	s := newStore(b)
	info := capture1(b, s, source(dir), nil)
	b.SetBytes(info.Bytes)
	for b.Loop() {
		b.StopTimer()
		target := b.TempDir()
		b.StartTimer()
		if _, err := s.Restore(b.Context(), info.ID, map[string]string{"upper": target}, env.IDRange{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream sends a snapshot from one store to another, through memory.
func BenchmarkStream(b *testing.B) {
	dir := benchTree(b)
	from, to := newStore(b), newStore(b)
	info := capture1(b, from, acmeSource(dir), &recorder{})
	b.Run("export", func(b *testing.B) {
		b.SetBytes(info.Bytes)
		for b.Loop() {
			must(b, from.Export(b.Context(), info.ID, io.Discard))
		}
	})
	stream := exported(b, from, info.ID)
	b.Run("import", func(b *testing.B) {
		b.SetBytes(info.Bytes)
		for b.Loop() {
			imported(b, to, info.ID, stream)
			b.StopTimer()
			must(b, to.Delete("e-test"))
			b.StartTimer()
		}
	})
	b.Run("both", func(b *testing.B) {
		b.SetBytes(info.Bytes)
		for b.Loop() {
			r, w := io.Pipe()
			go func() { w.CloseWithError(from.Export(b.Context(), info.ID, w)) }()
			_, err := to.Import(b.Context(), info.ID, acme, r)
			must(b, err)
			b.StopTimer()
			must(b, to.Delete("e-test"))
			b.StartTimer()
		}
		b.ReportMetric(float64(len(stream))/float64(info.Bytes), "wire-bytes/byte")
	})
}
