package netpol

import (
	"encoding/binary"
	"net/netip"
)

// frame describes a packet by its fields; bytes makes what the fields say,
// lies included.
type frame struct {
	dstMAC, srcMAC [6]byte
	etherType      uint16
	src, dst       netip.Addr
	protocol       byte
	version        byte
	options        []byte
	id             uint16
	frag           uint16 // flags and offset
	length         int    // claimed total length; 0 is the true one
	l4             []byte
	trail          []byte // after the packet
}

func (f *frame) bytes() []byte {
	ihl := 20 + len(f.options)
	total := f.length
	if total == 0 {
		total = ihl + len(f.l4)
	}
	b := append(append([]byte{}, f.dstMAC[:]...), f.srcMAC[:]...)
	b = binary.BigEndian.AppendUint16(b, f.etherType)
	b = append(b, f.version<<4|byte(ihl/4), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(total))
	b = binary.BigEndian.AppendUint16(b, f.id)
	b = binary.BigEndian.AppendUint16(b, f.frag)
	b = append(b, 64, f.protocol, 0, 0)
	b = append(append(b, f.src.AsSlice()...), f.dst.AsSlice()...)
	b = append(append(b, f.options...), f.l4...)
	return append(b, f.trail...)
}

func udp(src, dst uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return append(append(b, 0, 0), data...)
}

const (
	tcpFin = 1
	tcpSyn = 2
	tcpRst = 4
	tcpAck = 16
)

func tcp(src, dst uint16, seq uint32, flags byte, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, 5<<4, flags, 255, 255, 0, 0, 0, 0)
	return append(b, data...)
}

func icmp(kind, code byte, id uint16, data string) []byte {
	b := []byte{kind, code, 0, 0}
	b = binary.BigEndian.AppendUint16(b, id)
	return append(append(b, 0, 1), data...)
}
