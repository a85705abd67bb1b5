package main

import (
	"os"
	"strings"
	"sync"

	"hearth/internal/guest/wire"
)

// tailSize is how much of a process's last output is kept for messages.
const tailSize = 2 << 10

// tail keeps the end of what was written to it.
type tail struct {
	// mu guards buf.
	mu  sync.Mutex
	buf []byte
}

func (t *tail) add(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(b) >= tailSize {
		t.buf = append(t.buf[:0], b[len(b)-tailSize:]...)
		return
	}
	if over := len(t.buf) + len(b) - tailSize; over > 0 {
		t.buf = t.buf[:copy(t.buf, t.buf[over:])]
	}
	t.buf = append(t.buf, b...)
}

func (t *tail) Write(b []byte) (int, error) {
	t.add(b)
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.buf), "\uFFFD"))
}

// Shares of wire.LogBudget: a file and its predecessor per service.
const (
	leastShare = wire.LogBudget / (2 * wire.MaxServices)
	mostShare  = 64 << 10
)

// shareOf is how large one file may become, in bytes.
func shareOf(services int) int {
	return min(mostShare, max(leastShare, wire.LogBudget/(2*max(1, services))))
}

// logFile is a file of bounded size with one predecessor, path.1. What cannot
// be written is dropped: a full disk must not stop the service.
type logFile struct {
	path string
	most int
	file *os.File
	size int
}

func newLogFile(path string, most int) *logFile { return &logFile{path: path, most: most} }

func (l *logFile) write(b []byte) {
	for len(b) > 0 {
		if l.file == nil || l.size >= l.most {
			l.rotate()
		}
		if l.file == nil {
			return
		}
		part := b[:min(len(b), l.most-l.size)]
		n, err := l.file.Write(part)
		l.size += n
		if err != nil {
			return
		}
		b = b[len(part):]
	}
}

func (l *logFile) rotate() {
	if l.file != nil {
		_ = os.Rename(l.path, l.path+".1")
	}
	l.close()
	_ = os.Remove(l.path) // whatever someone inside put in its place
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o644)
	if err != nil {
		return
	}
	l.file, l.size = f, 0
}

func (l *logFile) close() {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
