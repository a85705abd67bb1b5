//go:build ignore

// SPDX-License-Identifier: Apache-2.0
/* Sensors: execs and TCP connects of watched slots.
 *
 * A task belongs to a slot if one of its cgroup's ancestors is in `subjects`.
 * Each slot has a budget for every kind of event; what goes beyond it is shed
 * and counted with the slot, so that a flooder is deaf and dumb only for
 * itself. Only tp_btf and iterators: they load where trampolines and kprobes
 * are refused. */
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "events.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP_NUM 6
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_CLOSE 7

/* ---- kernel types: only the fields that are read ---- */

#define KERNEL_TYPE __attribute__((preserve_access_index))

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
} KERNEL_TYPE;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	struct in6_addr skc_v6_daddr;
} KERNEL_TYPE;

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
} KERNEL_TYPE;

struct socket {
	struct sock *sk;
} KERNEL_TYPE;

struct kernfs_node {
	__u64 id;
} KERNEL_TYPE;

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[0];
} KERNEL_TYPE;

struct css_set {
	struct cgroup *dfl_cgrp;
} KERNEL_TYPE;

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
} KERNEL_TYPE;

struct task_struct {
	int tgid;
	char comm[COMM_LEN];
	struct task_struct *real_parent;
	struct mm_struct *mm;
	struct css_set *cgroups;
} KERNEL_TYPE;

struct linux_binprm {
	const char *filename;
} KERNEL_TYPE;

struct file;
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} KERNEL_TYPE;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
} KERNEL_TYPE;

/* ---- configuration ---- */

/* A slot may make one event of a kind every cost_ns on average, and burst_ns /
 * cost_ns of them at once. */
const volatile __u64 cost_ns = 1000000;
const volatile __u64 burst_ns = 1000000000;

/* ---- maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct subject);
} subjects SEC(".maps");

/* Connects are few and carry attribution; execs may come in floods. They do
 * not share a ring. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} connects SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} execs SEC(".maps");

/* The owner of a socket between connect(2) and the outcome: freed with the
 * socket, and no other socket can push it out. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flow_owner);
} connecting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_tuple);
	__type(value, struct flow_owner);
} owners SEC(".maps");

/* The flow that find_owner looks for. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_tuple);
} wanted SEC(".maps");

/* bpf2go needs a use of each type. */
const struct exec_event *unused_exec __attribute__((unused));
const struct connect_event *unused_connect __attribute__((unused));
const struct socket_holder *unused_holder __attribute__((unused));

/* ---- helpers ---- */

static __always_inline struct subject *current_subject(__u64 *id)
{
	return slot_of_current(&subjects, id);
}

/* The generic cell rate algorithm (ITU-T I.371): the budget is one number, the
 * time until which it is paid for. A lost race four times over means that the
 * slot itself is racing on several CPUs: that is shed too. */
static __always_inline bool spend(struct subject *s, enum sensor_kind kind, __u64 now)
{
	for (int i = 0; i < 4; i++) {
		__u64 old = *(volatile __u64 *)&s->paid_until[kind];
		__u64 next = (old > now ? old : now) + cost_ns;

		if (next - now > burst_ns)
			break;
		if (__sync_val_compare_and_swap(&s->paid_until[kind], old, next) == old)
			return true;
	}
	__sync_fetch_and_add(&s->counts[kind].shed, 1);
	return false;
}

/* True if the socket's addresses are IPv4; islands refuse every IPv6 frame, so
 * such a connect ends in nothing worth an event. */
static __always_inline bool read_tuple(const struct sock *sk, struct flow_tuple *t)
{
	const struct sock_common *c = &sk->__sk_common;

	if (c->skc_family == AF_INET6) {
		/* An IPv4 address in an IPv6 socket: ::ffff:a.b.c.d */
		if (c->skc_v6_daddr.in6_u.u6_addr32[0] || c->skc_v6_daddr.in6_u.u6_addr32[1] ||
		    c->skc_v6_daddr.in6_u.u6_addr32[2] != __builtin_bswap32(0xffff))
			return false;
	} else if (c->skc_family != AF_INET) {
		return false;
	}
	t->local_addr = c->skc_rcv_saddr;
	t->remote_addr = c->skc_daddr;
	t->local_port = __builtin_bswap16(c->skc_num);
	t->remote_port = c->skc_dport;
	return true;
}

