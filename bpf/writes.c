//go:build ignore

// SPDX-License-Identifier: Apache-2.0
/* What each watched slot writes to disks, counted when the space is taken: a
 * page of a file becomes dirty (write, mapping, splice, copy, whatever led to
 * it), a direct write is sent, a file is made. In the context of the task that
 * does it, so the owner needs no guess.
 *
 * A page that is written again before it is on the disk takes no further space
 * and is not counted; an overwritten clean one is, though it takes none: this
 * ranks writers, it is no quota. Filesystems in memory dirty no pages. */
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "slots.h"

/* ---- kernel types: only the fields that are read ---- */

#define KERNEL_TYPE __attribute__((preserve_access_index))

/* The order of a large folio: a field of its own at first (Linux 6.1), later
 * the low byte of the second page's flags (6.6, include/linux/mm_types.h). */
struct folio {
	unsigned char _folio_order;
	unsigned long _flags_1;
} KERNEL_TYPE;

enum pageflags { PG_head = 6 };
enum req_flag_bits { __REQ_IDLE = 15 };

struct bvec_iter {
	unsigned int bi_size;
} KERNEL_TYPE;

struct bio {
	unsigned int bi_opf;
	struct bvec_iter bi_iter;
} KERNEL_TYPE;

#define REQ_OP_MASK 0xff
#define REQ_OP_WRITE 1

/* ---- configuration ---- */

const volatile __u32 page_size = 4096;

/* ---- maps ---- */

/* Since the slot is watched. */
struct written {
	__u64 bytes; /* of dirtied pages and direct writes */
	__u64 files; /* made; only where the filesystem tells */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct written);
} writers SEC(".maps");

/* ---- helpers ---- */

static __always_inline struct written *current_writer(void)
{
	__u64 id;

	return slot_of_current(&writers, &id);
}

/* The flags are a folio's first word in every kernel so far, under two types. */
static __always_inline __u64 folio_bytes(struct folio *folio)
{
	unsigned long flags = 0;
	__u32 order = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	if (flags & (1UL << bpf_core_enum_value(enum pageflags, PG_head))) {
		if (bpf_core_field_exists(folio->_folio_order))
			order = BPF_CORE_READ(folio, _folio_order);
		else
			order = BPF_CORE_READ(folio, _flags_1) & 0xff;
	}
	/* No folio is larger than a huge page of 1 GiB. */
	if (order > 18)
		order = 18;
	return (__u64)page_size << order;
}

/* ---- programs ---- */

SEC("tp_btf/writeback_dirty_folio")
int BPF_PROG(on_dirty, struct folio *folio)
{
	struct written *w = current_writer();

	/* Not a watched slot. */
	if (w)
		__sync_fetch_and_add(&w->bytes, folio_bytes(folio));
	return 0;
}

/* Writes that wait for the device and expect no more of the kind are direct
 * (block/fops.c, fs/iomap/direct-io.c); written-back pages were counted. */
SEC("tp_btf/block_bio_queue")
int BPF_PROG(on_bio, struct bio *bio)
{
	__u32 idle = 1U << bpf_core_enum_value(enum req_flag_bits, __REQ_IDLE);
	__u32 op = BPF_CORE_READ(bio, bi_opf);
	struct written *w;

	if ((op & REQ_OP_MASK) != REQ_OP_WRITE || !(op & idle))
		return 0;
	w = current_writer();
	/* Not a watched slot. */
	if (w)
		__sync_fetch_and_add(&w->bytes, BPF_CORE_READ(bio, bi_iter.bi_size));
	return 0;
}

static __always_inline int file_made(void)
{
	struct written *w = current_writer();

	/* Not a watched slot. */
	if (w)
		__sync_fetch_and_add(&w->files, 1);
	return 0;
}

SEC("tp_btf/ext4_allocate_inode")
int BPF_PROG(on_ext4_file)
{
	return file_made();
}

SEC("tp_btf/xfs_create")
int BPF_PROG(on_xfs_file)
{
	return file_made();
}

SEC("tp_btf/xfs_symlink")
int BPF_PROG(on_xfs_symlink)
{
	return file_made();
}

char LICENSE[] SEC("license")
= "GPL";
