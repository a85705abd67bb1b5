package guestapi

import (
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// Names on Linux are bytes, strings of protobuf are UTF-8. A byte that is not
// UTF-8 travels as \xNN, and so does a backslash that would read as one of
// these, so that every name has one spelling and every listed name can be
// asked for.

const hexDigits = "0123456789abcdef"

// encodeName spells bytes as text.
func encodeName(name string) string {
	if utf8.ValidString(name) && !strings.Contains(name, `\x`) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		_, escaped := escapeAt(name[i:])
		if r == utf8.RuneError && n == 1 || escaped {
			b.WriteString(`\x`)
			b.WriteByte(hexDigits[name[i]>>4])
			b.WriteByte(hexDigits[name[i]&15])
			i++
			continue
		}
		b.WriteString(name[i : i+n])
		i += n
	}
	return b.String()
}

// decodePath turns what encodeName spelled back into bytes.
func decodePath(path string) string {
	if !strings.Contains(path, `\x`) {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); {
		if c, ok := escapeAt(path[i:]); ok {
			b.WriteByte(c)
			i += 4
			continue
		}
		b.WriteByte(path[i])
		i++
	}
	return b.String()
}

// escapeAt says whether s begins with \xNN.
func escapeAt(s string) (byte, bool) {
	if len(s) < 4 || s[:2] != `\x` {
		return 0, false
	}
	var c [1]byte
	if _, err := hex.Decode(c[:], []byte(s[2:4])); err != nil {
		return 0, false
	}
	return c[0], true
}
