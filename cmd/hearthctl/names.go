package main

import (
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A name on Linux is bytes. In the Guest API a byte that is not UTF-8 is spelled
// \xNN, and so is a backslash that would read as one of these.

// encodeName spells a name or path for the Guest API.
func encodeName(name string) string {
	if utf8.ValidString(name) && !strings.Contains(name, `\x`) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if _, escape := escapeAt(name[i:]); escape || r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, name[i])
			i++
			continue
		}
		b.WriteString(name[i : i+n])
		i += n
	}
	return b.String()
}

// decodeName is its inverse.
func decodeName(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if c, ok := escapeAt(s[i:]); ok {
			b.WriteByte(c)
			i += 4
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

func escapeAt(s string) (byte, bool) {
	if len(s) < 4 || s[:2] != `\x` {
		return 0, false
	}
	var c [1]byte
	_, err := hex.Decode(c[:], []byte(s[2:4]))
	return c[0], err == nil
}
