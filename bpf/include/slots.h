/* SPDX-License-Identifier: Apache-2.0 */
/* Whose task runs now: the programs that follow tasks keep what they know of a
 * slot in a hash map whose key is the id of the slot's cgroup. */
#pragma once

/* How many levels below the root a slot's cgroup may lie. */
#define SUBJECT_DEPTH 10

/* The value of the slot that the current task belongs to, or NULL. `id` gets
 * the id of the slot's cgroup. */
static __always_inline void *slot_of_current(void *map, __u64 *id)
{
	for (int level = 1; level <= SUBJECT_DEPTH; level++) {
		__u64 cgroup = bpf_get_current_ancestor_cgroup_id(level);
		void *value;

		/* Above the task's own level there is nothing: not a slot's task. */
		if (!cgroup)
			return NULL;
		value = bpf_map_lookup_elem(map, &cgroup);
		if (value) {
			*id = cgroup;
			return value;
		}
	}
	return NULL;
}
