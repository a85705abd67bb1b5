/* SPDX-License-Identifier: Apache-2.0 */
/* Flows, fragments and the capture of first payload. */
#pragma once

#include "island_judge.h"

#define SECOND 1000000000ULL
#define FRAGMENT_LIFE (30 * SECOND)
#define SWEEP_EVERY SECOND
#define FLOW_RECORDS_MAX 128 /* payload records of each direction of a flow */

/* How long a silent flow keeps its place once the island's map is full. */
always_inline __u64 flow_life(const struct flow_key *key, const struct flow *flow)
{
	if (key->protocol != IPPROTO_TCP)
		return flow->packets_in ? 120 * SECOND : 30 * SECOND;
	if ((flow->flags & FLOW_RST) ||
	    ((flow->flags & FLOW_FIN_OUT) && (flow->flags & FLOW_FIN_IN)))
		return 2 * SECOND;
	return flow->packets_in ? 7200 * SECOND : 60 * SECOND;
}

struct bpf_map;

struct sweep {
	__u64 now;
};

static long sweep_one(struct bpf_map *map, const void *key, void *value, void *ctx)
{
	const struct sweep *s = ctx;
	const struct flow *flow = value;

	if (s->now > flow->last_ns && s->now - flow->last_ns > flow_life(key, flow))
		bpf_map_delete_elem(map, key);
	return 0;
}

/* flow_open makes room by sweeping at most once a second, so that a flooder
 * cannot buy processor time with it, and needs no agent. */
always_inline struct flow *flow_open(void *map, struct island_stats *st, const struct flow_key *key,
				     __u64 now)
{
	struct flow fresh = {.first_ns = now, .last_ns = now};
	struct flow *flow;

	if (bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST)) {
		struct sweep s = {.now = now};
		__u64 swept = *(volatile __u64 *)&st->swept_ns;

		/* Another processor made it, or the map is full. */
		flow = bpf_map_lookup_elem(map, key);
		if (flow)
			return flow;
		if (now - swept < SWEEP_EVERY ||
		    __sync_val_compare_and_swap(&st->swept_ns, swept, now) != swept)
			return 0;
		bpf_for_each_map_elem(map, sweep_one, &s, 0);
		if (bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST))
			return 0;
	}
	count(&st->flows_made, 1);
	return bpf_map_lookup_elem(map, key);
}

/* A later fragment has no ports: it takes those of its accepted first. */
always_inline enum verdict fragment_ports(const struct island *island, struct packet *p, __u64 now)
{
	int out = p->direction == PAYLOAD_OUT;
	struct fragment_key key = {
		.net_id = island->net_id,
		.source = out ? island->address : p->remote_addr,
		.destination = out ? p->remote_addr : island->address,
		.id = p->id,
		.protocol = p->protocol,
		.direction = p->direction,
	};
	const struct fragment *first = bpf_map_lookup_elem(&fragments, &key);

	/* Its first was refused, never came, or is too old to be of the same datagram. */
	if (!first || now - first->ns > FRAGMENT_LIFE)
		return VERDICT_FRAGMENT;
	p->local_port = first->local_port;
	p->remote_port = first->remote_port;
	return VERDICT_ALLOWED;
}

always_inline enum verdict fragment_remember(const struct island *island, struct island_stats *st,
					     const struct packet *p, __u64 now)
{
	int out = p->direction == PAYLOAD_OUT;
	struct fragment_key key = {
		.net_id = island->net_id,
		.source = out ? island->address : p->remote_addr,
		.destination = out ? p->remote_addr : island->address,
		.id = p->id,
		.protocol = p->protocol,
		.direction = p->direction,
	};
	struct fragment value = {
		.ns = now, .local_port = p->local_port, .remote_port = p->remote_port};

	/* Too many at once, or no room: the datagram would not become whole. */
	if (!take(&st->fragment_bucket, now, fragment_interval_ns, fragment_burst_ns) ||
	    bpf_map_update_elem(&fragments, &key, &value, BPF_ANY))
		return VERDICT_FRAGMENT;
	return VERDICT_ALLOWED;
}

