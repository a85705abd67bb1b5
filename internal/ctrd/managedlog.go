package ctrd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Bounds of the managed containerd's log, in bytes.
const (
	maxLog  = 4 << 20
	keptLog = 64 << 10

	logInterval = time.Hour // how often its size is looked at
)

// boundLog cuts a log that has grown beyond maxLog to its end. containerd
// appends to it, so that this works while it runs; what it writes at that very
// moment may be lost. It frees before it writes: the disk may be full.
func boundLog(path string) error {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() <= maxLog {
		return nil
	}
	if err != nil {
		return err
	}
	end, err := tail(path, keptLog)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "… %d bytes before this were cut\n%s", st.Size()-int64(len(end)), end)
	return errors.Join(err, f.Close())
}

// lastLine is the last line of the last 4 KiB.
func lastLine(path string) string {
	b, err := tail(path, 4<<10)
	if err != nil {
		return err.Error()
	}
	s := strings.TrimSpace(string(b))
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// tail reads at most the last n bytes.
func tail(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-n), n))
}
