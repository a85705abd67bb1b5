package detect

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"hearth/bpf"
	"hearth/internal/detect/flow"
	"hearth/internal/detect/rules"
)

// The decoders spell out what the C declares.
func TestDecodersHaveTheLayoutsOfTheKernelPrograms(t *testing.T) {
	var p bpf.IslandPayloadEvent
	var x bpf.SensorsExecEvent
	var c bpf.SensorsConnectEvent
	var o bpf.SensorsFlowOwner
	var h bpf.SensorsSocketHolder
	var ft bpf.SensorsFlowTuple
	for name, pair := range map[string][2]uintptr{
		"payload size":       {unsafe.Sizeof(p), payloadHead + payloadMax},
		"payload net_id":     {unsafe.Offsetof(p.NetId), 8},
		"payload local":      {unsafe.Offsetof(p.LocalAddr), 12},
		"payload remote":     {unsafe.Offsetof(p.RemoteAddr), 16},
		"payload ports":      {unsafe.Offsetof(p.LocalPort), 20},
		"payload seq":        {unsafe.Offsetof(p.Seq), 24},
		"payload isn":        {unsafe.Offsetof(p.Isn), 28},
		"payload wire_len":   {unsafe.Offsetof(p.WireLen), 32},
		"payload len":        {unsafe.Offsetof(p.Len), 34},
		"payload direction":  {unsafe.Offsetof(p.Direction), 36},
		"payload protocol":   {unsafe.Offsetof(p.Protocol), 37},
		"payload has_isn":    {unsafe.Offsetof(p.HasIsn), 38},
		"payload data":       {unsafe.Offsetof(p.Data), payloadHead},
		"exec size":          {unsafe.Sizeof(x), execSize},
		"exec cgroup":        {unsafe.Offsetof(x.CgroupId), 8},
		"exec pid":           {unsafe.Offsetof(x.Pid), 20},
		"exec ppid":          {unsafe.Offsetof(x.Ppid), 24},
		"exec uid":           {unsafe.Offsetof(x.Uid), 28},
		"exec path_len":      {unsafe.Offsetof(x.PathLen), 32},
		"exec args_len":      {unsafe.Offsetof(x.ArgsLen), 34},
		"exec comm":          {unsafe.Offsetof(x.Comm), 40},
		"exec path":          {unsafe.Offsetof(x.Path), execHead},
		"exec args":          {unsafe.Offsetof(x.Args), execHead + execPath},
		"connect size":       {unsafe.Sizeof(c), connectSize},
		"connect owner":      {unsafe.Offsetof(c.Owner), 8},
		"connect tuple":      {unsafe.Offsetof(c.Tuple), 48},
		"connect outcome":    {unsafe.Offsetof(c.Outcome), 60},
		"owner size":         {unsafe.Sizeof(o), ownerSize},
		"owner cgroup":       {unsafe.Offsetof(o.CgroupId), 8},
		"owner net_id":       {unsafe.Offsetof(o.NetId), 16},
		"owner pid":          {unsafe.Offsetof(o.Pid), 20},
		"owner comm":         {unsafe.Offsetof(o.Comm), 24},
		"tuple size":         {unsafe.Sizeof(ft), 12},
		"tuple remote":       {unsafe.Offsetof(ft.RemoteAddr), 4},
		"tuple ports":        {unsafe.Offsetof(ft.LocalPort), 8},
		"holder size":        {unsafe.Sizeof(h), holderSize},
		"holder pid":         {unsafe.Offsetof(h.Pid), 80},
		"holder comm":        {unsafe.Offsetof(h.Comm), 88},
		"holder's ancestors": {uintptr(reflect.TypeOf(h.Ancestors).Len()), 10},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: the kernel's is %d, the decoder's %d", name, pair[0], pair[1])
		}
	}
}

func TestPayloadRecordIsReadBack(t *testing.T) {
	want := flow.Segment{
		Key: flow.Key{
			NetID: 77, Protocol: flow.UDP,
			Local: netip.MustParseAddrPort("100.96.1.2:40001"), Remote: netip.MustParseAddrPort("198.51.100.9:53"),
		},
		Direction: flow.In, Seq: 0xfffffff0, ISN: 0xffffffe0, HasISN: true, Data: []byte("hello"), At: 123456789,
	}
	got, err := decodePayload(encodePayload(want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpAddr); diff != "" {
		t.Errorf("segment (-want +got):\n%s", diff)
	}
}

func TestRecordsThatLieAreRefused(t *testing.T) {
	good := encodePayload(flow.Segment{Key: flow.Key{Protocol: flow.TCP, Local: netip.MustParseAddrPort("1.2.3.4:5"), Remote: netip.MustParseAddrPort("1.2.3.4:6")}})
	for name, change := range map[string]func(b []byte) []byte{
		"empty":             func([]byte) []byte { return nil },
		"half a head":       func(b []byte) []byte { return b[:payloadHead-1] },
		"length beyond":     func(b []byte) []byte { binary.LittleEndian.PutUint16(b[34:], payloadMax+1); return b },
		"length of another": func(b []byte) []byte { binary.LittleEndian.PutUint16(b[34:], 10); return b[:payloadHead+9] },
		"direction":         func(b []byte) []byte { b[36] = 2; return b },
		"protocol":          func(b []byte) []byte { b[37] = 1; return b },
	} {
		if _, err := decodePayload(change(slices.Clone(good))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	exec := make([]byte, execSize)
	binary.LittleEndian.PutUint16(exec[34:], execArgs+1)
	if _, _, err := decodeExec(exec); err == nil {
		t.Error("exec with more arguments than there is room for: accepted")
	}
	if _, _, err := decodeConnect(make([]byte, connectSize-1)); err == nil {
		t.Error("short connect: accepted")
	}
}

func TestExecRecordIsReadBack(t *testing.T) {
	b := make([]byte, execSize)
	le := binary.LittleEndian
	le.PutUint64(b, 5)
	le.PutUint64(b[8:], 99)
	le.PutUint32(b[20:], 1234)
	le.PutUint32(b[24:], 1)
	le.PutUint32(b[28:], 100000)
	le.PutUint16(b[32:], uint16(copy(b[execHead:], "/bin/\xffx")))
	le.PutUint16(b[34:], uint16(copy(b[execHead+execPath:], "x\x00-a\x00cut")))
	copy(b[40:], "x")
	s, ev, err := decodeExec(b)
	if err != nil {
		t.Fatal(err)
	}
	want := &rules.Exec{PID: 1234, PPID: 1, UID: 100000, Comm: "x", Path: "/bin/\uFFFDx", Args: []string{"x", "-a", "cut"}}
	if diff := cmp.Diff(want, ev); diff != "" || s != (sensed{at: 5 * time.Nanosecond, cgroup: 99}) {
		t.Errorf("%+v (-want +got):\n%s", s, diff)
	}
}

func FuzzDecoders(f *testing.F) {
	f.Add(make([]byte, payloadSize))
	f.Add(make([]byte, execSize))
	f.Add(make([]byte, connectSize))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if seg, err := decodePayload(b); err == nil && len(seg.Data) > payloadMax {
			t.Errorf("%d bytes of data", len(seg.Data))
		}
		if _, ev, err := decodeExec(b); err == nil && len(ev.Args) > execArgs {
			t.Errorf("%d arguments", len(ev.Args))
		}
		_, _, _ = decodeConnect(b)
		decodeHolders(b, func(id uint64) bool { return id%2 == 0 })
	})
}
