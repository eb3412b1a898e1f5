/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Marks what is written to the tracked disks.
 *
 * Three programs, on the issue, the completion and the requeue of block requests. A write is marked when it is issued and
 * again when it has completed. One mark is not enough: a reader that took the marks between the two may read before the
 * data has arrived, and a completion may go unseen (a program is skipped where it would run inside itself). Every write
 * under way stands in `inflight` under the address of its request, so that a completion that was not seen is noticed when
 * the address is used again, or by whoever takes the marks and finds it still there.
 *
 * What cannot be marked is counted, and the counts are read by those who believe the marks (src/proof.rs). Nothing is
 * ever dropped without a count. The layouts of maps are repeated in src/layout.rs.
 *
 * Built twice: with one bit a chunk, and with -DMT_BYTES with one byte a chunk, which needs no atomic OR, for kernels
 * before 5.12.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define DISKS_MAX 256
#define PAGE 4096
#define WORDS_A_PAGE (PAGE / 8)

#ifdef MT_BYTES
#define UNIT_SHIFT 3 /* chunks of one word, as a power of two */
#define FULL 0x0101010101010101ULL
#else
#define UNIT_SHIFT 6
#define FULL (~0ULL)
#endif

/* Words that one call of mark_words marks, and such calls for one request: the verifier walks every turn of a loop. With
 * bits that is 64 times 16384 chunks, the 4 GiB of the longest request even in chunks of 4 KiB. */
#define RUN_WORDS 1024
#define RUNS 16
/* Ranges of one discard: NVMe has at most 256. */
#define RANGES_MAX 256

#define OP_MASK 0xff
#define OP_DISCARD 3
/* From here on operations are commands of the driver (SG_IO, NVMe pass-through), whose position means nothing here. */
#define OP_PASS_THROUGH 32

struct geometry {
	__u64 chunks;
	__u64 since_ns; /* requests that began before this may complete without having been seen */
	__u32 dev;
	__u32 shift; /* kernel sectors of a chunk, as a power of two */
	__u64 kept[6]; /* what another agent needs to go on: src/layout.rs */
};

/* A request that has written to a tracked disk, and what of it is under way. The note stays when it has completed, with no
 * bytes: the addresses of requests are few and come again, and adding and deleting takes twice the time of all else. */
struct entry {
	__u64 sector;
	__u32 bytes;
	__u32 slot;
	__u32 discard;
	__u32 scattered; /* a discard of several ranges: sector and bytes do not tell which */
};

struct counters {
	__u64 issued;             /* sectors */
	__u64 completed_write;    /* sectors */
	__u64 completed_discard;  /* sectors */
	__u64 requeued;           /* requests */
	__u64 unseen;             /* requests whose completion was not seen, and whose address was used again */
	__u64 unseen_write;       /* their sectors */
	__u64 unseen_discard;     /* their sectors */
	__u64 unseen_scattered;   /* those of them whose ranges are not known any more */
	__u64 unmatched;          /* completions of requests whose issue was not seen */
	__u64 before;             /* the same, of requests that began before the tracking */
	__u64 inflight_full;      /* requests that could not be noted as under way */
	__u64 pass_through_write; /* commands that send data to the device */
	__u64 pass_through_other; /* other commands */
	__u64 beyond;             /* extents that end behind the last chunk: the disk has grown */
	__u64 unmarked;           /* extents that could not be marked at all */
	__u64 wide;               /* extents too long to be marked one by one: take the whole disk as changed */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DISKS_MAX);
	__type(key, __u32); /* major << 20 | minor */
	__type(value, __u32);
} disks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DISKS_MAX);
	__type(key, __u32);
	__type(value, struct geometry);
} geometry SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DISKS_MAX);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set anew when it is loaded */
	__type(key, __u64);
	__type(value, struct entry);
} inflight SEC(".maps");

