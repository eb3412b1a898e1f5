//! Entries for a fuzzer: the parts of the format, each by itself. They take any bytes and must neither panic nor hang, and
//! what decodes must read the same after it was written again.
//!
//! Checksums keep changed bytes away from what is behind them. [`parts`] and [`reseal`] make them fit, as whoever can write
//! the volume could: what is read then may be wrong, and must not be more than that.

use crate::codec::{Reader, u64_of, usize_of};
use crate::meta::{Commit, PointChanges, State, numbers};
use crate::record::{self, Head};
use crate::segment::{self, SegmentHeader, Trailer, decode_footer, encode_footer, footer_blocks};
use crate::storage::ObjectName;
use crate::summary;
use crate::superblock::{self, SUPERBLOCK_SIZE, Superblock};
use crate::types::{BLOCK_SIZE, EpochNumber, digest};

/// One part of the format; the first byte chooses which.
pub fn parts(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 8 {
        0 => {
            let mut block = bytes.to_vec();
            block.resize(SUPERBLOCK_SIZE, 0);
            let _ = superblock::newer_version(&block);
            let _ = Superblock::decode(&block);
            seal(&mut block, superblock::CRC_AT);
            if let Ok(found) = Superblock::decode(&block) {
                assert_eq!(Superblock::decode(&found.encode()).as_ref(), Ok(&found));
            }
        }
        1 => header(bytes),
        2 => head(bytes),
        3 => {
            let mut block = bytes.to_vec();
            block.resize(BLOCK_SIZE, 0);
            seal(&mut block, segment::TRAILER_CRC_AT);
            if let Ok(found) = Trailer::decode(&block) {
                assert_eq!(Trailer::decode(&found.encode()).as_ref(), Ok(&found));
                footer(bytes, &found);
            }
        }
        4 => {
            if let Ok(found) = Commit::decode(bytes) {
                assert_eq!(Commit::decode(&found.encode()).as_ref(), Ok(&found));
            }
        }
        5 => {
            if let Ok(found) = PointChanges::decode(bytes) {
                assert_eq!(PointChanges::decode(&found.encode()).as_ref(), Ok(&found));
            }
            let _ = numbers(&mut Reader::new(bytes));
        }
        6 => {
            if let Ok(found) = State::decode(bytes) {
                assert_eq!(State::decode(&found.encode()).as_ref(), Ok(&found));
            }
        }
        _ => summaries(bytes),
    }
}

/// The header of a segment, in as many blocks as it says it has.
fn header(bytes: &[u8]) {
    let mut blocks = bytes.to_vec();
    blocks.resize(bytes.len().max(1).next_multiple_of(BLOCK_SIZE), 0);
    let Ok(count) = SegmentHeader::peek(&blocks) else {
        return;
    };
    blocks.truncate(usize_of(u64::from(count)).saturating_mul(BLOCK_SIZE));
    seal(&mut blocks, segment::HEADER_CRC_AT);
    if let Ok(found) = SegmentHeader::decode(&blocks) {
        let state = found.state.encode();
        let again = SegmentHeader::encode(
            &found.store,
            found.seq,
            found.size,
            &state,
            found.header_blocks.min(16),
        );
        let again = SegmentHeader::decode(&again).map(|again| again.state);
        assert_eq!(again.as_ref(), Ok(&found.state));
    }
}

/// The head of a record, and its body by its kind.
fn head(bytes: &[u8]) {
    let mut blocks = bytes.to_vec();
    blocks.resize(bytes.len().max(1).next_multiple_of(BLOCK_SIZE), 0);
    let mut from = Reader::new(&blocks);
    let (Ok(_), Ok(store), Ok(segment)) = (from.u64(), from.array(), from.u64()) else {
        return;
    };
    let Ok(count) = record::peek(&blocks, &store, segment) else {
        return;
    };
    blocks.truncate(usize_of(u64::from(count)).saturating_mul(BLOCK_SIZE));
    seal(&mut blocks, record::CRC_AT);
    let Ok(head) = Head::decode(&blocks) else { return };
    for entry in head.entries().unwrap_or_default() {
        let written = entry.encode();
        let again = record::Entry::decode(&mut Reader::new(&written));
        assert_eq!(again, Ok(entry));
        assert!(entry.end() > entry.block);
    }
    let _ = Commit::decode(&head.body);
    let _ = PointChanges::decode(&head.body);
}

