package preflight

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loopback is lo's index in every network namespace.
const loopback = 1

// attr encodes one netlink attribute (struct nlattr, linux/netlink.h), padded
// to four bytes.
func attr(kind uint16, payload ...[]byte) []byte {
	var body []byte
	for _, p := range payload {
		body = append(body, p...)
	}
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func nest(kind uint16, payload ...[]byte) []byte { return attr(kind|unix.NLA_F_NESTED, payload...) }
func text(s string) []byte                       { return append([]byte(s), 0) }
func be32(v uint32) []byte                       { return binary.BigEndian.AppendUint32(nil, v) }

// message encodes one request that wants an acknowledgement (struct nlmsghdr).
func message(seq uint32, kind, flags uint16, payload ...[]byte) []byte {
	var body []byte
	for _, p := range payload {
		body = append(body, p...)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, body...)
}

// request sends the bytes and returns the first error among acks answers.
func request(family int, b []byte, acks int) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	wait := unix.NsecToTimeval(int64(2 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for acks > 0 {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("await acknowledgement: %w", err)
		}
		got, err := readAcks(buf[:n])
		if err != nil {
			return err
		}
		acks -= got
	}
	return nil
}

// readAcks counts the acknowledgements in b; one that carries an error is it.
func readAcks(b []byte) (int, error) {
	count := 0
	for len(b) >= 20 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < 20 || size > len(b) {
			return count, errors.New("netlink answer is cut short")
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
			count++
			if code := int32(binary.NativeEndian.Uint32(b[16:])); code != 0 {
				return count, unix.Errno(-code)
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return count, nil
}

const (
	vethInfoPeer = 1 // linux/veth.h
	create       = unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
)

// haveVeth makes a pair in a namespace of its own.
func haveVeth() result {
	ifinfo := make([]byte, unix.SizeofIfInfomsg)
	err := inNamespace(unix.CLONE_NEWNET, func() error {
		return request(unix.NETLINK_ROUTE, message(1, unix.RTM_NEWLINK, create, ifinfo,
			attr(unix.IFLA_IFNAME, text("hp0")),
			nest(unix.IFLA_LINKINFO,
				attr(unix.IFLA_INFO_KIND, text("veth")),
				nest(unix.IFLA_INFO_DATA, nest(vethInfoPeer, ifinfo, attr(unix.IFLA_IFNAME, text("hp1"))))),
		), 1)
	})
	return orMissing(err, "load the module veth; run as root")
}

// addClsact adds the queueing discipline that tc programs below Linux 6.6 need.
func addClsact(index uint32) error {
	tcmsg := make([]byte, 20) // struct tcmsg, linux/rtnetlink.h
	binary.NativeEndian.PutUint32(tcmsg[4:], index)
	binary.NativeEndian.PutUint32(tcmsg[8:], 0xFFFF0000)  // tcm_handle: TC_H_CLSACT's major
	binary.NativeEndian.PutUint32(tcmsg[12:], 0xFFFFFFF1) // tcm_parent: TC_H_CLSACT
	err := request(unix.NETLINK_ROUTE, message(1, unix.RTM_NEWQDISC, create, tcmsg, attr(unix.TCA_KIND, text("clsact"))), 1)
	if err != nil {
		return fmt.Errorf("add clsact: %w", err)
	}
	return nil
}

// haveMasquerade commits a table with a source NAT rule in a namespace of its
// own (linux/netfilter/nf_tables.h).
func haveMasquerade() result {
	const ipv4, postrouting, srcnat = unix.NFPROTO_IPV4, 4, 100
	gen := func(family byte, res uint16) []byte { return binary.BigEndian.AppendUint16([]byte{family, 0}, res) }
	nft := func(seq uint32, kind uint16, attrs ...[]byte) []byte {
		return message(seq, unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_ACK|unix.NLM_F_CREATE, append([][]byte{gen(ipv4, 0)}, attrs...)...)
	}
	var batch []byte
	batch = append(batch, message(1, unix.NFNL_MSG_BATCH_BEGIN, 0, gen(0, unix.NFNL_SUBSYS_NFTABLES))...)
	batch = append(batch, nft(2, unix.NFT_MSG_NEWTABLE, attr(unix.NFTA_TABLE_NAME, text("hp")))...)
	batch = append(batch, nft(3, unix.NFT_MSG_NEWCHAIN,
		attr(unix.NFTA_CHAIN_TABLE, text("hp")), attr(unix.NFTA_CHAIN_NAME, text("c")), attr(unix.NFTA_CHAIN_TYPE, text("nat")),
		nest(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, be32(postrouting)), attr(unix.NFTA_HOOK_PRIORITY, be32(srcnat))))...)
	batch = append(batch, nft(4, unix.NFT_MSG_NEWRULE,
		attr(unix.NFTA_RULE_TABLE, text("hp")), attr(unix.NFTA_RULE_CHAIN, text("c")),
		nest(unix.NFTA_RULE_EXPRESSIONS, nest(unix.NFTA_LIST_ELEM, attr(unix.NFTA_EXPR_NAME, text("masq")), nest(unix.NFTA_EXPR_DATA))))...)
	batch = append(batch, message(5, unix.NFNL_MSG_BATCH_END, 0, gen(0, unix.NFNL_SUBSYS_NFTABLES))...)
	err := inNamespace(unix.CLONE_NEWNET, func() error { return request(unix.NETLINK_NETFILTER, batch, 3) })
	return orMissing(err, "load the modules nf_tables, nft_chain_nat and nft_masq; run as root")
}

func haveForwarding() result {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err == nil && strings.TrimSpace(string(b)) != "1" {
		err = errors.New("net.ipv4.ip_forward is 0")
	}
	return orDegraded(err, "none needed: the agent turns it on for its links")
}
