package rules

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxPath bounds what a scalar's path can cost. A scalar with a longer one is
// passed over, and the object goes on. Nesting is bounded by the text, which is
// flow.Cap long at most.
const maxPath = 96

// field is one scalar of an object. Repeated keys make repeated fields: which
// of them a peer believes is the peer's choice.
type field struct {
	path string // keys and indexes joined by dots
	kind byte   // 's' string, 'n' number, 'l' literal
	text string // the string's content or the scalar as written
}

// scanner reads one JSON value (RFC 8259) and keeps what it understood, also
// when the text ends or goes wrong in the middle.
type scanner struct {
	in     []byte
	at     int
	fields []field
}

// value reads one value and reports whether it was whole and right.
func (s *scanner) value(path string) bool {
	s.space()
	if s.at >= len(s.in) {
		return false
	}
	switch c := s.in[s.at]; {
	case c == '{':
		return s.object(path)
	case c == '[':
		return s.array(path)
	case c == '"':
		text, ok := s.str()
		if ok {
			s.keep(path, 's', text)
		}
		return ok
	default:
		return s.bare(path)
	}
}

func (s *scanner) object(path string) bool {
	s.at++ // {
	if s.space(); s.take('}') {
		return true
	}
	for {
		if s.space(); s.at >= len(s.in) || s.in[s.at] != '"' {
			return false
		}
		key, ok := s.str()
		if !ok {
			return false
		}
		if s.space(); !s.take(':') {
			return false
		}
		if !s.value(join(path, key)) {
			return false
		}
		if s.space(); s.take('}') {
			return true
		}
		if !s.take(',') {
			return false
		}
	}
}

func (s *scanner) array(path string) bool {
	s.at++ // [
	if s.space(); s.take(']') {
		return true
	}
	for i := 0; ; i++ {
		if !s.value(join(path, strconv.Itoa(i))) {
			return false
		}
		if s.space(); s.take(']') {
			return true
		}
		if !s.take(',') {
			return false
		}
	}
}

// bare reads a number or a literal. At the end of the text it may go on, so it
// is not kept.
func (s *scanner) bare(path string) bool {
	start := s.at
	for s.at < len(s.in) && strings.IndexByte("+-.0123456789abcdefghijklmnopqrstuvwxyzE", s.in[s.at]) >= 0 {
		s.at++
	}
	if s.at == start || s.at == len(s.in) {
		return false
	}
	text := string(s.in[start:s.at])
	switch text {
	case "true", "false", "null":
		s.keep(path, 'l', text)
	default:
		if _, err := strconv.ParseFloat(text, 64); err != nil {
			return false
		}
		s.keep(path, 'n', text)
	}
	return true
}

// str reads a string; text that is not UTF-8 stays as it is.
func (s *scanner) str() (string, bool) {
	s.at++ // "
	start := s.at
	for s.at < len(s.in) {
		switch s.in[s.at] {
		case '"':
			text := string(s.in[start:s.at])
			s.at++
			return text, true
		case '\\':
			return s.escaped(start)
		}
		s.at++
	}
	return "", false
}

// escaped goes on with a string that has escapes, from the first one.
func (s *scanner) escaped(start int) (string, bool) {
	out := append([]byte(nil), s.in[start:s.at]...)
	for s.at < len(s.in) {
		c := s.in[s.at]
		s.at++
		switch c {
		case '"':
			return string(out), true
		case '\\':
			var ok bool
			if out, ok = s.escape(out); !ok {
				return "", false
			}
		default:
			out = append(out, c)
		}
	}
	return "", false
}

func (s *scanner) escape(out []byte) ([]byte, bool) {
	if s.at >= len(s.in) {
		return nil, false
	}
	c := s.in[s.at]
	s.at++
	if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 {
		return append(out, "\"\\/\b\f\n\r\t"[i]), true
	}
	if c != 'u' {
		return nil, false
	}
	r, ok := s.hex4()
	if !ok {
		return nil, false
	}
	if utf16.IsSurrogate(r) && s.at+1 < len(s.in) && s.in[s.at] == '\\' && s.in[s.at+1] == 'u' {
		s.at += 2
		low, ok := s.hex4()
		if !ok {
			return nil, false
		}
		r = utf16.DecodeRune(r, low)
	}
	return utf8.AppendRune(out, r), true
}

func (s *scanner) hex4() (rune, bool) {
	if s.at+4 > len(s.in) {
		s.at = len(s.in) // unfinished, not wrong
		return 0, false
	}
	n, err := strconv.ParseUint(string(s.in[s.at:s.at+4]), 16, 32)
	s.at += 4
	return rune(n), err == nil
}

func (s *scanner) keep(path string, kind byte, text string) {
	if len(path) <= maxPath {
		s.fields = append(s.fields, field{path, kind, text})
	}
}

// space skips whitespace, and the other control characters with it: some
// peers do.
func (s *scanner) space() {
	for s.at < len(s.in) && s.in[s.at] <= ' ' {
		s.at++
	}
}

func (s *scanner) take(c byte) bool {
	if s.at < len(s.in) && s.in[s.at] == c {
		s.at++
		return true
	}
	return false
}

// join makes a path; one that is too long stays too long.
func join(path, key string) string {
	if path == "" {
		return key
	}
	if len(path) > maxPath {
		return path
	}
	return path + "." + key
}
