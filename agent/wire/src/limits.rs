//! Every number that a peer could abuse, in one place, with its reason.

/// Size of both hello messages, in bytes. Frozen.
pub const HELLO_SIZE: usize = 64;

/// Size of a frame header, in bytes.
pub const FRAME_HEADER_SIZE: usize = 32;

/// Largest body of a frame, in bytes. Bodies hold fields and lists; the largest is a full [`EXTENTS_MAX`] list.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Largest payload of a frame, in bytes. One pooled, aligned buffer of the target holds it.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// The unit in which a disk is compared and resumed, in bytes.
pub const REGION_SIZE: u64 = 1024 * 1024;

/// The unit of a digest, in bytes. Smaller units cost more digests than they save data (4 KiB: 0.8 % of the disk).
pub const BLOCK_SIZE: u64 = 64 * 1024;

/// The unit that is sent when a block differs, in bytes: the block size of nearly every file system.
pub const SUB_BLOCK_SIZE: u64 = 4096;

/// Blocks of a full region.
pub const BLOCKS_PER_REGION: usize = 16;

/// Sub-blocks of a full block.
pub const SUB_BLOCKS_PER_BLOCK: usize = 16;

/// Most extents in one frame: 256 sub-blocks of a region all apart, times four for what epochs will bring.
pub const EXTENTS_MAX: usize = 1024;

/// Most ranges in one `ZeroRanges`.
pub const RANGES_MAX: usize = 1024;

/// Longest machine or disk name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest text or hint of a refusal, in bytes.
pub const TEXT_BYTES_MAX: usize = 2048;

/// Largest disk, in bytes (1 PiB; VMDKs end at 62 TiB). Far from the end of `u64`, so that sums of two offsets that
/// passed this bound cannot wrap.
pub const DISK_SIZE_MAX: u64 = 1 << 50;

/// Most regions that the target may have announced and the source not yet settled. Bounds the memory of both.
pub const REGION_WINDOW_MAX: u16 = 64;

/// Most disks of one machine: four controllers of 64 places.
pub const MACHINE_DISKS_MAX: usize = 256;

/// Most tags of a recovery point.
pub const TAGS_MAX: usize = 16;

/// Longest key or value of a tag, and longest name of a recovery point, in bytes.
pub const TAG_BYTES_MAX: usize = 128;

const _: () = assert!(BLOCKS_PER_REGION as u64 * BLOCK_SIZE == REGION_SIZE);
const _: () = assert!(SUB_BLOCKS_PER_BLOCK as u64 * SUB_BLOCK_SIZE == BLOCK_SIZE);
const _: () = assert!(PAYLOAD_BYTES_MAX as u64 == REGION_SIZE);
const _: () = assert!((NAME_BYTES_MAX + 16) * MACHINE_DISKS_MAX <= BODY_BYTES_MAX - 1024);
const _: () = assert!(8 + EXTENTS_MAX * crate::message::EXTENT_SIZE <= BODY_BYTES_MAX);
