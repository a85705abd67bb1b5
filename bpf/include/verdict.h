/* SPDX-License-Identifier: Apache-2.0 */
/* Why a packet was refused. The order is that of env.Reasons, whose element i
 * has the number i+1; the number is an index of the counters. */
#pragma once

enum verdict {
	VERDICT_ALLOWED = 0,
	VERDICT_METADATA = 1,
	VERDICT_PRIVATE = 2,
	/* The node would deliver it to itself, broadcast it, or has no route for it. */
	VERDICT_NODE = 3,
	VERDICT_NEIGHBOUR = 4,
	VERDICT_SPECIAL = 5,
	VERDICT_SPOOF = 6,
	VERDICT_ETHERTYPE = 7,
	VERDICT_PROTOCOL = 8,
	VERDICT_FRAGMENT = 9,
	VERDICT_OPTION = 10,
	VERDICT_ICMP = 11,
	VERDICT_MULTICAST = 12,
	VERDICT_POLICY = 13,
	VERDICT_NAME = 14,
	VERDICT_QUOTA = 15,
	VERDICT_LOCKED = 16,
	VERDICT_COUNT = 17,
};
