package detect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"time"

	"hearth/internal/detect/flow"
	"hearth/internal/detect/rules"
	"hearth/internal/env"
)

// The layouts are those of bpf/include/payload.h and bpf/include/events.h; a
// test compares them with what bpf2go generated.
const (
	payloadHead = 48
	payloadMax  = 1024
	execHead    = 56
	execPath    = 256
	execArgs    = 512
	execSize    = execHead + execPath + execArgs
	connectSize = 64
	ownerSize   = 40
	holderSize  = 104
	commLen     = 16
)

var errRecord = errors.New("record of a wrong size or content")

// decodePayload reads a struct payload_event. The segment's data is the
// record's own.
func decodePayload(b []byte) (flow.Segment, error) {
	if len(b) < payloadHead {
		return flow.Segment{}, errRecord
	}
	le := binary.LittleEndian
	n := int(le.Uint16(b[34:]))
	dir, proto := flow.Direction(b[36]), flow.Protocol(b[37])
	if n > payloadMax || payloadHead+n > len(b) || dir > flow.In || proto != flow.TCP && proto != flow.UDP {
		return flow.Segment{}, errRecord
	}
	return flow.Segment{
		Key: flow.Key{
			NetID: env.NetID(le.Uint32(b[8:])), Protocol: proto,
			Local:  addrPort(b[12:16], b[20:22]),
			Remote: addrPort(b[16:20], b[22:24]),
		},
		Direction: dir,
		Seq:       le.Uint32(b[24:]),
		ISN:       le.Uint32(b[28:]),
		HasISN:    b[38] == 1,
		Cut:       int(le.Uint16(b[32:])) > n,
		Data:      b[payloadHead : payloadHead+n],
		At:        time.Duration(le.Uint64(b)),
	}, nil
}

// addrPort reads an address and a port that are in network byte order.
func addrPort(addr, port []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr)), binary.BigEndian.Uint16(port))
}

// sensed is what an event of the sensors tells beyond its content.
type sensed struct {
	at     time.Duration
	cgroup uint64
}

// decodeExec reads a struct exec_event.
func decodeExec(b []byte) (sensed, *rules.Exec, error) {
	if len(b) < execSize {
		return sensed{}, nil, errRecord
	}
	le := binary.LittleEndian
	pathLen, argsLen := int(le.Uint16(b[32:])), int(le.Uint16(b[34:]))
	if pathLen > execPath || argsLen > execArgs {
		return sensed{}, nil, errRecord
	}
	ev := &rules.Exec{
		PID: int(le.Uint32(b[20:])), PPID: int(le.Uint32(b[24:])), UID: int(le.Uint32(b[28:])),
		Comm: cString(b[40:execHead]),
		Path: text(b[execHead : execHead+pathLen]),
		Args: arguments(b[execHead+execPath:][:argsLen]),
	}
	return sensed{at: time.Duration(le.Uint64(b)), cgroup: le.Uint64(b[8:])}, ev, nil
}

// decodeConnect reads a struct connect_event.
func decodeConnect(b []byte) (sensed, *rules.Connect, error) {
	if len(b) < connectSize {
		return sensed{}, nil, errRecord
	}
	o := decodeOwner(b[8:])
	remote := addrPort(b[52:56], b[58:60])
	ev := &rules.Connect{
		PID: o.PID, Comm: o.Command,
		RemoteAddr: remote.Addr().String(), RemotePort: int(remote.Port()),
		Established: b[60] == 1,
	}
	return sensed{at: time.Duration(binary.LittleEndian.Uint64(b)), cgroup: o.CgroupID}, ev, nil
}

// decodeOwner reads a struct flow_owner of 40 bytes.
func decodeOwner(b []byte) Owner {
	le := binary.LittleEndian
	return Owner{
		Since:    time.Duration(le.Uint64(b)),
		CgroupID: le.Uint64(b[8:]),
		NetID:    env.NetID(le.Uint32(b[16:])),
		PID:      int(le.Uint32(b[20:])),
		Command:  cString(b[24 : 24+commLen]),
	}
}

// decodeHolders reads a list of struct socket_holder. A holder's cgroup is the
// nearest of its ancestors that is a subject, or 0.
func decodeHolders(b []byte, subject func(cgroup uint64) bool) []Owner {
	var out []Owner
	le := binary.LittleEndian
	for ; len(b) >= holderSize; b = b[holderSize:] {
		o := Owner{PID: int(le.Uint32(b[80:])), Command: cString(b[88 : 88+commLen])}
		for i := range 10 {
			if id := le.Uint64(b[8*i:]); id != 0 && subject(id) {
				o.CgroupID = id
			}
		}
		if len(out) == 0 || out[len(out)-1].PID != o.PID { // a task is listed once for each thread
			out = append(out, o)
		}
	}
	return out
}

// encodeTuple makes a struct flow_tuple.
func encodeTuple(k flow.Key) [12]byte {
	var t [12]byte
	local, remote := k.Local.Addr().As4(), k.Remote.Addr().As4()
	copy(t[0:], local[:])
	copy(t[4:], remote[:])
	binary.BigEndian.PutUint16(t[8:], k.Local.Port())
	binary.BigEndian.PutUint16(t[10:], k.Remote.Port())
	return t
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return text(b)
}

// text makes foreign bytes a string that JSON and CEL take.
func text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

func arguments(b []byte) []string {
	var args []string
	for len(b) > 0 {
		arg, rest, _ := bytes.Cut(b, []byte{0})
		args = append(args, text(arg))
		b = rest
	}
	return args
}
