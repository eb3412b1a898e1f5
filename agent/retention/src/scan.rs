//! Reading a segment as it lies in storage: header, trailer, footer, and record by record.
//!
//! Nothing here writes. A record that does not check out is told apart from one that cannot be read: the first may be the
//! torn end of the log, the second never is.

use crate::codec::{Malformed, usize_of};
use crate::error::StoreError;
use crate::log::{damaged, is_whole};
use crate::planted::Bug;
use crate::record::{self, Entry, Head};
use crate::segment::{SegmentHeader, Trailer, decode_footer, footer_blocks};
use crate::storage::{ObjectName, Storage};
use crate::types::{BLOCK, BLOCK_SIZE, Disk, StoreUuid};

/// Reads the footer of a sealed segment. Every extent in it lies on a disk, and its data among the records.
pub(crate) fn read_footer<S: Storage>(
    storage: &S,
    seq: u64,
    trailer: &Trailer,
    disks: &[Disk],
) -> Result<Vec<Entry>, StoreError> {
    let entries = usize_of(u64::from(trailer.entries));
    let mut bytes = vec![0; usize_of(u64::from(footer_blocks(entries))) * BLOCK_SIZE];
    let object = ObjectName::Segment(seq);
    let offset = u64::from(trailer.end) * BLOCK;
    if !bytes.is_empty() {
        storage.read(object, offset, &mut bytes)?;
    }
    let fits = |entry: &Entry| {
        let disk = disks.get(entry.disk.at());
        disk.is_some_and(|disk| entry.end() <= disk.blocks())
            && (entry.zero || entry.data_end() <= u64::from(trailer.end))
    };
    match decode_footer(&bytes, trailer) {
        Ok(entries) if entries.iter().all(fits) => Ok(entries),
        Ok(_) => Err(damaged(object, offset, "its footer is out of bounds")),
        Err(what) => Err(damaged(object, offset, what)),
    }
}

/// Reads a segment's header. The error of the inside says that the bytes are not one.
pub(crate) fn read_header<S: Storage>(
    storage: &S,
    seq: u64,
    len: u64,
) -> Result<Result<SegmentHeader, Malformed>, StoreError> {
    let object = ObjectName::Segment(seq);
    if len < BLOCK {
        return Ok(Err("it has no header"));
    }
    let mut bytes = vec![0; BLOCK_SIZE];
    storage.read(object, 0, &mut bytes)?;
    let blocks = match SegmentHeader::peek(&bytes) {
        Ok(blocks) if u64::from(blocks) * BLOCK <= len => blocks,
        Ok(_) => return Ok(Err("its header is cut")),
        Err(what) => return Ok(Err(what)),
    };
    if blocks > 1 {
        bytes.resize(usize_of(u64::from(blocks)) * BLOCK_SIZE, 0);
        storage.read(object, BLOCK, &mut bytes[BLOCK_SIZE..])?;
    }
    Ok(SegmentHeader::decode(&bytes))
}

/// Reads the trailer of a segment, if it has one.
pub(crate) fn read_trailer<S: Storage>(
    storage: &S,
    store: &StoreUuid,
    seq: u64,
    len: u64,
) -> Result<Result<Trailer, Malformed>, StoreError> {
    if len < 2 * BLOCK || !len.is_multiple_of(BLOCK) {
        return Ok(Err("it has no trailer"));
    }
    let mut block = vec![0; BLOCK_SIZE];
    storage.read(ObjectName::Segment(seq), len - BLOCK, &mut block)?;
    Ok(Trailer::decode(&block).and_then(|trailer| {
        let end = u64::from(trailer.end) + u64::from(footer_blocks(usize_of(u64::from(trailer.entries)))) + 1;
        if trailer.store != *store || trailer.seq != seq {
            Err("its trailer belongs to another segment")
        } else if end * BLOCK != len {
            Err("its trailer does not fit its length")
        } else {
            Ok(trailer)
        }
    }))
}

/// A record found by [`Scan`].
#[derive(Debug)]
pub(crate) struct Scanned {
    pub at: u32,
    pub head: Head,
    pub entries: Vec<Entry>,
}

/// Walks over the records of a segment.
pub(crate) struct Scan<'a, S> {
    pub storage: &'a S,
    pub store: StoreUuid,
    pub seq: u64,
    pub len: u64,
    pub disks: &'a [Disk],
    /// Where the next record should begin, in blocks.
    pub at: u32,
    index: u32,
    previous: u32,
}

impl<'a, S: Storage> Scan<'a, S> {
    pub(crate) fn new(
        storage: &'a S,
        store: StoreUuid,
        seq: u64,
        len: u64,
        disks: &'a [Disk],
        at: u32,
    ) -> Self {
        Self {
            storage,
            store,
            seq,
            len,
            disks,
            at,
            index: 0,
            previous: 0,
        }
    }

    /// The next record, when a whole one is there: head, order, and the digests of its data.
    pub(crate) fn next(&mut self) -> Result<Result<Scanned, Malformed>, StoreError> {
        let head = match self.head_at(self.at)? {
            Ok(head) => head,
            Err(what) => return Ok(Err(what)),
        };
        if head.index != self.index || head.previous != self.previous {
            return Ok(Err("a record is missing before this one"));
        }
        let entries = match self.checked_entries(self.at, &head)? {
            Ok(entries) => entries,
            Err(what) => return Ok(Err(what)),
        };
        let scanned = Scanned {
            at: self.at,
            entries,
            head,
        };
        self.pass(&scanned);
        Ok(Ok(scanned))
    }

