//! What lies in a store, as it lies there, for an engineer who wants to see it: superblocks, segments, footers, records.
//!
//! Nothing is put right and nothing has to be whole: what cannot be read is said beside what can.

use serde::{Deserialize, Serialize};

use crate::codec::u64_of;
use crate::error::StoreError;
use crate::record::{Entry, Image, Kind};
use crate::recover::read_superblock;
use crate::scan::{Scan, read_footer, read_header, read_trailer};
use crate::storage::{ObjectName, Storage};
use crate::types::{BLOCK, Disk, StoreUuid};

/// How much of the segments is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Header and trailer of each segment.
    Segments,
    /// The heads of its records, too.
    Records,
    /// And every extent in them and in its footer.
    Extents,
}

/// A store as it lies in storage.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StoreView {
    /// The two superblocks.
    pub superblocks: Vec<SuperblockView>,
    /// Segments, oldest first.
    pub segments: Vec<SegmentView>,
}

/// One superblock.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SuperblockView {
    /// Name of the object.
    pub object: String,
    /// Why it does not count; the fields below mean nothing then.
    pub fault: Option<String>,
    /// Identity of the store, hexadecimal.
    pub store: String,
    /// Grows with each write; of two the higher counts.
    pub sequence: u64,
    /// Generation of the pairs.
    pub generation: u64,
    /// Bytes a segment.
    pub segment_size: u64,
    /// The newest epoch that was on the disks when it was written.
    pub applied: u64,
    /// The newest complete epoch then.
    pub committed: u64,
    /// The disks of the machine.
    pub disks: Vec<Disk>,
}

/// One segment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SegmentView {
    /// Name of the object.
    pub object: String,
    /// Its sequence number.
    pub segment: u64,
    /// Its length, bytes.
    pub bytes: u64,
    /// Why its header cannot be read.
    pub header_fault: Option<String>,
    /// What its header says.
    pub header: Option<HeaderView>,
    /// Why it has no trailer that counts: the one being written has none.
    pub trailer_fault: Option<String>,
    /// What its trailer says.
    pub trailer: Option<TrailerView>,
    /// Its records, up to the first that is not whole.
    pub records: Vec<RecordView>,
    /// What is where the records end.
    pub end: Option<String>,
    /// Extents of its footer.
    pub footer: Vec<ExtentView>,
}

/// Header of a segment, and the state in it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HeaderView {
    /// Identity of the store, hexadecimal.
    pub store: String,
    /// Its sequence number, as it says itself.
    pub segment: u64,
    /// Bytes of the header.
    pub bytes: u64,
    /// Generation when it was begun.
    pub generation: u64,
    /// The newest complete epoch then.
    pub committed: u64,
    /// The newest epoch that was on the disks then.
    pub applied: u64,
    /// Points on offer then.
    pub points: u64,
    /// Segments of the log then.
    pub segments: u64,
}

/// Trailer of a segment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TrailerView {
    /// Where the footer begins, bytes.
    pub footer: u64,
    /// Extents in it.
    pub extents: u64,
    /// Smallest epoch of them.
    pub first_epoch: u64,
    /// Largest epoch of them.
    pub last_epoch: u64,
    /// Bytes of their data.
    pub data_bytes: u64,
    /// Why the footer cannot be read, when it was looked at.
    pub footer_fault: Option<String>,
}

/// Head of a record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RecordView {
    /// Where it begins, bytes.
    pub offset: u64,
    /// Its kind, as the format's description calls it.
    pub kind: String,
    /// Position among the records.
    pub index: u32,
    /// The epoch meant.
    pub epoch: u64,
    /// Bytes of the head.
    pub head_bytes: u64,
    /// Bytes of the data.
    pub data_bytes: u64,
    /// Extents described.
    pub entries: u32,
    /// All of them, when they were asked for.
    pub extents: Vec<ExtentView>,
}

/// An extent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExtentView {
    /// Position of its disk in the table.
    pub disk: u16,
    /// after-image or before-image.
    pub image: String,
    /// Whether its content is zeros, without data.
    pub zero: bool,
    /// Whether it was copied from an older segment.
    pub relocated: bool,
    /// Where on the disk, bytes.
    pub offset: u64,
    /// How much, bytes.
    pub len: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Where its data lies in the segment, bytes.
    pub data: u64,
    /// How much its data takes there, bytes: less than its length where it is packed.
    pub stored: u64,
}