/* In the context of the task that connects; the source port is not chosen yet. */
static __always_inline void connect_begins(const struct sock *sk)
{
	struct flow_owner *owner;
	struct subject *s;
	__u64 cgroup, now;

	s = current_subject(&cgroup);
	/* Not a watched slot. */
	if (!s)
		return;
	now = bpf_ktime_get_ns();
	/* Over budget: counted in spend. */
	if (!spend(s, SENSOR_CONNECT, now))
		return;
	owner = bpf_sk_storage_get(&connecting, (void *)sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	/* The socket may not hold more memory. */
	if (!owner) {
		__sync_fetch_and_add(&s->counts[SENSOR_CONNECT].lost, 1);
		return;
	}
	owner->ktime_ns = now;
	owner->cgroup_id = cgroup;
	owner->net_id = s->net_id;
	owner->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
}

/* Anywhere, mostly in a softirq: the current task means nothing here. */
static __always_inline void connect_ends(const struct sock *sk, __u8 outcome)
{
	struct connect_event e = {};
	struct flow_owner *owner;
	struct subject *s;

	owner = bpf_sk_storage_get(&connecting, (void *)sk, NULL, 0);
	/* Not ours, or shed at its beginning. */
	if (!owner || !owner->cgroup_id)
		return;
	e.owner = *owner;
	/* One outcome a connect; a socket may connect again after a failure. */
	owner->cgroup_id = 0;
	s = bpf_map_lookup_elem(&subjects, &e.owner.cgroup_id);
	/* The slot was unbound meanwhile: nobody asks any more. */
	if (!s)
		return;
	e.ktime_ns = bpf_ktime_get_ns();
	e.outcome = outcome;
	/* Unusable addresses leave the tuple zero: the event is still counted. */
	if (read_tuple(sk, &e.tuple) && outcome == CONNECT_ESTABLISHED)
		bpf_map_update_elem(&owners, &e.tuple, &e.owner, BPF_ANY);
	if (bpf_ringbuf_output(&connects, &e, sizeof(e), 0))
		__sync_fetch_and_add(&s->counts[SENSOR_CONNECT].lost, 1);
	else
		__sync_fetch_and_add(&s->counts[SENSOR_CONNECT].emitted, 1);
}

/* ---- programs ---- */

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_sock_state, const struct sock *sk, int oldstate, int newstate)
{
	/* SCTP and MPTCP's own sockets pass here too; subflows are TCP. */
	if (sk->sk_protocol != IPPROTO_TCP_NUM)
		return 0;
	if (newstate == TCP_SYN_SENT)
		connect_begins(sk);
	else if (oldstate == TCP_SYN_SENT)
		connect_ends(sk,
			     newstate == TCP_ESTABLISHED ? CONNECT_ESTABLISHED : CONNECT_FAILED);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	unsigned long start, len;
	struct exec_event *e;
	struct subject *s;
	__u64 cgroup, now;
	long n;

	s = current_subject(&cgroup);
	/* Not a watched slot. */
	if (!s)
		return 0;
	now = bpf_ktime_get_ns();
	/* Over budget: counted in spend. */
	if (!spend(s, SENSOR_EXEC, now))
		return 0;
	e = bpf_ringbuf_reserve(&execs, sizeof(*e), 0);
	/* The ring is full. */
	if (!e) {
		__sync_fetch_and_add(&s->counts[SENSOR_EXEC].lost, 1);
		return 0;
	}
	e->ktime_ns = now;
	e->cgroup_id = cgroup;
	e->net_id = s->net_id;
	e->pid = task->tgid;
	e->ppid = task->real_parent->tgid;
	e->uid = (__u32)bpf_get_current_uid_gid();
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	bpf_get_current_comm(e->comm, sizeof(e->comm));

	n = bpf_probe_read_kernel_str(e->path, sizeof(e->path), bprm->filename);
	e->path_len = n > 0 ? n - 1 : 0;

	start = task->mm->arg_start;
	len = task->mm->arg_end - start;
	if (len > ARGS_CAP)
		len = ARGS_CAP;
	/* Arguments that cannot be read (paged out already) are left out. */
	e->args_len = bpf_probe_read_user(e->args, len, (void *)start) ? 0 : len;

	__sync_fetch_and_add(&s->counts[SENSOR_EXEC].emitted, 1);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Walks every open file for the socket of the wanted flow: for flows whose
 * connect was not seen (before the start, over budget, Fast Open). */
SEC("iter/task_file")
int find_owner(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_holder h = {};
	struct flow_tuple t = {}, *want;
	struct socket *sock;
	struct cgroup *cgroup;
	struct sock *sk;
	__u32 zero = 0;
	int level;

	/* The end of the walk. */
	if (!task || !file)
		return 0;
	sock = bpf_sock_from_file(file);
	/* Not a socket. */
	if (!sock)
		return 0;
	sk = sock->sk;
	/* Not a connected IPv4 TCP socket. */
	if (!sk || sk->sk_protocol != IPPROTO_TCP_NUM || !read_tuple(sk, &t))
		return 0;
	want = bpf_map_lookup_elem(&wanted, &zero);
	/* Another flow. */
	if (!want || t.local_addr != want->local_addr || t.remote_addr != want->remote_addr ||
	    t.local_port != want->local_port || t.remote_port != want->remote_port)
		return 0;
	h.pid = task->tgid;
	bpf_probe_read_kernel_str(h.comm, sizeof(h.comm), &task->comm);
	cgroup = task->cgroups->dfl_cgrp;
	level = cgroup->level;
	for (int i = 0; i < SUBJECT_DEPTH; i++) {
		struct cgroup *ancestor = NULL;

		/* Above the task's own level there is nothing. */
		if (i + 1 > level)
			break;
		bpf_probe_read_kernel(&ancestor, sizeof(ancestor), &cgroup->ancestors[i + 1]);
		h.ancestors[i] = BPF_CORE_READ(ancestor, kn, id);
	}
	bpf_seq_write(ctx->meta->seq, &h, sizeof(h));
	return 0;
}

char LICENSE[] SEC("license")
= "GPL";