    /// A later record that shows that everything up to here had been durable when it was made.
    pub(crate) fn durable_after(&self) -> Result<Option<(u32, Head)>, StoreError> {
        let blocks = u32::try_from(self.len / BLOCK).unwrap_or(u32::MAX);
        for at in self.at + 1..blocks {
            if let Ok(head) = self.head_at(at)?
                && head.durable > self.at
                && head.index > self.index
            {
                return self.first_head_after().map(|first| first.or(Some((at, head))));
            }
        }
        Ok(None)
    }

    fn first_head_after(&self) -> Result<Option<(u32, Head)>, StoreError> {
        let blocks = u32::try_from(self.len / BLOCK).unwrap_or(u32::MAX);
        for at in self.at + 1..blocks {
            if let Ok(head) = self.head_at(at)?
                && head.index > self.index
            {
                return Ok(Some((at, head)));
            }
        }
        Ok(None)
    }

    /// The next head behind this place, in a segment of which everything was durable once.
    pub(crate) fn next_head(&self) -> Result<Option<(u32, Head)>, StoreError> {
        let blocks = u32::try_from(self.len / BLOCK).unwrap_or(u32::MAX);
        for at in self.at + 1..blocks {
            if let Ok(head) = self.head_at(at)? {
                return Ok(Some((at, head)));
            }
        }
        Ok(None)
    }

    /// The record here with its data unchecked, when its head is whole and in its place.
    pub(crate) fn unchecked(&mut self) -> Result<Option<Scanned>, StoreError> {
        let Ok(head) = self.head_at(self.at)? else {
            return Ok(None);
        };
        if head.index != self.index || head.previous != self.previous {
            return Ok(None);
        }
        let end = u64::from(self.at) + u64::from(head.head_blocks) + u64::from(head.data_blocks);
        let fits = |entry: &Entry| {
            let disk = self.disks.get(entry.disk.at());
            disk.is_some_and(|disk| entry.end() <= disk.blocks()) && (entry.zero || entry.data_end() <= end)
        };
        let Some(entries) = head.entries().ok().filter(|entries| entries.iter().all(fits)) else {
            return Ok(None);
        };
        let scanned = Scanned {
            at: self.at,
            head,
            entries,
        };
        self.pass(&scanned);
        Ok(Some(scanned))
    }

    fn pass(&mut self, scanned: &Scanned) {
        self.at += scanned.head.head_blocks + scanned.head.data_blocks;
        self.index = scanned.head.index + 1;
        self.previous = scanned.head.crc;
    }

    /// Goes on with a record that does not follow the one before.
    pub(crate) fn go_on_at(&mut self, at: u32, head: &Head) {
        self.at = at;
        self.index = head.index;
        self.previous = head.previous;
    }

    /// The head at a position, whatever came before it.
    pub(crate) fn head_at(&self, at: u32) -> Result<Result<Head, Malformed>, StoreError> {
        let object = ObjectName::Segment(self.seq);
        let offset = u64::from(at) * BLOCK;
        if offset + BLOCK > self.len {
            return Ok(Err("the segment ends"));
        }
        let mut bytes = vec![0; BLOCK_SIZE];
        self.storage.read(object, offset, &mut bytes)?;
        let blocks = match record::peek(&bytes, &self.store, self.seq) {
            Ok(blocks) if offset + u64::from(blocks) * BLOCK <= self.len => blocks,
            Ok(_) => return Ok(Err("a record's head is cut")),
            Err(what) => return Ok(Err(what)),
        };
        if blocks > 1 {
            bytes.resize(usize_of(u64::from(blocks)) * BLOCK_SIZE, 0);
            self.storage
                .read(object, offset + BLOCK, &mut bytes[BLOCK_SIZE..])?;
        }
        let head = Head::decode(&bytes).and_then(|head| {
            let end = u64::from(at) + u64::from(head.head_blocks) + u64::from(head.data_blocks);
            if end * BLOCK > self.len {
                Err("a record's data is cut")
            } else {
                Ok(head)
            }
        });
        Ok(head)
    }

    fn checked_entries(&self, at: u32, head: &Head) -> Result<Result<Vec<Entry>, Malformed>, StoreError> {
        let entries = match head.entries() {
            Ok(entries) => entries,
            Err(what) => return Ok(Err(what)),
        };
        let data_start = at + head.head_blocks;
        let data_end = data_start + head.data_blocks;
        let mut data = vec![0; usize_of(u64::from(head.data_blocks)) * BLOCK_SIZE];
        if !data.is_empty() {
            let offset = u64::from(data_start) * BLOCK;
            self.storage
                .read(ObjectName::Segment(self.seq), offset, &mut data)?;
        }
        for entry in &entries {
            let Some(disk) = self
                .disks
                .get(entry.disk.at())
                .filter(|d| entry.end() <= d.blocks())
            else {
                return Ok(Err("an extent is outside its disk"));
            };
            if entry.zero {
                continue;
            }
            if entry.data < data_start || entry.data_end() > u64::from(data_end) {
                return Ok(Err("an extent is outside its record"));
            }
            let from = usize_of(u64::from(entry.data - data_start)) * BLOCK_SIZE;
            let stored = &data[from..from + usize_of(u64::from(entry.stored())) * BLOCK_SIZE];
            if !is_whole(entry, disk, stored) && !Bug::DigestNotRead.live() {
                return Ok(Err("the data of an extent fails its digest"));
            }
        }
        Ok(Ok(entries))
    }
}
