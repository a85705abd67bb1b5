package detect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

// payloadRing is a ring buffer with a producer, in the place of the island's.
type payloadRing struct {
	ring *ebpf.Map
	prog *ebpf.Program
}

func newPayloadRing(t testing.TB) *payloadRing {
	t.Helper()
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 1 << 20})
	if err != nil {
		t.Fatalf("make ring: %v", err)
	}
	t.Cleanup(func() { _ = ring.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapPtr(asm.R1, ring.FD()),
		asm.Mov.Imm(asm.R2, payloadSize),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "full"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 14), // the frame's Ethernet header
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Mov.Imm(asm.R4, payloadSize),
		asm.FnSkbLoadBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufSubmit.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("full"),
		asm.Return(),
	}})
	if err != nil {
		t.Fatalf("load producer: %+v", err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	return &payloadRing{ring: ring, prog: prog}
}

func (r *payloadRing) send(t testing.TB, seg flow.Segment) {
	t.Helper()
	frame := append(make([]byte, 14), encodePayload(seg)...)
	ret, _, err := r.prog.Test(frame)
	if err != nil || ret != 0 {
		t.Fatalf("send payload: %d, %v", ret, err)
	}
}

// said is a segment from the environment, as the veth would show it now.
func said(net env.NetID, local, remote netip.AddrPort, text string) flow.Segment {
	return flow.Segment{
		Key:       flow.Key{NetID: net, Protocol: flow.TCP, Local: local, Remote: remote},
		Direction: flow.Out, Seq: 7, ISN: 7, HasISN: true, Data: []byte(text), At: monotonic(),
	}
}

func eventually(t testing.TB, what string, yes func() bool) {
	t.Helper()
	for range 500 {
		if yes() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within 5 s: %s", what)
}
