package durable

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeOnce is one pwrite(2). os.File.WriteAt repeats after a short write,
// which would hide how far a failed append came.
func writeOnce(f *os.File, p []byte, off int64) (n int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctl := conn.Control(func(fd uintptr) {
		for {
			n, err = unix.Pwrite(int(fd), p, off)
			if err != unix.EINTR { // nothing was written: not a second write
				return
			}
		}
	})
	if ctl != nil {
		return 0, ctl
	}
	return max(n, 0), err
}

// dataSync flushes the file's data and its length.
func dataSync(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ctl := conn.Control(func(fd uintptr) {
		for {
			if err = unix.Fdatasync(int(fd)); err != unix.EINTR {
				return
			}
		}
	})
	if ctl != nil {
		return ctl
	}
	return err
}