fn hex(store: &StoreUuid) -> String {
    store.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn extent(entry: &Entry) -> ExtentView {
    ExtentView {
        disk: entry.disk.0,
        image: match entry.image {
            Image::After => "after-image",
            Image::Base => "before-image",
        }
        .to_owned(),
        zero: entry.zero,
        relocated: entry.relocated,
        offset: entry.block * BLOCK,
        len: u64::from(entry.count) * BLOCK,
        epoch: entry.epoch.0,
        data: u64::from(entry.data) * BLOCK,
        stored: u64::from(entry.stored()) * BLOCK,
    }
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::After => "AFTER",
        Kind::Base => "BASE",
        Kind::Commit => "COMMIT",
        Kind::Applied => "APPLIED",
        Kind::Points => "POINTS",
        Kind::Segments => "SEGMENTS",
    }
    .to_owned()
}

/// Looks at a store: all of its segments, or one.
///
/// # Errors
/// When the storage fails, or holds nothing of a store. Damage is no error.
pub fn inspect<S: Storage>(storage: &S, depth: Depth, only: Option<u64>) -> Result<StoreView, StoreError> {
    let mut objects = storage.list()?;
    objects.sort_unstable();
    if objects.is_empty() {
        return Err(StoreError::NotAStore {
            found: "it holds neither superblocks nor segments".to_owned(),
        });
    }
    let mut view = StoreView::default();
    for (object, len) in objects {
        match object {
            ObjectName::Super(slot) => {
                let mut shown = SuperblockView {
                    object: object.to_string(),
                    ..SuperblockView::default()
                };
                match read_superblock(storage, slot, len)? {
                    Ok(found) => {
                        shown.store = hex(&found.store);
                        shown.sequence = found.sequence;
                        shown.generation = found.generation;
                        shown.segment_size = found.segment_size;
                        shown.applied = found.applied.0;
                        shown.committed = found.committed.0;
                        shown.disks = found.disks;
                    }
                    Err((what, _)) => shown.fault = Some(what.to_owned()),
                }
                view.superblocks.push(shown);
            }
            ObjectName::Segment(seq) if only.is_none_or(|only| only == seq) => {
                view.segments.push(segment(storage, seq, len, depth)?);
            }
            ObjectName::Segment(_) | ObjectName::Spare => {}
        }
    }
    Ok(view)
}

fn segment<S: Storage>(storage: &S, seq: u64, len: u64, depth: Depth) -> Result<SegmentView, StoreError> {
    let mut shown = SegmentView {
        object: ObjectName::Segment(seq).to_string(),
        segment: seq,
        bytes: len,
        ..SegmentView::default()
    };
    let header = match read_header(storage, seq, len)? {
        Ok(header) => header,
        Err(what) => {
            shown.header_fault = Some(what.to_owned());
            return Ok(shown);
        }
    };
    shown.header = Some(HeaderView {
        store: hex(&header.store),
        segment: header.seq,
        bytes: u64::from(header.header_blocks) * BLOCK,
        generation: header.state.generation,
        committed: header.state.committed.0,
        applied: header.state.applied.0,
        points: u64_of(header.state.points.len()),
        segments: u64_of(header.state.segments.len()),
    });
    match read_trailer(storage, &header.store, seq, len)? {
        Err(what) => shown.trailer_fault = Some(what.to_owned()),
        Ok(trailer) => {
            let mut fault = None;
            if depth >= Depth::Extents {
                match read_footer(storage, seq, &trailer, &header.state.disks) {
                    Ok(entries) => shown.footer = entries.iter().map(extent).collect(),
                    Err(StoreError::Damaged { what, .. }) => fault = Some(what),
                    Err(err) => return Err(err),
                }
            }
            shown.trailer = Some(TrailerView {
                footer: u64::from(trailer.end) * BLOCK,
                extents: u64::from(trailer.entries),
                first_epoch: trailer.first_epoch.0,
                last_epoch: trailer.last_epoch.0,
                data_bytes: trailer.data_bytes,
                footer_fault: fault,
            });
        }
    }
    if depth >= Depth::Records {
        let disks = &header.state.disks;
        let mut scan = Scan::new(storage, header.store, seq, len, disks, header.header_blocks);
        // Data is not read here: that is what a check is for.
        while let Some(record) = scan.unchecked()? {
            shown.records.push(RecordView {
                offset: u64::from(record.at) * BLOCK,
                kind: kind(record.head.kind),
                index: record.head.index,
                epoch: record.head.epoch.0,
                head_bytes: u64::from(record.head.head_blocks) * BLOCK,
                data_bytes: u64::from(record.head.data_blocks) * BLOCK,
                entries: record.head.entries,
                extents: match depth {
                    Depth::Extents => record.entries.iter().map(extent).collect(),
                    _ => Vec::new(),
                },
            });
        }
        let what = scan
            .head_at(scan.at)?
            .err()
            .unwrap_or("a record that does not follow");
        shown.end = Some(format!("0x{:x}: {what}", u64::from(scan.at) * BLOCK));
    }
    Ok(shown)
}
