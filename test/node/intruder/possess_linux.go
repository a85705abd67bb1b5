//go:build amd64

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// possess stops pid 1 and has it call execve.
func possess(program string) {
	from, to := code()
	mem, err := os.OpenFile("/proc/1/mem", os.O_RDWR, 0)
	check(err)
	text := make([]byte, to-from)
	_, err = mem.ReadAt(text, int64(from))
	check(err)
	at := bytes.Index(text, []byte{0x0f, 0x05}) // syscall
	if at < 0 {
		fail(errors.New("pid 1 calls no system"))
	}
	runtime.LockOSThread() // which is the tracer
	check(unix.PtraceAttach(1))
	var status unix.WaitStatus
	_, err = unix.Wait4(1, &status, unix.WALL, nil)
	check(err)
	var regs unix.PtraceRegs
	check(unix.PtraceGetRegs(1, &regs))
	// Below what the stack may use: two texts, and the vector of them.
	stack := (regs.Rsp - 4096) &^ 15
	block := make([]byte, 0, 512)
	block = append(append(block, program...), 0)
	turned := stack + uint64(len(block))
	block = append(append(block, "turned"...), 0)
	for len(block)%8 != 0 {
		block = append(block, 0)
	}
	argv := stack + uint64(len(block))
	for _, p := range []uint64{stack, turned, 0} {
		block = binary.LittleEndian.AppendUint64(block, p)
	}
	_, err = mem.WriteAt(block, int64(stack))
	check(err)
	regs.Orig_rax = ^uint64(0) // nothing to be restarted
	regs.Rax, regs.Rdi, regs.Rsi, regs.Rdx = unix.SYS_EXECVE, stack, argv, 0
	regs.Rip = from + uint64(at)
	check(unix.PtraceSetRegs(1, &regs))
	check(unix.PtraceDetach(1))
}
