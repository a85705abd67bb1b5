package main

import (
	"bytes"
	"fmt"
	"strconv"
)

// parseStatus takes the code from an HTTP/1 status line (RFC 9112, section 4).
func parseStatus(line []byte) (int, error) {
	proto, rest, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\r")), []byte(" "))
	if !ok || !bytes.HasPrefix(proto, []byte("HTTP/1.")) {
		return 0, fmt.Errorf("answer is not HTTP/1: %.64q", line)
	}
	code, _, _ := bytes.Cut(rest, []byte(" "))
	n, err := strconv.ParseUint(string(code), 10, 16)
	if err != nil || len(code) != 3 || n < 100 {
		return 0, fmt.Errorf("answer has no status: %.64q", line)
	}
	return int(n), nil
}
