/* SPDX-License-Identifier: Apache-2.0 */
/* From bytes to a packet that can be judged. Every load is checked; what cannot
 * be read is refused. */
#pragma once

#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "island_maps.h"

#define always_inline static inline __attribute__((always_inline))

#define IP_MORE_FRAGMENTS 0x2000
#define IP_RESERVED 0x8000
#define IP_OFFSET 0x1fff
#define IP_OFF ETH_HLEN
#define L4_OFF (ETH_HLEN + sizeof(struct iphdr))

#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
/* An echo of 56 data bytes is 84; more room is a tunnel. */
#define ICMP_MAX_LENGTH 128

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u16 id;
	__u16 sequence;
};

struct headers {
	struct ethhdr eth;
	struct iphdr ip;
} __attribute__((packed));

/* A packet seen from the environment: local is its own side. */
struct packet {
	__u32 remote_addr;
	__u16 local_port; /* network byte order */
	__u16 remote_port;
	__u32 seq;    /* of the first data byte, host byte order */
	__u16 id;     /* of the IP datagram */
	__u16 length; /* IP total length, host byte order */
	__u16 data;   /* offset of the payload in the frame */
	__u16 data_length;
	__u8 protocol;
	__u8 direction; /* enum payload_direction */
	__u8 tcp_flags;
	__u8 first; /* first of several fragments */
	__u8 later; /* not the first */
	__u8 error; /* an ICMP error: ports and protocol are the embedded packet's */
	__u8 pad[2];
};

always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a,
		    *y = (const __u16 *)b; /* even offsets in frame and record */

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

always_inline enum verdict parse_tcp(struct __sk_buff *skb, struct packet *p)
{
	struct tcphdr tcp;
	__u16 header;

	/* A first fragment without the whole header could hide ports and flags. */
	if (p->length < sizeof(struct iphdr) + sizeof(tcp) ||
	    bpf_skb_load_bytes(skb, L4_OFF, &tcp, sizeof(tcp)))
		return p->first ? VERDICT_FRAGMENT : VERDICT_PROTOCOL;
	header = sizeof(struct iphdr) + tcp.doff * 4;
	/* A header that claims to be shorter than itself, or longer than the packet. */
	if (tcp.doff < 5 || header > p->length)
		return p->first ? VERDICT_FRAGMENT : VERDICT_PROTOCOL;
	p->local_port = p->direction == PAYLOAD_OUT ? tcp.source : tcp.dest;
	p->remote_port = p->direction == PAYLOAD_OUT ? tcp.dest : tcp.source;
	p->tcp_flags = ((__u8 *)&tcp)[13];
	p->seq = bpf_ntohl(tcp.seq) + (tcp.syn ? 1 : 0);
	p->data = ETH_HLEN + header;
	p->data_length = p->length - header;
	return VERDICT_ALLOWED;
}

always_inline enum verdict parse_udp(struct __sk_buff *skb, struct packet *p)
{
	struct udphdr udp;

	/* Too short to have ports. */
	if (p->length < sizeof(struct iphdr) + sizeof(udp) ||
	    bpf_skb_load_bytes(skb, L4_OFF, &udp, sizeof(udp)))
		return p->first ? VERDICT_FRAGMENT : VERDICT_PROTOCOL;
	/* A datagram longer than its packet is malformed, unless the rest is in fragments. */
	if (!p->first && sizeof(struct iphdr) + bpf_ntohs(udp.len) > p->length)
		return VERDICT_PROTOCOL;
	p->local_port = p->direction == PAYLOAD_OUT ? udp.source : udp.dest;
	p->remote_port = p->direction == PAYLOAD_OUT ? udp.dest : udp.source;
	p->data = L4_OFF + sizeof(udp);
	p->data_length = p->length - sizeof(struct iphdr) - sizeof(udp);
	return VERDICT_ALLOWED;
}

/* An error is let in when it is about a packet that the environment sent. */
always_inline enum verdict parse_icmp_error(struct __sk_buff *skb, struct packet *p, __u32 address)
{
	struct iphdr ip;
	struct icmp_header echo;

	/* Without an embedded header and its first eight bytes it is about nothing. */
	if (p->length < 2 * sizeof(ip) + 2 * sizeof(echo) ||
	    bpf_skb_load_bytes(skb, L4_OFF + sizeof(echo), &ip, sizeof(ip)) ||
	    bpf_skb_load_bytes(skb, L4_OFF + sizeof(echo) + sizeof(ip), &echo, sizeof(echo)))
		return VERDICT_ICMP;
	/* The environment sends neither options nor another's address. */
	if (ip.version != 4 || ip.ihl != 5 || ip.saddr != address)
		return VERDICT_ICMP;
	p->error = 1;
	p->remote_addr = ip.daddr;
	p->protocol = ip.protocol;
	if (ip.protocol == IPPROTO_ICMP) {
		p->local_port = echo.id;
		p->remote_port = 0;
		return VERDICT_ALLOWED;
	}
	/* TCP and UDP both begin with source and destination port. */
	p->local_port = *(__u16 *)&echo;
	p->remote_port = echo.checksum;
	return VERDICT_ALLOWED;
}

