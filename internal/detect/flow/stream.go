package flow

import (
	"math/bits"
	"time"
)

// stream is one direction of a TCP flow.
type stream struct {
	base     uint32 // sequence number of buf[0]
	started  bool
	conflict bool
	segments int
	first    time.Duration
	seen     Seen
	prefix   int              // bytes from the start without a gap
	buf      []byte           // grows up to Cap
	have     [Cap / 64]uint64 // which bytes of buf are real
}

// start fixes the place of the first byte. Without an ISN it is the first
// byte seen: what came before it is not known and never will be.
func (s *stream) start(seg *Segment) {
	s.base = seg.Seq
	if seg.HasISN {
		s.base = seg.ISN
	}
	s.started = true
	s.first = seg.At
}

// restarted reports whether seg belongs to a newer connection that uses the
// same ports.
func (s *stream) restarted(seg *Segment) bool {
	return s.started && seg.HasISN && seg.ISN != s.base
}

// add places seg and reports whether the prefix has grown.
func (s *stream) add(seg *Segment) bool {
	if !s.started {
		s.start(seg)
	}
	s.segments++
	off := int64(int32(seg.Seq - s.base)) // signed: numbers wrap
	data := seg.Data
	if off < 0 { // a keep-alive probe or a segment from before the capture
		if -off >= int64(len(data)) {
			return false
		}
		data, off = data[-off:], 0
	}
	if off >= Cap || len(data) == 0 {
		return false
	}
	data = data[:min(int64(len(data)), Cap-off)]
	s.place(int(off), data)
	return s.advance()
}

func (s *stream) place(off int, data []byte) {
	if need := off + len(data); need > len(s.buf) {
		s.grow(need)
	}
	for i, b := range data {
		at := off + i
		word, bit := at/64, uint64(1)<<(at%64)
		switch {
		case s.have[word]&bit == 0:
			s.have[word] |= bit
			s.buf[at] = b
		case s.buf[at] != b:
			s.conflict = true
		}
	}
}

// grow keeps capacities to powers of two, so that a stream of many small
// segments is copied only a few times.
func (s *stream) grow(need int) {
	if need <= cap(s.buf) {
		s.buf = s.buf[:need]
		return
	}
	size := max(256, 1<<bits.Len(uint(need-1)))
	buf := make([]byte, need, size)
	copy(buf, s.buf)
	s.buf = buf
}

func (s *stream) advance() bool {
	was := s.prefix
	for s.prefix < len(s.buf) {
		rest := ^s.have[s.prefix/64] >> (s.prefix % 64)
		run := bits.TrailingZeros64(rest)
		run = min(run, 64-s.prefix%64)
		if run == 0 {
			break
		}
		s.prefix += run
	}
	return s.prefix > was
}