/* Values of one page: a lookup finds any word of it, and mapping the array gives the pages one behind the other. */
struct marks_of_one {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__type(key, __u32);
	__type(value, __u8[PAGE]);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, DISKS_MAX);
	__type(key, __u32);
	__array(values, struct marks_of_one);
} marks SEC(".maps");

/* Faults planted by tests; all zero in every other use, and then the verifier removes what they guard. */
struct plant {
	__u32 no_issue_marks;
	__u32 no_completion_marks;
	__u32 no_inflight;
	__u32 skip_issue_each;      /* throws away every so many issues */
	__u32 skip_completion_each; /* throws away every so many completions */
	__u32 skip_sector_each;     /* throws away both of requests whose first sector is a multiple of this */
};
const volatile struct plant plant = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} planted SEC(".maps");

#define COUNT(slot, field, n)                                              \
	do {                                                               \
		__u32 _slot = (slot);                                      \
		struct counters *_c = bpf_map_lookup_elem(&counters, &_slot); \
		if (_c)                                                    \
			__sync_fetch_and_add(&_c->field, (n));             \
	} while (0)

/* Marks `count` whole words from `word` on. Global, so that the verifier looks at it once and not at every call. */
__attribute__((noinline)) int mark_words(__u32 slot, __u64 word, __u32 count)
{
	void *map = bpf_map_lookup_elem(&marks, &slot);
	__u64 failed = 0;

	if (!map)
		return 1;
	for (__u32 i = 0; i < RUN_WORDS; i++) {
		if (i >= count)
			break;
		__u32 page = (word + i) / WORDS_A_PAGE;
		__u64 *words = bpf_map_lookup_elem(map, &page);
		if (!words) {
			failed = 1;
			break;
		}
		/* A store of all ones loses nothing that a harvest takes or another program sets at the same moment. */
		*(volatile __u64 *)&words[(word + i) % WORDS_A_PAGE] = FULL;
	}
	return failed;
}

#ifndef MT_BYTES
static __always_inline int mark_bits(void *map, __u64 word, __u64 mask)
{
	__u32 page = word / WORDS_A_PAGE;
	__u64 *words = bpf_map_lookup_elem(map, &page);

	if (!words)
		return 1;
	__sync_fetch_and_or(&words[word % WORDS_A_PAGE], mask);
	return 0;
}
#endif

/* Marks the chunks of a range of sectors. */
__attribute__((noinline)) int mark(__u32 slot, __u64 sector, __u64 sectors)
{
	struct geometry *disk = bpf_map_lookup_elem(&geometry, &slot);
	void *map = bpf_map_lookup_elem(&marks, &slot);
	__u64 first, last, word, words;

	if (!sectors)
		return 0;
	if (!disk || !map || disk->shift > 31) {
		COUNT(slot, unmarked, 1);
		return 1;
	}
	first = sector >> disk->shift;
	last = (sector + sectors - 1) >> disk->shift;
	if (last >= disk->chunks || last < first) {
		COUNT(slot, beyond, 1);
		if (first >= disk->chunks)
			return 1;
		last = disk->chunks - 1;
	}
#ifdef MT_BYTES
	if (first == last) {
		__u32 page = first / PAGE;
		__u8 *bytes = bpf_map_lookup_elem(map, &page);
		if (bytes) {
			*(volatile __u8 *)&bytes[first % PAGE] = 1;
			return 0;
		}
		COUNT(slot, unmarked, 1);
		return 1;
	}
	/* Neighbours in the first and last word are marked too: too much is never wrong. */
	word = first >> UNIT_SHIFT;
	words = (last >> UNIT_SHIFT) - word + 1;
#else
	{
		__u64 head = ~0ULL << (first & 63), tail = ~0ULL >> (63 - (last & 63));
		int failed;

		word = first >> UNIT_SHIFT;
		words = (last >> UNIT_SHIFT) - word;
		if (!words) {
			failed = mark_bits(map, word, head & tail);
		} else {
			failed = mark_bits(map, word, head);
			failed |= mark_bits(map, word + words, tail);
		}
		if (failed)
			COUNT(slot, unmarked, 1);
		if (words < 2)
			return failed;
		word++;
		words--;
	}
#endif
	for (__u32 run = 0; run < RUNS; run++) {
		if (!words)
			return 0;
		__u32 count = words > RUN_WORDS ? RUN_WORDS : words;
		if (mark_words(slot, word, count))
			COUNT(slot, unmarked, 1);
		word += count;
		words -= count;
	}
	if (words)
		COUNT(slot, wide, 1);
	return 0;
}

