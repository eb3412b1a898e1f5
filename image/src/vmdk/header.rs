// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sparse extent header: the first sector of a VMDK, and its footer.
//!
//! | offset | size | name | value here |
//! |---|---|---|---|
//! | 0 | 4 | magic | `KDMV` |
//! | 4 | 4 | version | 3 |
//! | 8 | 4 | flags | bit 0 newline test, 1 redundant tables, 2 zeroed-grain entries, 16 compressed, 17 markers |
//! | 12 | 8 | capacity | sectors |
//! | 20 | 8 | grain size | 128 sectors |
//! | 28 | 8 | descriptor offset | sector 1 |
//! | 36 | 8 | descriptor size | sectors |
//! | 44 | 4 | entries per grain table | 512 |
//! | 48 | 8 | redundant directory | sector, 0 when flag bit 1 is clear |
//! | 56 | 8 | directory | sector, all ones: stands in the footer |
//! | 64 | 8 | overhead | first sector of the stream |
//! | 72 | 1 | unclean shutdown | 0 |
//! | 73 | 4 | newline test | `\n`, space, `\r`, `\n`: destroyed by a transfer in text mode |
//! | 77 | 2 | compression | 1 (deflate in a zlib envelope) |
//! | 79 | 433 | padding | zero |
//!
//! The header has no checksum; [`super::reader`] makes up for that by holding every field against what the rest of
//! the file says.

use super::{CAPACITY_SECTORS_MAX, GRAIN_SECTORS, SECTOR_SIZE, TABLE_ENTRIES};

/// First four bytes of the file.
pub const MAGIC: [u8; 4] = *b"KDMV";
/// The only version ESXi imports.
pub const VERSION: u32 = 3;
/// Flag: the newline test at offset 73 is valid.
pub const FLAG_NEWLINE_TEST: u32 = 1;
/// Flag: a second directory and second tables exist.
pub const FLAG_REDUNDANT_TABLES: u32 = 1 << 1;
/// Flag: table entry 1 means a grain of zeros.
pub const FLAG_ZEROED_ENTRIES: u32 = 1 << 2;
/// Flag: grains are compressed.
pub const FLAG_COMPRESSED: u32 = 1 << 16;
/// Flag: grains and tables carry markers.
pub const FLAG_MARKERS: u32 = 1 << 17;
/// Directory offset that says: look into the footer.
pub const DIRECTORY_AT_END: u64 = u64::MAX;
const NEWLINE_TEST: [u8; 4] = *b"\n \r\n";
const COMPRESSION_DEFLATE: u16 = 1;
const PADDING_AT: usize = 79;

/// The fields of a header that can differ between valid files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseHeader {
    /// Flag bits, see the module's table.
    pub flags: u32,
    /// Size of the disk in sectors.
    pub capacity_sectors: u64,
    /// Length of the embedded descriptor in sectors.
    pub descriptor_sectors: u64,
    /// Sector of the redundant grain directory, 0 for none.
    pub redundant_directory: u64,
    /// Sector of the grain directory, or [`DIRECTORY_AT_END`].
    pub directory: u64,
    /// First sector behind the metadata in front.
    pub overhead: u64,
}

/// A reason to refuse a header, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HeaderFault(pub String);

