package detect

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

// Link types of captures (https://www.tcpdump.org/linktypes.html).
const (
	linkEthernet = 1
	linkRaw      = 101
	linkRawBSD   = 12
	linkSLL      = 113
)

// maxPacket is tcpdump's own bound on a captured packet.
const maxPacket = 262144

// packets steps through a classic pcap file (draft-ietf-opsawg-pcap), in
// either byte order, with micro- or nanoseconds. A truncated end ends it.
func packets(capture []byte, each func(at time.Duration, link uint32, frame []byte)) error {
	if len(capture) < 24 {
		return fmt.Errorf("read capture: %w: shorter than a pcap header", env.ErrInvalid)
	}
	order, unit := binary.ByteOrder(binary.LittleEndian), time.Microsecond
	switch binary.LittleEndian.Uint32(capture) {
	case 0xa1b2c3d4:
	case 0xa1b23c4d:
		unit = time.Nanosecond
	case 0xd4c3b2a1:
		order = binary.BigEndian
	case 0x4d3cb2a1:
		order, unit = binary.BigEndian, time.Nanosecond
	default:
		return fmt.Errorf("read capture: %w: not a pcap file (pcapng is not read: convert it with editcap -F pcap)", env.ErrInvalid)
	}
	link := order.Uint32(capture[20:]) & 0xffff
	for rest := capture[24:]; len(rest) >= 16; {
		size := order.Uint32(rest[8:])
		if size > maxPacket {
			return fmt.Errorf("read capture: %w: a packet of %d bytes", env.ErrCorrupt, size)
		}
		at := time.Duration(order.Uint32(rest))*time.Second + time.Duration(order.Uint32(rest[4:]))*unit
		rest = rest[16:]
		n := min(int(size), len(rest))
		each(at, link, rest[:n])
		rest = rest[n:]
	}
	return nil
}

// ipv4 finds the IPv4 packet in a frame; nil if there is none.
func ipv4(link uint32, frame []byte) []byte {
	switch link {
	case linkEthernet:
		return ethernet(frame)
	case linkRaw, linkRawBSD:
		return frame
	case linkSLL:
		if len(frame) >= 16 && binary.BigEndian.Uint16(frame[14:]) == 0x0800 {
			return frame[16:]
		}
	}
	return nil
}

// ethernet steps over VLAN tags.
func ethernet(frame []byte) []byte {
	for at := 12; at+2 <= len(frame) && at <= 20; at += 4 {
		switch binary.BigEndian.Uint16(frame[at:]) {
		case 0x0800:
			return frame[at+2:]
		case 0x8100, 0x88a8:
		default:
			return nil
		}
	}
	return nil
}

// tcpPacket is what reassembly needs of a TCP packet.
type tcpPacket struct {
	src, dst netip.AddrPort
	seq      uint32
	syn, ack bool
	data     []byte
}

// parseTCP reads an IPv4 packet; fragments and what is cut are not TCP to it.
func parseTCP(ip []byte) (tcpPacket, bool) {
	if len(ip) < 20 || ip[0]>>4 != 4 || ip[9] != 6 || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return tcpPacket{}, false
	}
	head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if head < 20 || total < head || len(ip) < head {
		return tcpPacket{}, false
	}
	t := ip[head:min(total, len(ip))]
	if len(t) < 20 || int(t[12]>>4)*4 < 20 || int(t[12]>>4)*4 > len(t) {
		return tcpPacket{}, false
	}
	return tcpPacket{
		src:  addrPort(ip[12:16], t[0:2]),
		dst:  addrPort(ip[16:20], t[2:4]),
		seq:  binary.BigEndian.Uint32(t[4:]),
		syn:  t[13]&2 != 0,
		ack:  t[13]&16 != 0,
		data: t[int(t[12]>>4)*4:],
	}, true
}

// captureFlows gives a capture's packets the form of the kernel's records. Who
// sends the SYN, or speaks first, is the environment.
type captureFlows struct {
	local map[[2]netip.AddrPort]netip.AddrPort
	isn   map[[2]netip.AddrPort]uint32 // by sender and receiver
}

// maxCaptureFlows bounds a capture's bookkeeping.
const maxCaptureFlows = 1 << 16

func (c *captureFlows) segment(p tcpPacket, at time.Duration) (flow.Segment, bool) {
	pair := [2]netip.AddrPort{p.src, p.dst}
	if p.dst.Compare(p.src) < 0 {
		pair = [2]netip.AddrPort{p.dst, p.src}
	}
	if p.syn && !p.ack || !c.local[pair].IsValid() {
		if len(c.local) >= maxCaptureFlows {
			return flow.Segment{}, false
		}
		c.local[pair] = p.src
		if p.syn && p.ack { // its SYN is not in the capture
			c.local[pair] = p.dst
		}
	}
	sender := [2]netip.AddrPort{p.src, p.dst}
	if p.syn {
		c.isn[sender] = p.seq + 1
		p.seq++ // data of a SYN (RFC 7413) comes after it
	}
	isn, has := c.isn[sender]
	s := flow.Segment{
		Key:       flow.Key{NetID: 1, Protocol: flow.TCP, Local: p.src, Remote: p.dst},
		Direction: flow.Out,
		Seq:       p.seq, ISN: isn, HasISN: has, Data: p.data, At: at,
	}
	if c.local[pair] != p.src {
		s.Key.Local, s.Key.Remote, s.Direction = p.dst, p.src, flow.In
	}
	return s, len(p.data) > 0
}
