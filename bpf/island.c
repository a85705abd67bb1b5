//go:build ignore

// SPDX-License-Identifier: Apache-2.0
/* The wall of an island, at the host's end of its link: island_out judges what
 * the environment sends (tc ingress), island_in what is sent to it (tc egress). */
#include "island_flow.h"

#define REFUSE 2 /* TC_ACT_SHOT */
/* Next program, or on: other programs may still refuse. */
#define PASS (-1) /* TC_ACT_UNSPEC */

char _license[] SEC("license")
= "GPL";

always_inline int admit(struct __sk_buff *skb, const struct island *island, struct island_stats *st,
			struct packet *p, __u64 now, enum verdict *verdict)
{
	int out = p->direction == PAYLOAD_OUT;
	struct flow_key key = {
		.remote_addr = p->remote_addr,
		.local_port = p->local_port,
		.remote_port = p->remote_port,
		.protocol = p->protocol,
	};
	void *map = bpf_map_lookup_elem(&flows, &island->net_id);
	struct flow *flow;

	/* An island without a flow map was not finished, or is being taken down. */
	if (!map) {
		*verdict = VERDICT_LOCKED;
		return 0;
	}
	flow = bpf_map_lookup_elem(map, &key);
	if (!flow) {
		/* Nothing comes in that was not asked for. */
		if (!out) {
			*verdict = VERDICT_POLICY;
			return 0;
		}
		/* Too many new conversations a second, or too many at once. */
		if (!take(&st->flow_bucket, now, flow_interval_ns, flow_burst_ns) ||
		    !(flow = flow_open(map, st, &key, now))) {
			*verdict = VERDICT_QUOTA;
			return 0;
		}
	}
	if (p->protocol == IPPROTO_ICMP && out &&
	    !take(&st->icmp_bucket, now, icmp_interval_ns, icmp_burst_ns)) {
		*verdict = VERDICT_ICMP;
		return 0;
	}
	if (p->first) {
		*verdict = fragment_remember(island, st, p, now);
		if (*verdict != VERDICT_ALLOWED)
			return 0;
	}
	flow->last_ns = now;
	count(out ? &flow->packets_out : &flow->packets_in, 1);
	count(out ? &flow->bytes_out : &flow->bytes_in, p->length);
	if (p->protocol == IPPROTO_TCP && !p->later && !p->error)
		track_tcp(flow, p);
	capture(skb, island, st, flow, p, now);
	return 1;
}

always_inline enum verdict judge(struct __sk_buff *skb, const struct island *island,
				 struct island_stats *st, struct packet *p)
{
	__u64 now = bpf_ktime_get_ns();
	enum verdict v;

	if (island->mode != ISLAND_OPEN)
		return VERDICT_LOCKED;
	v = parse_frame(skb, island, p);
	if (v != VERDICT_ALLOWED)
		return v;
	v = p->later ? fragment_ports(island, p, now) : parse_ports(skb, p, island->address);
	if (v != VERDICT_ALLOWED)
		return v;
	v = judge_remote(skb, island, p);
	if (v != VERDICT_ALLOWED)
		return v;
	admit(skb, island, st, p, now, &v);
	return v;
}

always_inline int run(struct __sk_buff *skb, __u8 direction)
{
	struct packet p = {.direction = direction};
	__u32 ifindex = skb->ifindex, way = direction;
	struct island island = {};
	struct island *record = bpf_map_lookup_elem(&islands, &ifindex);
	struct island_stats *st;
	enum verdict v;

	if (record) {
		bpf_spin_lock(&record->lock);
		island.net_id = record->net_id;
		island.address = record->address;
		island.class_policy = record->class_policy;
		island.claim_policy = record->claim_policy;
		island.mode = record->mode;
		__builtin_memcpy(island.mac, record->mac, sizeof(island.mac));
		__builtin_memcpy(island.host_mac, record->host_mac, sizeof(island.host_mac));
		bpf_spin_unlock(&record->lock);
	}
	st = record ? bpf_map_lookup_elem(&stats, &island.net_id) : 0;
	/* A link that nobody recorded, or whose counters are gone: shut. */
	if (!st) {
		__u64 *stray = bpf_map_lookup_elem(&strays, &way);

		if (stray)
			*stray += 1;
		return REFUSE;
	}
	if (island.mode == ISLAND_UNJUDGED && allow_unjudged) {
		count(&st->unjudged, 1);
		return PASS;
	}
	v = judge(skb, &island, st, &p);
	/* The verifier cannot know that a verdict is one. */
	if (v >= VERDICT_COUNT)
		v = VERDICT_LOCKED;
	count(direction == PAYLOAD_OUT ? &st->out[v] : &st->in[v], 1);
	if (v != VERDICT_ALLOWED)
		return REFUSE;
	count(direction == PAYLOAD_OUT ? &st->bytes_out : &st->bytes_in, p.length);
	return PASS;
}

SEC("tc")
int island_out(struct __sk_buff *skb)
{
	return run(skb, PAYLOAD_OUT);
}

SEC("tc")
int island_in(struct __sk_buff *skb)
{
	return run(skb, PAYLOAD_IN);
}
