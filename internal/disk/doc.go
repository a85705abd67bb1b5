// Package disk keeps a node's disks from being filled by its environments, so
// that the kubelet never has a reason to evict pods for what they write.
//
// Every tenth of a second the guard looks at the filesystems that environments
// write to. Where less is available than is to be kept free, or would be with
// the next look at the pace of the writers, it stalls those that write, the
// fastest first, until the others together would take a minute to use up what is
// left of a margin below the mark; with the margin gone only a trickle is let
// be, and in the end nothing. New claims, restores and snapshots are refused
// meanwhile. When there is room again the stalled ones go on.
//
// Who writes is counted in the kernel (bpf/writes.c) as space is taken, in the
// writer's own context, however it writes. The mark must be above the kubelet's
// own thresholds by what can be written within a tenth of a second. That nothing
// can take more at once is seen to by the environments' system call filter,
// which refuses to reserve space without writing it.
//
// Invariants:
//   - What is stalled is chosen by what the kernel counted, never by what an
//     environment says.
//   - An environment that writes nothing is never stalled.
//   - A filesystem that cannot be looked at is an error that is told, and counts
//     as it was seen last.
//
// Beside the guard, Quotas bound what one slot's files take where the filesystem
// counts by project. Without them an environment may use whatever is not kept free.
// The package refuses to judge which files could go.
package disk
