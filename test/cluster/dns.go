package cluster

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
)

// A small part of RFC 1035: one question, answers of type A.
const (
	typeA        = 1
	rcodeOK      = 0
	rcodeServer  = 2
	rcodeNoName  = 3
	answerTTL    = 5
	dnsHeaderLen = 12
	maxDNS       = 4096
)

// question reads the name, in lower case without the last dot, the type, and
// the length of the header and the question.
func question(msg []byte) (name string, kind uint16, n int, err error) {
	errShort := errors.New("dns: message is too short")
	if len(msg) < dnsHeaderLen || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return "", 0, 0, errShort
	}
	var labels []string
	n = dnsHeaderLen
	for {
		if n >= len(msg) || msg[n] > 63 {
			return "", 0, 0, errShort
		}
		size := int(msg[n])
		n++
		if size == 0 {
			break
		}
		if n+size > len(msg) {
			return "", 0, 0, errShort
		}
		labels = append(labels, strings.ToLower(string(msg[n:n+size])))
		n += size
	}
	if n+4 > len(msg) {
		return "", 0, 0, errShort
	}
	return strings.Join(labels, "."), binary.BigEndian.Uint16(msg[n:]), n + 4, nil
}

// answer makes the response to a query whose question ends at n.
func answer(query []byte, n int, rcode byte, addrs []netip.Addr) []byte {
	out := append([]byte(nil), query[:n]...)
	out[2] = 0x84 | query[2]&0x01 // a response, authoritative; recursion as asked
	out[3] = 0x80 | rcode
	binary.BigEndian.PutUint16(out[6:], uint16(len(addrs)))
	binary.BigEndian.PutUint32(out[8:], 0)
	for _, a := range addrs {
		out = append(out, 0xc0, dnsHeaderLen, 0, typeA, 0, 1, 0, 0, 0, answerTTL, 0, 4)
		out = append(out, a.AsSlice()...)
	}
	return out
}

// respond answers a query by a lookup; it is nil for what is not a query.
func respond(query []byte, lookup func(name string) (addrs []netip.Addr, rcode byte)) []byte {
	name, kind, n, err := question(query)
	if err != nil || query[2]&0x80 != 0 {
		return nil
	}
	addrs, rcode := lookup(name)
	if kind != typeA {
		addrs = nil
	}
	return answer(query, n, rcode, addrs)
}

// serveDNSStream answers queries on a TCP connection until it is closed.
func serveDNSStream(conn net.Conn, handle func([]byte) []byte) {
	defer conn.Close()
	for {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply := handle(query)
		if reply == nil {
			return
		}
		binary.BigEndian.PutUint16(size[:], uint16(len(reply)))
		if _, err := conn.Write(append(size[:], reply...)); err != nil {
			return
		}
	}
}
