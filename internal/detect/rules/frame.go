package rules

import (
	"bytes"
	"encoding/binary"
	"regexp"

	"hearth/internal/detect/flow"
)

// httpStart is a request or a status line (RFC 9112).
var httpStart = regexp.MustCompile(`^(?:[A-Z]{3,16} [^\r\n]+ HTTP/1\.[01]\r?\n|HTTP/1\.[01] [0-9]{3}[^\r\n]*\r?\n)`)

// chunkSize is the line before a chunk of an HTTP body.
var chunkSize = regexp.MustCompile(`^[0-9A-Fa-f]{1,8}(?:;[^\r\n]*)?\r?\n`)

// scanMessages finds the JSON objects of a stream's beginning, where a
// protocol would put them. Its cost is linear in the text: no byte is scanned
// as JSON more than once.
func scanMessages(data []byte) []*Message {
	var f framer
	data = data[:min(len(data), flow.Cap)]
	f.rest = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // byte order mark
	for f.next() {
	}
	return f.found
}

// framer steps through a stream.
type framer struct {
	rest  []byte
	found []*Message
}

// next handles what the rest begins with and reports whether to go on.
func (f *framer) next() bool {
	f.rest = bytes.TrimLeft(f.rest, "\x00\t\n\r ")
	switch {
	case len(f.rest) == 0:
		return false
	case f.rest[0] == '{' || f.rest[0] == '[':
		if !f.json() {
			f.skipLine()
		}
		return true
	case httpStart.Match(f.rest):
		return f.http()
	default:
		f.skipLine()
		return true
	}
}

func (f *framer) skipLine() {
	if i := bytes.IndexByte(f.rest, '\n'); i >= 0 {
		f.rest = f.rest[i+1:]
		return
	}
	f.rest = nil
}

// json reads one value at the start of the rest. The objects of a batch are
// messages of their own.
func (f *framer) json() bool {
	if f.rest[0] == '[' {
		return f.batch()
	}
	s := scanner{in: f.rest}
	whole := s.value("")
	f.emit(&s, 0, whole)
	f.rest = f.rest[s.at:]
	return whole
}

func (f *framer) batch() bool {
	s := scanner{in: f.rest, at: 1}
	defer func() { f.rest = f.rest[s.at:] }()
	for {
		s.space()
		if s.take(']') {
			return true
		}
		start := s.at
		s.fields = nil
		whole := s.value("")
		f.emit(&s, start, whole)
		if !whole {
			return false
		}
		s.space()
		s.take(',')
	}
}

func (f *framer) emit(s *scanner, start int, whole bool) {
	if len(s.fields) > 0 {
		f.found = append(f.found, &Message{fields: s.fields, raw: s.in[start:s.at], whole: whole})
	}
}

// http steps over a head. A body is looked at only if it begins as JSON or is
// of WebSocket frames: whatever else it is, it may quote anything.
func (f *framer) http() bool {
	head, body, ok := cutHead(f.rest)
	if !ok {
		return false
	}
	f.rest = body
	if isUpgrade(head) {
		f.webSocket()
		return false
	}
	f.rest = f.rest[len(chunkSize.Find(f.rest)):]
	rest := bytes.TrimLeft(f.rest, "\t\n\r ")
	return len(rest) > 0 && (rest[0] == '{' || rest[0] == '[' || httpStart.Match(rest))
}

func cutHead(data []byte) (head, body []byte, ok bool) {
	for _, end := range []string{"\r\n\r\n", "\n\n"} {
		if head, body, ok = bytes.Cut(data, []byte(end)); ok {
			return head, body, true
		}
	}
	return nil, nil, false
}

func isUpgrade(head []byte) bool {
	return bytes.Contains(bytes.ToLower(head), []byte("\nupgrade: websocket"))
}

// webSocket reads the frames (RFC 6455 §5.2) after a handshake. A client's are
// masked with a key that stands beside them.
func (f *framer) webSocket() {
	data := f.rest
	for len(data) >= 2 {
		masked, size := data[1]&0x80 != 0, uint64(data[1]&0x7f)
		data = data[2:]
		switch {
		case size == 126 && len(data) >= 2:
			size, data = uint64(binary.BigEndian.Uint16(data)), data[2:]
		case size == 127 && len(data) >= 8:
			size, data = binary.BigEndian.Uint64(data), data[8:]
		case size >= 126:
			return
		}
		var key [4]byte
		if masked {
			if len(data) < 4 {
				return
			}
			data = data[copy(key[:], data):]
		}
		n := int(min(size, uint64(len(data))))
		frame := make([]byte, n)
		for i := range frame {
			frame[i] = data[i] ^ key[i%4]
		}
		data = data[n:]
		f.found = append(f.found, scanLines(frame)...)
	}
}

// scanLines finds objects in a frame; frames do not nest.
func scanLines(data []byte) []*Message {
	f := framer{rest: data}
	for {
		f.rest = bytes.TrimLeft(f.rest, "\x00\t\n\r ")
		if len(f.rest) == 0 {
			return f.found
		}
		if (f.rest[0] == '{' || f.rest[0] == '[') && f.json() {
			continue
		}
		f.skipLine()
	}
}
