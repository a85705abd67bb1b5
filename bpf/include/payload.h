/* SPDX-License-Identifier: Apache-2.0 */
/* The record of a flow's first bytes, from the island program (producer, map
 * `payloads`) to internal/detect (consumer). */
#pragma once

#define PAYLOAD_CAP 2048 /* captured bytes of each direction of a flow */
#define PAYLOAD_MAX 1024 /* data bytes of one record */

enum payload_direction {
	PAYLOAD_OUT = 0, /* sent by the environment */
	PAYLOAD_IN = 1,
};

/* Addresses and ports are the environment's (local) and the peer's (remote),
 * whatever the direction; in network byte order. A longer segment is cut at
 * PAYLOAD_MAX: `wire_len` tells what it was. */
struct payload_event {
	__u64 ktime_ns; /* CLOCK_MONOTONIC */
	__u32 net_id;
	__u32 local_addr;
	__u32 remote_addr;
	__u16 local_port;
	__u16 remote_port;
	__u32 seq; /* TCP sequence number of data[0], host byte order */
	__u32 isn; /* sequence number of this direction's first data byte, host byte order; valid if has_isn */
	__u16 wire_len;
	__u16 len; /* valid bytes of data */
	__u8 direction;
	__u8 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 has_isn;
	__u8 pad[9];
	__u8 data[PAYLOAD_MAX];
};

_Static_assert(__builtin_offsetof(struct payload_event, data) == 48,
	       "payload_event has a header of 48 bytes");
_Static_assert(sizeof(struct payload_event) == 48 + PAYLOAD_MAX,
	       "payload_event has no hidden padding");
