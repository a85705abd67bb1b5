package main

import (
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"hearth/internal/guest/wire"
)

// TestExcessBackgroundStreamsUseUpNoReader ends more streams than are read for,
// each still held open by somebody in the background, and then lets one of the
// read ones go: the next must get its reader.
func TestExcessBackgroundStreamsUseUpNoReader(t *testing.T) {
	s := &server{}
	p := &peer{out: wire.NewWriter(io.Discard)}
	exited := make(chan struct{})
	close(exited)
	background := func() (writer *os.File, reads bool) {
		t.Helper()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.Close() })
		if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil { // as exec does once the process ended
			t.Fatal(err)
		}
		s.copyOutput(output{r, wire.KindData}, p, exited)
		_, err = w.Write([]byte("x"))
		if err != nil && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
		return w, err == nil
	}
	held := make([]*os.File, maxDiscarding)
	for i := range held {
		w, reads := background()
		if !reads {
			t.Fatalf("stream %d of %d has no reader", i, maxDiscarding)
		}
		held[i] = w
	}
	for range 10 {
		if _, reads := background(); reads {
			t.Fatal("a stream beyond the bound has a reader")
		}
	}
	_ = held[0].Close()
	for deadline := time.Now().Add(5 * time.Second); s.discarding.Load() >= maxDiscarding; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are counted after one of %d ended", s.discarding.Load(), maxDiscarding)
		}
	}
	if _, reads := background(); !reads {
		t.Error("the stream that fits again has no reader")
	}
}