static __always_inline __u32 *slot_of(struct request *rq)
{
	struct gendisk *disk;
	__u32 dev;

	if (bpf_core_field_exists(rq->q->disk))
		disk = rq->q->disk;
	else
		disk = rq->rq_disk;
	if (!disk)
		return 0;
	dev = ((__u32)disk->major << 20) | (__u32)disk->first_minor;
	return bpf_map_lookup_elem(&disks, &dev);
}

/* Whether the request holds several ranges that are not one: only discards are merged so, and only where the disk takes
 * several ranges in a command. Its first sector and its length then say nothing about the others. */
static __always_inline int scattered(struct request *rq, __u32 op)
{
	struct bio *bio;
	__u64 end;

	if (op != OP_DISCARD)
		return 0;
	bio = rq->bio;
	if (!bio || !bio->bi_next)
		return 0;
	end = bio->bi_iter.bi_sector;
	for (int i = 0; i < RANGES_MAX; i++) {
		if (bio->bi_iter.bi_sector != end)
			return 1;
		end += bio->bi_iter.bi_size >> 9;
		bio = bio->bi_next;
		if (!bio)
			return 0;
	}
	return 1;
}

static __always_inline void mark_ranges(struct request *rq, __u32 slot)
{
	struct bio *bio = rq->bio;

	for (int i = 0; i < RANGES_MAX; i++) {
		if (!bio)
			return;
		mark(slot, bio->bi_iter.bi_sector, bio->bi_iter.bi_size >> 9);
		bio = bio->bi_next;
	}
	if (bio)
		COUNT(slot, wide, 1);
}

static __always_inline int thrown_away(__u32 side, __u32 each)
{
	if (!each)
		return 0;
	__u64 *seen = bpf_map_lookup_elem(&planted, &side);
	if (!seen)
		return 0;
	__sync_fetch_and_add(seen, 1);
	return *seen % each == 0;
}

/* The address of a request is used again, and its completion was not seen. */
static __always_inline void unseen(struct entry *note)
{
	__u32 slot = note->slot, bytes = note->bytes, discard = note->discard, many = note->scattered;

	mark(slot, note->sector, bytes >> 9);
	COUNT(slot, unseen, 1);
	if (discard)
		COUNT(slot, unseen_discard, bytes >> 9);
	else
		COUNT(slot, unseen_write, bytes >> 9);
	if (many)
		COUNT(slot, unseen_scattered, 1);
}

