package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"hearth/internal/env"
)

// A stream carries one snapshot from store to store, integers little endian:
//
//	"HEARTHSX" | version u32 | frames
//	frame    kind u8 | length u32 | crc32c of both and the payload u32 | payload
//
// Frames come in this order: one head, one reference, records, one end. The
// head is JSON of streamHead. The reference is the source's own file, closed by
// the lineage's key; its pack numbers mean nothing elsewhere. Records are as in
// a pack, each once, in no order that matters, and none that the snapshot does
// not name. The end has their number (u64), and nothing follows it.
//
// The lineage's secret travels along, since names can be neither checked nor
// continued without it. It opens no other lineage but the forks of this one,
// which are the same tenant's. A stream is therefore as secret as the files in
// it, and goes only over connections on which both ends are known.
const (
	streamMagic    = "HEARTHSX"
	streamVersion  = 1
	streamHdrLen   = 12
	frameHdrLen    = 9
	maxStreamHead  = 4096
	maxFrameRecord = recordHdrLen + maxRaw
)

type frameKind uint8

const (
	frameHead   frameKind = 1
	frameRef    frameKind = 2
	frameRecord frameKind = 3
	frameEnd    frameKind = 4
)

// limit is the longest payload of a frame.
func (k frameKind) limit() uint32 {
	switch k {
	case frameHead:
		return maxStreamHead
	case frameRef:
		return maxRef
	case frameRecord:
		return maxFrameRecord
	case frameEnd:
		return 8
	}
	return 0
}

type streamHead struct {
	ID     ID     `json:"id"`
	Tenant string `json:"tenant"`
	Secret []byte `json:"secret"`
}

type streamWriter struct{ w io.Writer }

func (s *streamWriter) begin(h streamHead) error {
	b := binary.LittleEndian.AppendUint32([]byte(streamMagic), streamVersion)
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	body, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode stream head: %w", err)
	}
	return s.frame(frameHead, body)
}

func (s *streamWriter) frame(kind frameKind, payload []byte) error {
	var h [frameHdrLen]byte
	h[0] = byte(kind)
	binary.LittleEndian.PutUint32(h[1:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(h[5:], crc32.Update(crc(h[:5]), castagnoli, payload))
	if _, err := s.w.Write(h[:]); err != nil {
		return err
	}
	_, err := s.w.Write(payload)
	return err
}

func (s *streamWriter) end(records uint64) error {
	return s.frame(frameEnd, binary.LittleEndian.AppendUint64(nil, records))
}

// streamReader reads foreign bytes. What it returns is valid until the next
// frame.
type streamReader struct {
	r   io.Reader
	buf []byte
}

// brokenOff is the error of a stream that ends before its end.
func brokenOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the stream breaks off", env.ErrUnavailable)
	}
	return fmt.Errorf("read stream: %w", err)
}

func (s *streamReader) begin() (h streamHead, err error) {
	var b [streamHdrLen]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		return h, brokenOff(err)
	}
	if string(b[:8]) != streamMagic {
		return h, fmt.Errorf("%w: not a snapshot stream", env.ErrCorrupt)
	}
	if err := checkVersion("stream", binary.LittleEndian.Uint32(b[8:]), streamVersion); err != nil {
		return h, err
	}
	body, err := s.expect(frameHead)
	if err != nil {
		return h, err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return h, fmt.Errorf("%w: stream head: %w", env.ErrCorrupt, err)
	}
	if len(h.Secret) != keyLen {
		return h, fmt.Errorf("%w: stream has a secret of %d bytes", env.ErrCorrupt, len(h.Secret))
	}
	return h, checkTenant(h.Tenant)
}

func (s *streamReader) expect(want frameKind) ([]byte, error) {
	kind, payload, err := s.frame()
	if err == nil && kind != want {
		err = fmt.Errorf("%w: stream has frame %d where %d belongs", env.ErrCorrupt, kind, want)
	}
	return payload, err
}

func (s *streamReader) frame() (frameKind, []byte, error) {
	var h [frameHdrLen]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		return 0, nil, brokenOff(err)
	}
	kind, n := frameKind(h[0]), binary.LittleEndian.Uint32(h[1:])
	if n > kind.limit() {
		return 0, nil, fmt.Errorf("%w: stream frame %d of %d bytes", env.ErrCorrupt, kind, n)
	}
	if cap(s.buf) < int(n) {
		s.buf = make([]byte, n)
	}
	payload := s.buf[:n]
	if _, err := io.ReadFull(s.r, payload); err != nil {
		return 0, nil, brokenOff(err)
	}
	if crc32.Update(crc(h[:5]), castagnoli, payload) != binary.LittleEndian.Uint32(h[5:]) {
		return 0, nil, fmt.Errorf("%w: stream frame checksum", env.ErrCorrupt)
	}
	return kind, payload, nil
}

// finish reads to the end of the stream, where a source says that it failed
// after all.
func (s *streamReader) finish() error {
	var b [1]byte
	switch n, err := io.ReadFull(s.r, b[:]); {
	case n > 0:
		return fmt.Errorf("%w: bytes after the stream's end", env.ErrCorrupt)
	case !errors.Is(err, io.EOF):
		return brokenOff(err)
	}
	return nil
}
