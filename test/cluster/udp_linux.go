package cluster

import (
	"net"
	"syscall"
)

// wantDestination asks for each datagram's destination (IP_PKTINFO, ip(7)).
func wantDestination(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
	}); err != nil {
		return err
	}
	return set
}

// fromDestination turns a received control message into one that sends from
// the address which was asked: struct in_pktinfo with the interface left open.
func fromDestination(oob []byte) []byte {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if m.Header.Level == syscall.IPPROTO_IP && m.Header.Type == syscall.IP_PKTINFO && len(m.Data) >= 12 {
			clear(m.Data[:4])               // ipi_ifindex
			copy(m.Data[4:8], m.Data[8:12]) // ipi_spec_dst from ipi_addr
			return oob
		}
	}
	return nil
}
