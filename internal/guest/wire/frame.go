package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// SocketName is the abstract address of envinit. Go and the kernel write the
// leading zero byte as "@". It needs no instance in it: each environment has a
// network namespace, hence a name space of abstract sockets, of its own.
const SocketName = "@hearth/init"

// Bounds of a frame's payload, in bytes.
const (
	MaxPayload = 64 << 10
	MaxRequest = 1 << 20
)

// headerSize is a frame's kind and length.
const headerSize = 4

// Kind says what a frame's payload is.
type Kind uint8

// The kinds. Their numbers are the protocol.
const (
	KindRequest Kind = 1  // JSON Request; the first frame, from the node
	KindReply   Kind = 2  // JSON, by operation
	KindError   Kind = 3  // JSON Error; the last frame
	KindData    Kind = 4  // stdin, stdout (all output of a terminal) or a file's content
	KindStderr  Kind = 5  // standard error of a process without a terminal
	KindEnd     Kind = 6  // the sender has no more data; JSON End, may be empty
	KindSignal  Kind = 7  // 4 bytes: signal for the process group
	KindResize  Kind = 8  // 2 × 2 bytes: rows, columns
	KindExit    Kind = 9  // JSON Exit; the last frame of exec
	KindEntries Kind = 10 // JSON array of FileInfo
	KindWindow  Kind = 11 // 4 bytes: this much of stdin has reached the process
	KindHangup  Kind = 12 // the caller has gone: SIGHUP for the process group
	lastKind         = KindHangup
)

// ErrFrame is the base of every complaint about a frame's form.
var ErrFrame = errors.New("malformed frame")

// Frame is one decoded frame. Payload is valid until the next call of Next.
type Frame struct {
	Kind    Kind
	Payload []byte
}

// Reader decodes frames. It never buffers beyond the frame at hand, so that
// the connection can be used raw afterwards. Not for concurrent use.
type Reader struct {
	r    io.Reader
	head [headerSize]byte
	buf  []byte
}

// NewReader reads frames from r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next returns the next frame. It is io.EOF only between two frames; a frame
// cut short is io.ErrUnexpectedEOF, a malformed one is ErrFrame.
func (d *Reader) Next() (Frame, error) {
	if _, err := io.ReadFull(d.r, d.head[:]); err != nil {
		return Frame{}, err
	}
	kind, size := parseHeader(d.head)
	if kind == 0 || kind > lastKind {
		return Frame{}, fmt.Errorf("%w: kind %d is not known", ErrFrame, kind)
	}
	if most := maxOf(kind); size > most {
		return Frame{}, fmt.Errorf("%w: %d bytes of kind %d exceed %d", ErrFrame, size, kind, most)
	}
	if cap(d.buf) < size {
		d.buf = make([]byte, size, roundUp(size))
	}
	d.buf = d.buf[:size]
	if _, err := io.ReadFull(d.r, d.buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return Frame{Kind: kind, Payload: d.buf}, nil
}

func parseHeader(head [headerSize]byte) (Kind, int) {
	return Kind(head[0]), int(head[1])<<16 | int(head[2])<<8 | int(head[3])
}

func maxOf(kind Kind) int {
	if kind == KindRequest {
		return MaxRequest
	}
	return MaxPayload
}

// roundUp keeps small operations on small buffers and large ones from growing
// them step by step.
func roundUp(size int) int {
	for _, step := range [...]int{512, 8 << 10, MaxPayload} {
		if size <= step {
			return step
		}
	}
	return size
}

// Writer encodes frames.
type Writer struct {
	// mu keeps frames whole: several goroutines of one operation write to one
	// connection. A peer that does not read blocks only this operation, whose
	// owner closes the connection.
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewWriter writes frames to w, each in one call of Write.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Send writes one frame.
func (e *Writer) Send(kind Kind, payload []byte) error {
	if most := maxOf(kind); len(payload) > most {
		return fmt.Errorf("%w: %d bytes of kind %d exceed %d", ErrFrame, len(payload), kind, most)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if need := headerSize + len(payload); cap(e.buf) < need {
		e.buf = make([]byte, 0, headerSize+roundUp(len(payload)))
	}
	n := len(payload)
	e.buf = append(e.buf[:0], byte(kind), byte(n>>16), byte(n>>8), byte(n))
	e.buf = append(e.buf, payload...)
	_, err := e.w.Write(e.buf)
	return err
}

// SendJSON writes one frame whose payload is v in JSON.
func (e *Writer) SendJSON(kind Kind, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame of kind %d: %w", kind, err)
	}
	return e.Send(kind, payload)
}

// SendUint32 writes a signal or window frame.
func (e *Writer) SendUint32(kind Kind, n uint32) error {
	return e.Send(kind, binary.BigEndian.AppendUint32(nil, n))
}

// Uint32 decodes the payload of a signal or window frame.
func (f Frame) Uint32() (uint32, error) {
	if len(f.Payload) != 4 {
		return 0, fmt.Errorf("%w: kind %d has %d bytes, not 4", ErrFrame, f.Kind, len(f.Payload))
	}
	return binary.BigEndian.Uint32(f.Payload), nil
}

// SendSize writes a resize frame.
func (e *Writer) SendSize(s Size) error {
	b := binary.BigEndian.AppendUint16(nil, s.Rows)
	return e.Send(KindResize, binary.BigEndian.AppendUint16(b, s.Columns))
}

// Size decodes the payload of a resize frame.
func (f Frame) Size() (Size, error) {
	if len(f.Payload) != 4 {
		return Size{}, fmt.Errorf("%w: kind %d has %d bytes, not 4", ErrFrame, f.Kind, len(f.Payload))
	}
	return Size{Rows: binary.BigEndian.Uint16(f.Payload), Columns: binary.BigEndian.Uint16(f.Payload[2:])}, nil
}

// Decode decodes a JSON payload into v. Unknown fields are passed over, since
// the other side may be newer.
func (f Frame) Decode(v any) error {
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fmt.Errorf("%w: kind %d: %w", ErrFrame, f.Kind, err)
	}
	return nil
}
