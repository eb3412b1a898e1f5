// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual disk files (VMDK) of the kind an OVA carries: `streamOptimized`, version 3.
//!
//! [`writer`] makes such a file from a raw disk, [`reader`] judges one as strictly as ESXi does and gives the disk
//! back. The byte layouts live in [`header`], [`marker`], [`grain`] and [`descriptor`], one format each.
//!
//! Source followed: VMware "Virtual Disk Format 5.0" (technical note), corrected where products differ from it:
//! the version is 3 (ESXi rejects less), grains are zlib streams (RFC 1950), marker type 4 exists.
//!
//! All integers are little-endian. A *sector* is 512 bytes whatever the disk's logical block size is; a *grain* is
//! 128 sectors. Deliberately absent: sparse files that can be written in place, delta links, split files.

pub mod descriptor;
pub mod grain;
pub mod header;
pub mod marker;
pub mod reader;
pub mod writer;

/// Size of a VMDK sector in bytes.
pub const SECTOR_SIZE: usize = 512;
/// [`SECTOR_SIZE`] for arithmetic on file offsets.
pub const SECTOR_SIZE_U64: u64 = 512;
/// Sectors in a grain; the only value ESXi's stream reader is known to take.
pub const GRAIN_SECTORS: u64 = 128;
/// Bytes in a grain.
pub const GRAIN_SIZE: usize = 65_536;
/// [`GRAIN_SIZE`] for arithmetic on file offsets.
pub const GRAIN_SIZE_U64: u64 = 65_536;
/// Entries in a grain table; "disklib supports only 512".
pub const TABLE_ENTRIES: usize = 512;
/// Sectors in a grain table.
pub const TABLE_SECTORS: u64 = 4;
/// Largest virtual disk of vSphere (62 TB), in sectors. Bounds what a hostile header can ask for.
pub const CAPACITY_SECTORS_MAX: u64 = 62 << 31;

const _: () = assert!(GRAIN_SIZE_U64 == GRAIN_SECTORS * SECTOR_SIZE_U64);
const _: () = assert!(TABLE_SECTORS * SECTOR_SIZE_U64 == 4 * 512);

/// Number of grains that cover `sectors`.
#[must_use]
pub const fn grain_count(sectors: u64) -> u64 {
    sectors.div_ceil(GRAIN_SECTORS)
}

/// Number of grain tables that cover `sectors`.
#[must_use]
pub const fn table_count(sectors: u64) -> u64 {
    grain_count(sectors).div_ceil(512)
}

/// Sectors of a grain directory with one `u32` for each table of a disk of `sectors`.
#[must_use]
pub const fn directory_sectors(sectors: u64) -> u64 {
    (table_count(sectors) * 4).div_ceil(SECTOR_SIZE_U64)
}
