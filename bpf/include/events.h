/* SPDX-License-Identifier: Apache-2.0 */
/* Records and map values of the sensors, from sensors.c (producer) to
 * internal/detect (consumer). Addresses and ports are in network byte order. */
#pragma once

#include "slots.h"

#define COMM_LEN 16
#define PATH_CAP 256 /* bytes kept of an executable's path */
#define ARGS_CAP 512 /* bytes kept of the arguments, each ends with NUL */

enum sensor_kind {
	SENSOR_EXEC = 0,
	SENSOR_CONNECT = 1,
	SENSOR_KINDS = 2,
};

enum connect_outcome {
	CONNECT_ESTABLISHED = 1,
	CONNECT_FAILED = 2,
};

/* What became of one sensor's events of one subject. Their sum is every event
 * that happened, except connects that are still under way. */
struct sensor_counts {
	__u64 emitted;
	__u64 shed; /* over the subject's budget */
	__u64 lost; /* the ring or the memory for it was full */
};

/* A watched slot: value of `subjects`, key is the id of the slot's cgroup. */
struct subject {
	__u32 net_id;
	__u32 pad;
	__u64 paid_until[SENSOR_KINDS]; /* CLOCK_MONOTONIC ns; the state of the budget */
	struct sensor_counts counts[SENSOR_KINDS];
};

struct exec_event {
	__u64 ktime_ns;  /* CLOCK_MONOTONIC */
	__u64 cgroup_id; /* key of the subject */
	__u32 net_id;
	__u32 pid; /* thread group, initial PID namespace */
	__u32 ppid;
	__u32 uid;
	__u16 path_len;
	__u16 args_len;
	__u8 pad[4];
	char comm[COMM_LEN];
	char path[PATH_CAP];
	char args[ARGS_CAP];
};

/* A TCP flow as its connecting side sees it: key of `owners`. */
struct flow_tuple {
	__u32 local_addr;
	__u32 remote_addr;
	__u16 local_port;
	__u16 remote_port;
};

/* Who connected a flow: value of `owners`. */
struct flow_owner {
	__u64 ktime_ns; /* of connect(2); 0 if found by the walk of open files */
	__u64 cgroup_id;
	__u32 net_id;
	__u32 pid;
	char comm[COMM_LEN];
};

struct connect_event {
	__u64 ktime_ns; /* of the outcome */
	struct flow_owner owner;
	struct flow_tuple tuple;
	__u8 outcome;
	__u8 pad[3];
};

/* A holder of a wanted socket, written by find_owner. The reader looks for a
 * subject among the ancestors: ancestors[i] is the cgroup at level i+1. */
struct socket_holder {
	__u64 ancestors[SUBJECT_DEPTH];
	__u32 pid;
	__u32 pad;
	char comm[COMM_LEN];
};

_Static_assert(sizeof(struct subject) == 72, "subject has no hidden padding");
_Static_assert(sizeof(struct exec_event) == 56 + PATH_CAP + ARGS_CAP,
	       "exec_event has no hidden padding");
_Static_assert(sizeof(struct flow_tuple) == 12, "flow_tuple has no hidden padding");
_Static_assert(sizeof(struct flow_owner) == 40, "flow_owner has no hidden padding");
_Static_assert(sizeof(struct connect_event) == 64, "connect_event has no hidden padding");
_Static_assert(sizeof(struct socket_holder) == 104, "socket_holder has no hidden padding");
