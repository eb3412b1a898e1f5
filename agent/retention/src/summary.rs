//! What the footer of a sealed segment says, in short, so that opening a store of many segments need not read their footers.
//!
//! A summary is kept beside the log, in a [`Catalogue`], and never believed on its word: it holds the trailer of its
//! segment, and counts only while that is, byte for byte, the trailer that the segment has. The trailer holds the digest of
//! the footer, so a summary of another store, of an older life of a number, or of a segment that was changed
//! since is noticed. One that is missing or does not count costs the time to read one footer.
//!
//! All integers are little-endian.
//!
//! | offset | size | name | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | `MTRC` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 4 | length | bytes of the whole summary |
//! | 12 | 4 | crc | CRC-32C of the whole with this field 0 |
//! | 16 | 100 | trailer | the first 100 bytes of the segment's trailer, see the module `segment` |
//! | 116 | | after-images | count u32; each: disk u16, length u32, blocks as a 64-bit Roaring bitmap in its portable format |
//! | | | before-images | the same |
//! | | | epochs | count u32; each: epoch u64, after-images that were not relocated u64, sum of their CRCs u64 |

use roaring::RoaringTreemap;

use crate::codec::{Malformed, Reader, put_count, u32_of, u64_of, usize_of};
use crate::log::{Presence, Segment};
use crate::segment::{TRAILER_SIZE, Trailer};
use crate::types::{DiskIndex, EpochNumber};

const MAGIC: [u8; 4] = *b"MTRC";
const VERSION: u16 = 1;
/// Position of the checksum, bytes.
pub(crate) const CRC_AT: usize = 12;
const HEADER_SIZE: usize = 16;
const _: () = assert!(CRC_AT + 4 == HEADER_SIZE);

/// What is remembered of sealed segments beside the log. It may forget anything, and be wrong: then footers are read.
pub trait Catalogue {
    /// The summary that [`Store::summary`](crate::Store::summary) gave for a segment.
    fn summary(&self, segment: u64) -> Option<Vec<u8>>;
}

/// Remembers nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCatalogue;

impl Catalogue for NoCatalogue {
    fn summary(&self, _segment: u64) -> Option<Vec<u8>> {
        None
    }
}

/// The summary of a sealed segment; `None` for one without a trailer.
pub(crate) fn encode(segment: &Segment) -> Option<Vec<u8>> {
    let trailer = segment.trailer.as_ref()?;
    let mut out = vec![0; HEADER_SIZE];
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&trailer.encode()[..TRAILER_SIZE]);
    for presence in [&segment.after, &segment.base] {
        put_count(&mut out, presence.len());
        for (disk, blocks) in presence {
            out.extend_from_slice(&disk.0.to_le_bytes());
            out.extend_from_slice(&u32_of(blocks.serialized_size()).to_le_bytes());
            // Writing to memory cannot fail.
            blocks.serialize_into(&mut out).ok()?;
        }
    }
    put_count(&mut out, segment.sums.len());
    for (epoch, (count, sum)) in &segment.sums {
        for number in [epoch.0, *count, *sum] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    let len = u32_of(out.len());
    out[8..12].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out[CRC_AT..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
    Some(out)
}

/// The segment of a summary, when it is the summary of the segment that has this trailer and takes `bytes`.
pub(crate) fn decode(summary: &[u8], trailer: &Trailer, bytes: u64) -> Result<Segment, Malformed> {
    let mut from = Reader::new(summary);
    if from.array()? != MAGIC {
        return Err("it is not a summary of a segment");
    }
    if from.u16()? != VERSION {
        return Err("a summary of an unknown version");
    }
    let _reserved = from.u16()?;
    if u64::from(from.u32()?) != u64_of(summary.len()) {
        return Err("a summary is cut");
    }
    let crc = from.u32()?;
    let whole = crc32c::crc32c(&summary[..CRC_AT]);
    let whole = crc32c::crc32c_append(whole, &[0; 4]);
    if crc32c::crc32c_append(whole, &summary[HEADER_SIZE..]) != crc {
        return Err("a summary fails its checksum");
    }
    if from.bytes(TRAILER_SIZE)? != &trailer.encode()[..TRAILER_SIZE] {
        return Err("a summary belongs to another segment");
    }
    let mut segment = Segment::new(bytes);
    segment.after = presence(&mut from)?;
    segment.base = presence(&mut from)?;
    let count = from.count(24)?;
    for _ in 0..count {
        let epoch = EpochNumber(from.u64()?);
        segment.sums.insert(epoch, (from.u64()?, from.u64()?));
    }
    if trailer.entries > 0 {
        segment.first_epoch = trailer.first_epoch;
        segment.last_epoch = trailer.last_epoch;
    }
    segment.data_bytes = trailer.data_bytes;
    segment.trailer = Some(trailer.clone());
    Ok(segment)
}

/// A summary of the segment with this trailer that says of blocks and epochs what it is told, for the fuzzer.
pub(crate) fn forge(body: &[u8], trailer: &Trailer) -> Vec<u8> {
    let mut out = vec![0; HEADER_SIZE];
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&trailer.encode()[..TRAILER_SIZE]);
    out.extend_from_slice(body);
    let len = u32_of(out.len());
    out[8..12].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out[CRC_AT..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Whether a summary says of a segment what is known of it. The same blocks may be written in several ways.
pub(crate) fn says(summary: &[u8], segment: &Segment) -> bool {
    let same = |ours: &Presence, its: &Presence| {
        ours.len() == its.len()
            && ours
                .iter()
                .zip(its)
                .all(|((disk, a), (other, b))| disk == other && a.len() == b.len() && a.is_subset(b))
    };
    let Some(trailer) = &segment.trailer else {
        return false;
    };
    decode(summary, trailer, segment.bytes).is_ok_and(|found| {
        same(&segment.after, &found.after) && same(&segment.base, &found.base) && segment.sums == found.sums
    })
}

fn presence(from: &mut Reader<'_>) -> Result<Presence, Malformed> {
    let count = from.count(6)?;
    (0..count)
        .map(|_| {
            let disk = DiskIndex(from.u16()?);
            let len = usize_of(u64::from(from.u32()?));
            let blocks = RoaringTreemap::deserialize_from(from.bytes(len)?)
                .map_err(|_| "the blocks in a summary are no bitmap")?;
            Ok((disk, blocks))
        })
        .collect()
}
