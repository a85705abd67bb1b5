/* SPDX-License-Identifier: Apache-2.0 */
/* Where a packet may go: the policies, and what the node would keep. */
#pragma once

#include "island_packet.h"

#define AF_INET 2
#define RESOLVER_PORT bpf_htons(53)

always_inline void count(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

/* take is a token bucket in one word: the time at which the next token would be
 * due if every token so far had come at its interval (GCRA, ITU-T I.371). */
always_inline int take(__u64 *bucket, __u64 now, __u64 interval, __u64 burst)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u64 due = *(volatile __u64 *)bucket;
		__u64 base = due > now ? due : now;

		/* The bucket is empty. */
		if (base - now > burst)
			return 0;
		if (__sync_val_compare_and_swap(bucket, due, base + interval) == due)
			return 1;
	}
	/* Other processors won four times: they are draining it. */
	return 0;
}

always_inline const struct policy_rule *policy_lookup(__u32 policy, __u32 address)
{
	struct policy_key key = {.prefixlen = 64, .policy = policy, .address = address};

	return bpf_map_lookup_elem(&policies, &key);
}

always_inline enum verdict rule_verdict(const struct policy_rule *rule, const struct packet *p)
{
	__u16 port = bpf_ntohs(p->remote_port);

	if (p->protocol == IPPROTO_ICMP)
		return rule->flags & POLICY_ICMP ? VERDICT_ALLOWED : rule->reason;
	if (rule->flags & POLICY_ALL_PORTS)
		return VERDICT_ALLOWED;
#pragma unroll
	for (int i = 0; i < POLICY_RANGES; i++) {
		if (i >= rule->ranges)
			break;
		if (port >= rule->ports[i].first && port <= rule->ports[i].last)
			return VERDICT_ALLOWED;
	}
	return rule->reason;
}

/* forwarded asks the kernel's own routing what it would do with the packet.
 * Only what it would send on leaves; local addresses, broadcasts of attached
 * networks and what has no route are the node's. */
always_inline int forwarded(struct __sk_buff *skb, const struct packet *p, __u32 source)
{
	struct bpf_fib_lookup fib = {
		.family = AF_INET,
		.l4_protocol = p->protocol,
		.sport = p->local_port,
		.dport = p->remote_port,
		.ipv4_src = source,
		.ipv4_dst = p->remote_addr,
		.ifindex = skb->ifindex,
	};
	long rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);

	/* NO_NEIGH: the kernel will resolve it; FRAG_NEEDED: it will answer with
	 * an ICMP error; UNSUPP_LWT: it will encapsulate. All are forwarding. */
	return rc == BPF_FIB_LKUP_RET_SUCCESS || rc == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       rc == BPF_FIB_LKUP_RET_FRAG_NEEDED || rc == BPF_FIB_LKUP_RET_UNSUPP_LWT;
}

/* judge_remote says whether both policies allow the other side of the packet. */
always_inline enum verdict judge_remote(struct __sk_buff *skb, const struct island *island,
					const struct packet *p)
{
	const struct policy_rule *rule = policy_lookup(island->class_policy, p->remote_addr);
	enum verdict v;

	/* Every policy has an entry for 0.0.0.0/0, so a miss is no policy. */
	if (!rule)
		return VERDICT_LOCKED;
	if (rule->flags & POLICY_WALL)
		return rule->reason;
	/* Inbound needs no such question: it came from where it came. */
	if (p->direction == PAYLOAD_OUT &&
	    !(p->remote_addr == gateway && p->remote_port == RESOLVER_PORT &&
	      p->protocol != IPPROTO_ICMP) &&
	    !forwarded(skb, p, island->address))
		return VERDICT_NODE;
	v = rule_verdict(rule, p);
	if (v != VERDICT_ALLOWED || island->claim_policy == island->class_policy)
		return v;
	rule = policy_lookup(island->claim_policy, p->remote_addr);
	/* The claim's policy is gone: shut. */
	if (!rule)
		return VERDICT_LOCKED;
	return rule_verdict(rule, p);
}