static __always_inline int issued(struct request *rq)
{
	__u32 *found = slot_of(rq), op, slot;
	__u64 key = (__u64)rq;
	struct entry entry = {}, *note;

	if (!found)
		return 0;
	slot = *found;
	op = rq->cmd_flags & OP_MASK;
	if (op >= OP_PASS_THROUGH) {
		if (op & 1)
			COUNT(slot, pass_through_write, 1);
		else
			COUNT(slot, pass_through_other, 1);
		return 0;
	}
	/* Every operation that changes the medium is odd (include/linux/blk_types.h, op_is_write). */
	if (!(op & 1) || !rq->__data_len)
		return 0;
	if (plant.skip_sector_each && rq->__sector % plant.skip_sector_each == 0)
		return 0;
	if (thrown_away(0, plant.skip_issue_each))
		return 0;
	entry.sector = rq->__sector;
	entry.bytes = rq->__data_len;
	entry.slot = slot;
	entry.discard = op == OP_DISCARD;
	entry.scattered = scattered(rq, op);
	if (!plant.no_inflight) {
		note = bpf_map_lookup_elem(&inflight, &key);
		if (note && note->bytes)
			unseen(note);
		/* Before the mark: who takes the mark and looks here afterwards finds it. The bytes last: without them it does
		 * not count. */
		if (note) {
			note->sector = entry.sector;
			note->slot = slot;
			note->discard = entry.discard;
			note->scattered = entry.scattered;
			barrier();
			*(volatile __u32 *)&note->bytes = entry.bytes;
		} else if (bpf_map_update_elem(&inflight, &key, &entry, BPF_ANY)) {
			COUNT(slot, inflight_full, 1);
		}
	}
	COUNT(slot, issued, entry.bytes >> 9);
	if (plant.no_issue_marks)
		return 0;
	if (entry.scattered)
		mark_ranges(rq, slot);
	else
		mark(slot, entry.sector, entry.bytes >> 9);
	return 0;
}

static __always_inline int requeued(struct request *rq)
{
	__u32 *found = slot_of(rq), slot;
	__u64 key = (__u64)rq;
	struct entry *note;

	if (!found)
		return 0;
	slot = *found;
	note = bpf_map_lookup_elem(&inflight, &key);
	if (!note || !note->bytes)
		return 0;
	/* A part of it may have been written. It is issued again, then as new. */
	if (note->scattered)
		mark_ranges(rq, slot);
	else
		mark(slot, note->sector, note->bytes >> 9);
	note->bytes = 0;
	COUNT(slot, requeued, 1);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int issue(__u64 *ctx)
{
	return issued((struct request *)ctx[0]);
}

SEC("tp_btf/block_rq_requeue")
int requeue(__u64 *ctx)
{
	return requeued((struct request *)ctx[0]);
}

/* Before 5.11 the queue came first (commit a54895fa057c). */
SEC("tp_btf/block_rq_issue")
int issue_5_10(__u64 *ctx)
{
	return issued((struct request *)ctx[1]);
}

SEC("tp_btf/block_rq_requeue")
int requeue_5_10(__u64 *ctx)
{
	return requeued((struct request *)ctx[1]);
}

/* Called before the kernel moves the request on and before it counts the bytes: the request still says where it began. */
SEC("tp_btf/block_rq_complete")
int complete(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	__u32 done = (__u32)ctx[2], *found = slot_of(rq), op, slot;
	__u64 key = (__u64)rq;
	struct entry *note;

	if (!found)
		return 0;
	slot = *found;
	op = rq->cmd_flags & OP_MASK;
	/* A write with a flush completes once more at its end, without bytes. */
	if (op >= OP_PASS_THROUGH || !(op & 1) || !done)
		return 0;
	if (plant.skip_sector_each && rq->__sector % plant.skip_sector_each == 0)
		return 0;
	if (thrown_away(1, plant.skip_completion_each))
		return 0;
	if (!plant.no_completion_marks) {
		if (scattered(rq, op))
			mark_ranges(rq, slot);
		else
			mark(slot, rq->__sector, done >> 9);
	}
	if (op == OP_DISCARD)
		COUNT(slot, completed_discard, done >> 9);
	else
		COUNT(slot, completed_write, done >> 9);
	if (plant.no_inflight)
		return 0;
	note = bpf_map_lookup_elem(&inflight, &key);
	if (!note || !note->bytes || note->slot != slot) {
		struct geometry *disk = bpf_map_lookup_elem(&geometry, &slot);

		if (disk && rq->start_time_ns >= disk->since_ns)
			COUNT(slot, unmatched, 1);
		else
			COUNT(slot, before, 1);
		return 0;
	}
	if (done >= note->bytes) {
		note->bytes = 0;
	} else {
		/* In this order: who looks in between sees more than is left, not less. */
		note->sector += done >> 9;
		barrier();
		note->bytes -= done;
	}
	return 0;
}
