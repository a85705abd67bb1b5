// Package netpol makes every environment a network island: a network namespace
// of its own, one link, one address, and no way out but to what its policy
// names.
//
// The wall of record is a tc program (bpf/island.c) at the host's end of the
// link, in both directions, attached and pinned before the first process of an
// environment runs. A second wall, an nft table of our own, stands after NAT:
// service proxies rewrite public-looking addresses once tc has judged.
//
// Invariants:
//   - An island is locked from the moment its link exists until Unlock, and an
//     unlock is one update of one map entry, under a lock that the kernel
//     program takes too: a packet sees the old record or the new one.
//   - A policy's entries are all in the kernel before any island names it. A
//     policy edit is in force at the next packet, of open flows as well.
//   - Class policy and claim policy must both allow. No policy is no passage.
//   - Whatever is missing (record, policy, counters, room in a map) refuses
//     the packet, and refuses it to that island only.
//   - Close leaves everything enforcing. Open takes it over by link update,
//     never by a gap.
//
// It refuses what an environment has no business with, whatever the policy:
// metadata services, the node, other environments, spoofed sources, anything
// but IPv4 with TCP, UDP and a little ICMP echo, IP options, broadcast. ARP is
// refused too: both neighbours are permanent entries. A class in mode allow may
// name private and special ranges; a claim can only narrow.
package netpol
