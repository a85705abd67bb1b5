package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// code is where the program of pid 1 lies in its memory.
func code() (from, to uint64) {
	maps, err := os.ReadFile("/proc/1/maps")
	check(err)
	for line := range strings.Lines(string(maps)) {
		var flags string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &flags); err == nil && flags == "r-xp" {
			return from, to
		}
	}
	fail(errors.New("pid 1 has no code"))
	return 0, 0
}

// overwrite lets pid 1 run into zeros.
func overwrite() {
	from, to := code()
	mem, err := os.OpenFile("/proc/1/mem", os.O_RDWR, 0)
	check(err)
	zeros := make([]byte, 4096)
	for at := from; at < to; at += uint64(len(zeros)) {
		_, err := mem.WriteAt(zeros, int64(at))
		check(err)
	}
}