always_inline enum verdict parse_icmp(struct __sk_buff *skb, struct packet *p, __u32 address)
{
	struct icmp_header icmp;

	/* No message is shorter; echo in fragments is a tunnel or an attack. */
	if (p->first || p->length < sizeof(struct iphdr) + sizeof(icmp) ||
	    bpf_skb_load_bytes(skb, L4_OFF, &icmp, sizeof(icmp)))
		return VERDICT_ICMP;
	if (p->direction == PAYLOAD_IN &&
	    (icmp.type == ICMP_UNREACHABLE || icmp.type == ICMP_TIME_EXCEEDED ||
	     icmp.type == ICMP_PARAMETER))
		return parse_icmp_error(skb, p, address);
	/* Out only a request, in only a reply, of ordinary size. */
	if (icmp.type != (p->direction == PAYLOAD_OUT ? ICMP_ECHO : ICMP_ECHO_REPLY) || icmp.code ||
	    p->length > ICMP_MAX_LENGTH)
		return VERDICT_ICMP;
	p->local_port = icmp.id;
	return VERDICT_ALLOWED;
}

/* parse_frame checks link and network layer and fills p but for the ports. */
always_inline enum verdict parse_frame(struct __sk_buff *skb, const struct island *island,
				       struct packet *p)
{
	struct headers h;
	__u16 fragment, offset;
	int out = p->direction == PAYLOAD_OUT;

	/* Too short for IPv4, a tagged frame, or not IPv4 at all: ARP, IPv6, LLC, and what the kernel was told it is. */
	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) || skb->vlan_present ||
	    skb->protocol != bpf_htons(ETH_P_IP) || h.eth.h_proto != bpf_htons(ETH_P_IP))
		return VERDICT_ETHERTYPE;
	if (out) {
		if (!same_mac(h.eth.h_source, island->mac))
			return VERDICT_SPOOF;
		/* The group bit: broadcast and multicast. */
		if (h.eth.h_dest[0] & 1)
			return VERDICT_MULTICAST;
		/* There is one neighbour on the link. */
		if (!same_mac(h.eth.h_dest, island->host_mac))
			return VERDICT_SPOOF;
	}
	if (h.ip.version != 4 || h.ip.ihl < 5)
		return VERDICT_PROTOCOL;
	if (h.ip.ihl != 5)
		return VERDICT_OPTION;
	p->length = bpf_ntohs(h.ip.tot_len);
	/* A packet that says it is longer than its frame, or shorter than its header. */
	if (p->length < sizeof(struct iphdr) || p->length + ETH_HLEN > skb->len)
		return VERDICT_PROTOCOL;
	/* The address is the environment's only credential. */
	if ((out ? h.ip.saddr : h.ip.daddr) != island->address)
		return VERDICT_SPOOF;
	p->remote_addr = out ? h.ip.daddr : h.ip.saddr;
	/* 224.0.0.0/4 and the limited broadcast, which no policy opens. */
	if ((p->remote_addr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
	    p->remote_addr == 0xffffffff)
		return VERDICT_MULTICAST;
	p->protocol = h.ip.protocol;
	p->id = h.ip.id;
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP && p->protocol != IPPROTO_ICMP)
		return VERDICT_PROTOCOL;
	fragment = bpf_ntohs(h.ip.frag_off);
	offset = fragment & IP_OFFSET;
	/* The reserved bit has no use but to confuse. */
	if (fragment & IP_RESERVED)
		return VERDICT_OPTION;
	p->later = offset != 0;
	p->first = !p->later && (fragment & IP_MORE_FRAGMENTS);
	/* Offset 1 overlaps the ports' header (RFC 1858, 3); beyond 65,535 is the ping of death. */
	if (offset == 1 || offset * 8 + p->length > 65535)
		return VERDICT_FRAGMENT;
	return VERDICT_ALLOWED;
}

always_inline enum verdict parse_ports(struct __sk_buff *skb, struct packet *p, __u32 address)
{
	if (p->protocol == IPPROTO_TCP)
		return parse_tcp(skb, p);
	if (p->protocol == IPPROTO_UDP)
		return parse_udp(skb, p);
	return parse_icmp(skb, p, address);
}