/* track_tcp learns where each direction's data begins, and that it ended. */
always_inline void track_tcp(struct flow *flow, const struct packet *p)
{
	int out = p->direction == PAYLOAD_OUT;
	__u32 *isn = out ? &flow->isn_out : &flow->isn_in;

	if (p->tcp_flags & TCP_SYN) {
		/* The ports are used again: a new conversation, with records of its own. */
		if (out && (flow->flags & FLOW_ISN_OUT) && *isn != p->seq) {
			flow->flags = 0;
			flow->records_out = 0;
			flow->records_in = 0;
		}
		*isn = p->seq;
		flow->flags |= out ? FLOW_ISN_OUT | FLOW_SEQ_OUT : FLOW_ISN_IN | FLOW_SEQ_IN;
	} else if (!(flow->flags & (out ? FLOW_SEQ_OUT : FLOW_SEQ_IN))) {
		*isn = p->seq;
		flow->flags |= out ? FLOW_SEQ_OUT : FLOW_SEQ_IN;
	}
	if (p->tcp_flags & TCP_FIN)
		flow->flags |= out ? FLOW_FIN_OUT : FLOW_FIN_IN;
	if (p->tcp_flags & TCP_RST)
		flow->flags |= FLOW_RST;
}

/* emit sends one record of at most PAYLOAD_MAX bytes, `at` bytes into the data. */
always_inline void emit(struct __sk_buff *skb, const struct island *island, struct island_stats *st,
			struct flow *flow, const struct packet *p, __u32 at, __u64 now)
{
	int out = p->direction == PAYLOAD_OUT;
	__u16 *records = out ? &flow->records_out : &flow->records_in;
	__u32 left = p->data_length - at;
	__u32 len = left > PAYLOAD_MAX ? PAYLOAD_MAX : left;
	struct payload_event *e;

	/* Tiny segments do not buy more records. */
	if (*records >= FLOW_RECORDS_MAX)
		return;
	*records += 1;
	/* The island's own rate: a flooder loses only its own. */
	if (!take(&st->payload_bucket, now, payload_interval_ns, payload_burst_ns)) {
		count(&st->payload_shed, 1);
		return;
	}
	e = bpf_ringbuf_reserve(&payloads, sizeof(*e), 0);
	/* The reader is behind. */
	if (!e) {
		count(&st->payload_lost, 1);
		return;
	}
	__builtin_memset(e, 0, 48);
	e->ktime_ns = now;
	e->net_id = island->net_id;
	e->local_addr = island->address;
	e->remote_addr = p->remote_addr;
	e->local_port = p->local_port;
	e->remote_port = p->remote_port;
	e->seq = p->seq + at;
	e->wire_len = left;
	e->direction = p->direction;
	e->protocol = p->protocol;
	if (p->protocol == IPPROTO_TCP) {
		e->isn = out ? flow->isn_out : flow->isn_in;
		e->has_isn = !!(flow->flags & (out ? FLOW_ISN_OUT : FLOW_ISN_IN));
	}
	/* The verifier wants the bounds at the call, where clang knows them and
	 * leaves them out; that of Linux 6.1 learns only from arithmetic. */
	len -= 1;
	asm volatile("" : "+r"(len));
	len &= PAYLOAD_MAX - 1;
	asm volatile("" : "+r"(len));
	len += 1;
	/* A frame shorter than its packet. */
	if (bpf_skb_load_bytes(skb, p->data + at, e->data, len)) {
		bpf_ringbuf_discard(e, 0);
		count(&st->payload_lost, 1);
		return;
	}
	e->len = len; /* what lies beyond is stale */
	bpf_ringbuf_submit(e, 0);
	count(&st->payload_sent, 1);
}

/* capture sends what of the packet lies in its direction's first PAYLOAD_CAP bytes. */
always_inline void capture(struct __sk_buff *skb, const struct island *island,
			   struct island_stats *st, struct flow *flow, const struct packet *p,
			   __u64 now)
{
	int out = p->direction == PAYLOAD_OUT;
	__u32 offset = 0;

	if (!p->data_length || p->error || p->later)
		return;
	if (p->protocol == IPPROTO_TCP) {
		offset = p->seq - (out ? flow->isn_out : flow->isn_in);
		if (offset >= PAYLOAD_CAP)
			return;
	} else if (p->protocol != IPPROTO_UDP ||
		   (out ? flow->packets_out : flow->packets_in) != 1) {
		/* Of UDP the first datagram of each direction. */
		return;
	}
	emit(skb, island, st, flow, p, 0, now);
	if (p->data_length > PAYLOAD_MAX && offset + PAYLOAD_MAX < PAYLOAD_CAP)
		emit(skb, island, st, flow, p, PAYLOAD_MAX, now);
}
