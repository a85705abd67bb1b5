/* SPDX-License-Identifier: Apache-2.0 */
/* Maps and configuration. Sizes marked "set at load" come from user space. */
#pragma once

#include <bpf/bpf_helpers.h>

#include "island_types.h"
#include "payload.h"

#define FLOW_QUOTA_DEFAULT 4096

/* The first address of the pool: gateway and resolver. Network byte order. */
const volatile __u32 gateway = 0;
/* Set only where tests must prove that what was refused was there. */
const volatile __u32 allow_unjudged = 0;
/* A bucket gives one token per interval, and burst_ns / interval more at once. */
const volatile __u64 flow_interval_ns = 2000000;
const volatile __u64 flow_burst_ns = 4000000000;
const volatile __u64 payload_interval_ns = 2000000;
const volatile __u64 payload_burst_ns = 1000000000;
const volatile __u64 icmp_interval_ns = 100000000;
const volatile __u64 icmp_burst_ns = 2000000000;
const volatile __u64 fragment_interval_ns = 2000000;
const volatile __u64 fragment_burst_ns = 1000000000;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096); /* set at load */
	__type(key, __u32);
	__type(value, struct island);
} islands SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_key);
	__type(value, struct policy_rule);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096); /* set at load */
	__type(key, __u32);
	__type(value, struct island_stats);
} stats SEC(".maps");

/* Packets on a link of ours that has no island record, by direction. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} strays SEC(".maps");

/* clang describes in BTF only what a variable has as its type; these make it
 * describe what otherwise appears behind pointers alone. */
const struct flow_key *_type_flow_key __attribute__((unused));
const struct flow *_type_flow __attribute__((unused));
const struct payload_event *_type_payload_event __attribute__((unused));
const enum verdict *_type_verdict __attribute__((unused));
const enum island_mode *_type_island_mode __attribute__((unused));
const enum policy_flags *_type_policy_flags __attribute__((unused));

/* Each island has a flow map of its own: a full one refuses nobody else. */
struct flow_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOW_QUOTA_DEFAULT); /* set at load */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096); /* set at load */
	__type(key, __u32);
	__array(values, struct flow_map);
} flows SEC(".maps");

/* An island's first fragments are rate-limited, so that it cannot push out
 * those of others before their datagrams are whole. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* set at load */
} payloads SEC(".maps");

/* The next net id; lives as long as the boot, as bpffs does. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next_net_id SEC(".maps");