impl SparseHeader {
    /// Encodes the header as the sector that goes to disk.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR_SIZE] {
        let mut sector = [0u8; SECTOR_SIZE];
        sector[0..4].copy_from_slice(&MAGIC);
        sector[4..8].copy_from_slice(&VERSION.to_le_bytes());
        sector[8..12].copy_from_slice(&self.flags.to_le_bytes());
        sector[12..20].copy_from_slice(&self.capacity_sectors.to_le_bytes());
        sector[20..28].copy_from_slice(&GRAIN_SECTORS.to_le_bytes());
        sector[28..36].copy_from_slice(&1u64.to_le_bytes());
        sector[36..44].copy_from_slice(&self.descriptor_sectors.to_le_bytes());
        sector[44..48].copy_from_slice(&512u32.to_le_bytes());
        sector[48..56].copy_from_slice(&self.redundant_directory.to_le_bytes());
        sector[56..64].copy_from_slice(&self.directory.to_le_bytes());
        sector[64..72].copy_from_slice(&self.overhead.to_le_bytes());
        sector[73..77].copy_from_slice(&NEWLINE_TEST);
        sector[77..79].copy_from_slice(&COMPRESSION_DEFLATE.to_le_bytes());
        sector
    }

    /// Decodes and judges a header sector.
    ///
    /// # Errors
    /// The first reason why ESXi, or the rest of this crate, would not take the file.
    pub fn decode(sector: &[u8; SECTOR_SIZE]) -> Result<Self, HeaderFault> {
        let fault = |text: String| Err(HeaderFault(text));
        if sector[0..4] != MAGIC {
            let text = if sector.starts_with(b"# Disk DescriptorFile") {
                "this is a text descriptor of a disk kept in other files, not a streamOptimized disk"
                    .to_owned()
            } else {
                format!(
                    "no VMDK: the file starts with {:02x?}, expected {:02x?} (\"KDMV\")",
                    &sector[0..4],
                    MAGIC
                )
            };
            return fault(text);
        }
        let version = u32_at(sector, 4);
        if version != VERSION {
            return fault(format!(
                "version is {version}, ESXi takes only version {VERSION} of a compressed disk"
            ));
        }
        if sector[73..77] != NEWLINE_TEST {
            return fault(format!(
                "the newline test reads {:02x?}, expected {NEWLINE_TEST:02x?}: the file went through a transfer in text mode",
                &sector[73..77]
            ));
        }
        let flags = u32_at(sector, 8);
        if flags & FLAG_COMPRESSED == 0 || flags & FLAG_MARKERS == 0 {
            return fault(format!(
                "flags are {flags:#x}: not a streamOptimized disk (grains without compression or markers)"
            ));
        }
        let known =
            FLAG_NEWLINE_TEST | FLAG_REDUNDANT_TABLES | FLAG_ZEROED_ENTRIES | FLAG_COMPRESSED | FLAG_MARKERS;
        if flags & !known != 0 || flags & FLAG_NEWLINE_TEST == 0 {
            return fault(format!(
                "flags are {flags:#x}: unknown bits, or the newline test is not declared"
            ));
        }
        let capacity_sectors = u64_at(sector, 12);
        if capacity_sectors == 0 || capacity_sectors > CAPACITY_SECTORS_MAX {
            return fault(format!(
                "capacity is {capacity_sectors} sectors, allowed are 1 to {CAPACITY_SECTORS_MAX} (62 TB)"
            ));
        }
        let grain_sectors = u64_at(sector, 20);
        if grain_sectors != GRAIN_SECTORS {
            return fault(format!(
                "grain size is {grain_sectors} sectors, expected {GRAIN_SECTORS}"
            ));
        }
        let descriptor_at = u64_at(sector, 28);
        let descriptor_sectors = u64_at(sector, 36);
        if descriptor_at != 1 || !(1..=256).contains(&descriptor_sectors) {
            return fault(format!(
                "the descriptor is said to be at sector {descriptor_at} with {descriptor_sectors} sectors, \
                 expected sector 1 with 1 to 256"
            ));
        }
        let entries = u32_at(sector, 44);
        if usize::try_from(entries) != Ok(TABLE_ENTRIES) {
            return fault(format!(
                "grain tables have {entries} entries, expected {TABLE_ENTRIES}"
            ));
        }
        if sector[72] != 0 {
            return fault("the disk was not closed cleanly by the program that wrote it".to_owned());
        }
        let compression = u16::from_le_bytes([sector[77], sector[78]]);
        if compression != COMPRESSION_DEFLATE {
            return fault(format!(
                "compression method is {compression}, expected {COMPRESSION_DEFLATE} (deflate)"
            ));
        }
        if let Some(at) = sector[PADDING_AT..].iter().position(|&byte| byte != 0) {
            return fault(format!("byte {:#x} of the header is not zero", PADDING_AT + at));
        }
        let redundant_directory = u64_at(sector, 48);
        if flags & FLAG_REDUNDANT_TABLES == 0 && redundant_directory != 0 {
            return fault(format!(
                "a redundant directory is given (sector {redundant_directory}), but the flag for it is not set"
            ));
        }
        Ok(Self {
            flags,
            capacity_sectors,
            descriptor_sectors,
            redundant_directory,
            directory: u64_at(sector, 56),
            overhead: u64_at(sector, 64),
        })
    }
}

/// Reads a little-endian `u32`; `at + 4` must lie within `bytes`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0u8; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// Reads a little-endian `u64`; `at + 8` must lie within `bytes`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0u8; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SparseHeader {
        SparseHeader {
            flags: 0x30001,
            capacity_sectors: 4_194_304,
            descriptor_sectors: 20,
            redundant_directory: 0,
            directory: 21,
            overhead: 128,
        }
    }

    #[test]
    fn golden_bytes() {
        let sector = sample().encode();
        assert_eq!(
            &sector[..79],
            b"KDMV\x03\0\0\0\x01\0\x03\0\0\0\x40\0\0\0\0\0\x80\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x14\0\0\0\0\0\0\0\
              \0\x02\0\0\0\0\0\0\0\0\0\0\x15\0\0\0\0\0\0\0\x80\0\0\0\0\0\0\0\0\n \r\n\x01\0"
        );
        assert_eq!(SparseHeader::decode(&sector), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_is_refused_or_changes_a_field() {
        for at in 0..SECTOR_SIZE {
            for bit in 0..8 {
                let mut sector = sample().encode();
                sector[at] ^= 1 << bit;
                assert_ne!(
                    SparseHeader::decode(&sector),
                    Ok(sample()),
                    "byte {at} bit {bit} went unnoticed"
                );
            }
        }
    }

    #[test]
    fn older_versions_are_named() {
        let mut sector = sample().encode();
        sector[4] = 1;
        let fault = SparseHeader::decode(&sector).unwrap_err();
        assert!(fault.0.contains("version is 1"), "{fault}");
    }
}