/// A footer of what follows a trailer, with a digest that fits.
fn footer(bytes: &[u8], trailer: &Trailer) {
    let entries = bytes.get(segment::TRAILER_SIZE..).unwrap_or_default();
    let count = (entries.len() / record::ENTRY_SIZE).min(usize_of(u64::from(trailer.entries)));
    let mut blocks = entries
        .get(..count * record::ENTRY_SIZE)
        .unwrap_or_default()
        .to_vec();
    blocks.resize(usize_of(u64::from(footer_blocks(count))) * BLOCK_SIZE, 0);
    let mut trailer = trailer.clone();
    trailer.digest = digest(&blocks);
    trailer.entries = u32::try_from(count).unwrap_or(u32::MAX);
    if let Ok(found) = decode_footer(&blocks, &trailer) {
        assert_eq!(encode_footer(&found).0, blocks);
    }
}

/// A summary of a segment: behind the head of one, what it says of blocks and epochs.
fn summaries(bytes: &[u8]) {
    let trailer = Trailer {
        store: [1; 16],
        seq: 1,
        end: 2,
        entries: 1,
        first_epoch: EpochNumber(1),
        last_epoch: EpochNumber(9),
        data_bytes: 4096,
        digest: [2; 32],
    };
    let _ = summary::decode(bytes, &trailer, 65536);
    let forged = summary::forge(bytes, &trailer);
    if let Ok(segment) = summary::decode(&forged, &trailer, 65536) {
        let written = summary::encode(&segment).expect("it has a trailer");
        assert!(
            summary::says(&written, &segment),
            "a summary says what it was made of"
        );
    }
}

/// Makes the checksums in an object fit what it holds: of a superblock, or of a segment's header, the chain of its records,
/// its footer and its trailer.
pub fn reseal(object: ObjectName, bytes: &mut [u8]) {
    match object {
        ObjectName::Spare => {}
        ObjectName::Super(_) => seal(bytes, superblock::CRC_AT),
        ObjectName::Segment(_) => reseal_segment(bytes),
    }
}

/// Makes the checksum of a summary fit what it holds.
pub fn reseal_summary(bytes: &mut [u8]) {
    seal(bytes, summary::CRC_AT);
}

fn reseal_segment(bytes: &mut [u8]) {
    let blocks = bytes.len() / BLOCK_SIZE;
    let Ok(count) = SegmentHeader::peek(bytes) else {
        return;
    };
    if blocks == 0 {
        return;
    }
    let mut at = usize_of(u64::from(count)).min(blocks);
    seal(&mut bytes[..at * BLOCK_SIZE], segment::HEADER_CRC_AT);
    let field = |bytes: &[u8], at: usize, field: usize| {
        let mut from = Reader::new(bytes.get(at * BLOCK_SIZE + field..).unwrap_or_default());
        usize_of(u64::from(from.u32().unwrap_or_default()))
    };
    let mut previous = [0; 4];
    while bytes
        .get(at * BLOCK_SIZE..)
        .is_some_and(|rest| rest.starts_with(b"MTRR"))
    {
        let end = at.saturating_add(field(bytes, at, 48).max(1)).min(blocks);
        let head = bytes.get_mut(at * BLOCK_SIZE..end.max(at) * BLOCK_SIZE);
        let Some(head) = head.filter(|head| !head.is_empty()) else {
            return;
        };
        head[60..64].copy_from_slice(&previous);
        seal(head, record::CRC_AT);
        previous.copy_from_slice(&head[record::CRC_AT..record::CRC_AT + 4]);
        at = end.saturating_add(field(bytes, at, 52));
    }
    let Some(last) = blocks.checked_sub(1) else { return };
    let (front, trailer) = bytes.split_at_mut(last * BLOCK_SIZE);
    if trailer.starts_with(b"MTRT") {
        let footer = field(trailer, 0, 32).min(last);
        trailer[64..96].copy_from_slice(&digest(&front[footer * BLOCK_SIZE..]));
        seal(&mut trailer[..BLOCK_SIZE], segment::TRAILER_CRC_AT);
    }
}

/// Writes the CRC-32C of bytes into them, as if the field were 0.
fn seal(bytes: &mut [u8], at: usize) {
    if u64_of(bytes.len()) < u64_of(at) + 4 {
        return;
    }
    bytes[at..at + 4].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
