package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFramesRoundTripByteByByte(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	sizes := []int{0, 1, 511, 513, 8 << 10, MaxPayload}
	for _, n := range sizes {
		if err := w.Send(KindData, bytes.Repeat([]byte{7}, n)); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(iotest.OneByteReader(&buf))
	for _, n := range sizes {
		f, err := r.Next()
		if err != nil || f.Kind != KindData || !bytes.Equal(f.Payload, bytes.Repeat([]byte{7}, n)) {
			t.Fatalf("frame of %d bytes: kind %d, %d bytes, %v", n, f.Kind, len(f.Payload), err)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v", err)
	}
}

func TestMalformedFramesAreRefusedBeforeTheyAreRead(t *testing.T) {
	for name, c := range map[string]struct {
		bytes string
		want  error
	}{
		"kind zero":              {"\x00\x00\x00\x00", ErrFrame},
		"unknown kind":           {"\xff\x00\x00\x00", ErrFrame},
		"data too long":          {"\x04\x01\x00\x01", ErrFrame},
		"request too long":       {"\x01\x10\x00\x01", ErrFrame},
		"cut in the header":      {"\x04\x00", io.ErrUnexpectedEOF},
		"cut in the payload":     {"\x04\x00\x00\x05abc", io.ErrUnexpectedEOF},
		"cut before the payload": {"\x04\x00\x00\x05", io.ErrUnexpectedEOF},
	} {
		if _, err := NewReader(strings.NewReader(c.bytes)).Next(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestTooLongFramesAreNotSent(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	if err := w.Send(KindData, make([]byte, MaxPayload+1)); !errors.Is(err, ErrFrame) {
		t.Errorf("data: %v", err)
	}
	if err := w.Send(KindRequest, make([]byte, MaxRequest+1)); !errors.Is(err, ErrFrame) {
		t.Errorf("request: %v", err)
	}
	if buf.Len() != 0 {
		t.Errorf("%d bytes were written", buf.Len())
	}
}

func TestVersionsAreChosenOrRefusedByName(t *testing.T) {
	for name, c := range map[string]struct {
		newest, least int
		want          int
	}{
		"same":              {2, 1, 2},
		"older node":        {1, 1, 1},
		"newer node, mild":  {7, 1, 2},
		"newer node, harsh": {7, 3, 0},
		"older than any":    {0, 0, 0},
	} {
		got, refusal := Choose(c.newest, c.least)
		if got != c.want || (refusal == nil) != (c.want != 0) {
			t.Errorf("%s: %d, %v", name, got, refusal)
		}
		if refusal != nil && (refusal.Code != CodeVersion || !strings.Contains(refusal.Message, "versions 1 to 2")) {
			t.Errorf("%s: %+v", name, refusal)
		}
	}
}

func TestVariablesThatExecveCannotPassAreRefused(t *testing.T) {
	for name, vars := range map[string]map[string]string{
		"empty name": {"": "x"}, "equals sign": {"A=B": "x"}, "zero in name": {"A\x00": "x"},
		"zero in value": {"A": "x\x00"}, "long": {"A": strings.Repeat("x", MaxVariable)},
		"long together": {"A": strings.Repeat("x", 60<<10), "B": strings.Repeat("x", 60<<10), "C": strings.Repeat("x", 60<<10),
			"D": strings.Repeat("x", 60<<10), "E": strings.Repeat("x", 60<<10), "F": strings.Repeat("x", 60<<10),
			"G": strings.Repeat("x", 60<<10), "H": strings.Repeat("x", 60<<10), "I": strings.Repeat("x", 60<<10)},
	} {
		if CheckVariables(vars) == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := CheckVariables(map[string]string{"A.b-c": "multi\nline ü", "_": ""}); err != nil {
		t.Error(err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x03abc\x06\x00\x00\x00"))
	f.Add([]byte("\x01\x0f\xff\xff{}"))
	f.Add([]byte("\x07\x00\x00\x04\x00\x00\x00\x09\x08\x00\x00\x04\x00\x18\x00\x50"))
	f.Add([]byte("\x03\x00\x00\x02{}\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		var again bytes.Buffer
		w := NewWriter(&again)
		for {
			frame, err := r.Next()
			if err != nil {
				break
			}
			if len(frame.Payload) > maxOf(frame.Kind) {
				t.Fatalf("%d bytes of kind %d", len(frame.Payload), frame.Kind)
			}
			_, _ = frame.Uint32()
			_, _ = frame.Size()
			var req Request
			_ = frame.Decode(&req)
			var entries []FileInfo
			_ = frame.Decode(&entries)
			if err := w.Send(frame.Kind, frame.Payload); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(b, again.Bytes()) {
			t.Fatal("what was decoded encodes to something else")
		}
	})
}

func FuzzDecodeEnv(f *testing.F) {
	f.Add([]byte(`{"A":"b","C":"line\nline"}`))
	f.Add([]byte(`{"A=":"b"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		vars, err := DecodeEnv(b)
		if err != nil {
			return
		}
		if CheckVariables(vars) != nil {
			t.Fatalf("accepted %q", vars)
		}
	})
}
