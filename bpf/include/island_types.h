/* SPDX-License-Identifier: Apache-2.0 */
/* Keys and values of the island maps. This is their only declaration: Go has
 * what bpf2go makes of it. Addresses and ports of keys are in network byte
 * order, ports of policies in host byte order. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include "verdict.h"

enum island_mode {
	ISLAND_LOCKED = 0,
	ISLAND_OPEN = 1,
	/* Nothing is judged. Honoured only by a program that was loaded with
	 * allow_unjudged; otherwise it is as good as locked. */
	ISLAND_UNJUDGED = 2,
};

/* One island, by the index of the host's link. User space updates it in place
 * under the lock (BPF_F_LOCK), so a packet sees one record or the next, never
 * a mixture, and never another island's. */
struct island {
	struct bpf_spin_lock lock;
	__u32 net_id;
	__u32 address;
	__u32 class_policy;
	__u32 claim_policy; /* the same as class_policy if the claim has none */
	__u8 mac[6];        /* the environment's end of the link */
	__u8 host_mac[6];
	__u8 mode; /* enum island_mode */
	__u8 pad[3];
};
_Static_assert(sizeof(struct island) == 36, "island has no hidden padding");

/* A policy is a set of prefixes of which each says everything: what user space
 * compiled into the longest match is the whole answer. */
struct policy_key {
	__u32 prefixlen; /* 32 + bits of the address */
	__u32 policy;
	__u32 address;
};

struct policy_ports {
	__u16 first;
	__u16 last;
};

#define POLICY_RANGES 15

enum policy_flags {
	POLICY_ALL_PORTS = 1, /* every port of TCP and UDP */
	POLICY_ICMP = 2,      /* echo requests */
	POLICY_WALL = 4,      /* no rule can allow it: the reason outranks `node` */
};

struct policy_rule {
	__u8 reason; /* of what is not allowed */
	__u8 flags;
	__u8 ranges; /* used ones */
	__u8 pad;
	struct policy_ports ports[POLICY_RANGES];
};
_Static_assert(sizeof(struct policy_rule) == 64, "policy_rule has no hidden padding");

/* A flow, in the map of its island. ICMP echo has its id as local_port. */
struct flow_key {
	__u32 remote_addr;
	__u16 local_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct flow_key) == 12, "flow_key has no hidden padding");

enum flow_flags {
	FLOW_ISN_OUT = 1, /* a SYN was seen, so isn_out is the first data byte's */
	FLOW_ISN_IN = 2,
	FLOW_SEQ_OUT = 4, /* isn_out is at least the first sequence number seen */
	FLOW_SEQ_IN = 8,
	FLOW_FIN_OUT = 16,
	FLOW_FIN_IN = 32,
	FLOW_RST = 64,
};

struct flow {
	__u64 packets_out;
	__u64 packets_in;
	__u64 bytes_out; /* IP total lengths */
	__u64 bytes_in;
	__u64 first_ns; /* CLOCK_MONOTONIC */
	__u64 last_ns;
	__u32 isn_out;
	__u32 isn_in;
	__u32 flags;
	__u16 records_out; /* payload records sent of each direction */
	__u16 records_in;
};
_Static_assert(sizeof(struct flow) == 64, "flow has no hidden padding");

/* The first fragment of a datagram that was accepted, with the ports that the
 * later ones are judged by. */
struct fragment_key {
	__u32 net_id;
	__u32 source;
	__u32 destination;
	__u16 id;
	__u8 protocol;
	__u8 direction;
};
_Static_assert(sizeof(struct fragment_key) == 16, "fragment_key has no hidden padding");

struct fragment {
	__u64 ns;
	__u16 local_port;
	__u16 remote_port;
	__u32 pad;
};

/* What happened to an island's packets, by its net id. Index 0 of verdicts
 * counts the allowed ones. The buckets are theoretical arrival times (GCRA). */
struct island_stats {
	__u64 out[VERDICT_COUNT];
	__u64 in[VERDICT_COUNT];
	__u64 bytes_out;
	__u64 bytes_in;
	__u64 unjudged;
	__u64 flows_made;
	__u64 payload_sent;
	__u64 payload_shed;
	__u64 payload_lost;
	__u64 payload_bucket;
	__u64 flow_bucket;
	__u64 icmp_bucket;
	__u64 fragment_bucket;
	__u64 swept_ns;
};
