// SPDX-License-Identifier: MIT OR Apache-2.0
//! Markers: the sector-sized (or longer) records that make a VMDK readable as a stream.
//!
//! | offset | size | grain marker | metadata marker |
//! |---|---|---|---|
//! | 0 | 8 | first sector of the grain on the disk | sectors of metadata that follow |
//! | 8 | 4 | compressed size in bytes, not 0 | 0 |
//! | 12 | 4 | first bytes of the compressed data | type: 0 end of stream, 1 table, 2 directory, 3 footer, 4 progress |
//!
//! A metadata marker is one sector, the rest zero. So a sector of zeros *is* the end of the stream: whatever a
//! program leaves behind it is not read by ESXi, although checksum tools count it. Type 4 is not in VMware's text;
//! vSphere itself writes it now and then, so a reader must step over it.

use super::SECTOR_SIZE;
use super::header::{u32_at, u64_at};

/// Bytes before the compressed data of a grain.
pub const GRAIN_MARKER_SIZE: usize = 12;
/// The end-of-stream marker, last sector of every valid file.
pub const END_OF_STREAM: [u8; SECTOR_SIZE] = [0; SECTOR_SIZE];

/// What the first 16 bytes of a record announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A compressed grain.
    Grain {
        /// First sector of the grain on the disk.
        lba: u64,
        /// Length of the compressed data in bytes.
        compressed_size: u32,
    },
    /// The end of the stream.
    EndOfStream,
    /// A grain table follows.
    Table {
        /// Its length.
        sectors: u64,
    },
    /// A grain directory follows.
    Directory {
        /// Its length.
        sectors: u64,
    },
    /// A copy of the header follows.
    Footer {
        /// Its length.
        sectors: u64,
    },
    /// Something vSphere writes and nobody documents; to be skipped.
    Progress {
        /// Its length.
        sectors: u64,
    },
    /// A type this crate does not know.
    Unknown {
        /// The type found.
        kind: u32,
    },
}

impl Marker {
    /// Decodes the start of a record.
    #[must_use]
    pub fn decode(sector: &[u8; SECTOR_SIZE]) -> Self {
        let value = u64_at(sector, 0);
        let size = u32_at(sector, 8);
        if size != 0 {
            return Self::Grain {
                lba: value,
                compressed_size: size,
            };
        }
        match u32_at(sector, 12) {
            0 => Self::EndOfStream,
            1 => Self::Table { sectors: value },
            2 => Self::Directory { sectors: value },
            3 => Self::Footer { sectors: value },
            4 => Self::Progress { sectors: value },
            kind => Self::Unknown { kind },
        }
    }
}

/// Encodes the 12 bytes in front of a grain's compressed data.
#[must_use]
pub fn grain_marker(lba: u64, compressed_size: u32) -> [u8; GRAIN_MARKER_SIZE] {
    let mut bytes = [0u8; GRAIN_MARKER_SIZE];
    bytes[0..8].copy_from_slice(&lba.to_le_bytes());
    bytes[8..12].copy_from_slice(&compressed_size.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_of_zeros_ends_the_stream() {
        assert_eq!(Marker::decode(&END_OF_STREAM), Marker::EndOfStream);
    }

    #[test]
    fn grain_marker_round_trips() {
        let mut sector = [0u8; SECTOR_SIZE];
        sector[..GRAIN_MARKER_SIZE].copy_from_slice(&grain_marker(0x0123_4567_89ab, 77));
        assert_eq!(
            Marker::decode(&sector),
            Marker::Grain {
                lba: 0x0123_4567_89ab,
                compressed_size: 77
            }
        );
    }

    #[test]
    fn metadata_types() {
        for (kind, expected) in [
            (1u8, Marker::Table { sectors: 4 }),
            (2, Marker::Directory { sectors: 4 }),
            (3, Marker::Footer { sectors: 4 }),
            (4, Marker::Progress { sectors: 4 }),
            (5, Marker::Unknown { kind: 5 }),
        ] {
            let mut sector = [0u8; SECTOR_SIZE];
            sector[0] = 4;
            sector[12] = kind;
            assert_eq!(Marker::decode(&sector), expected);
        }
    }
}
