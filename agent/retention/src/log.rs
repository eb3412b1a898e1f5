//! The log: segments in storage, the one that is being written, and the extents in them.
//!
//! Knows bytes and places; which extents count is for those above to say, and how much room there is for `room`. Three
//! rules are kept here:
//!
//! 1. A segment is sealed and durable before the next one is begun, so at most the newest can be torn.
//! 2. A segment's folder entry is durable before anything in it can be acknowledged.
//! 3. After a write or a flush that failed nothing is written any more: the log is latched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roaring::RoaringTreemap;

use crate::codec::{u32_of, u64_of, usize_of};
use crate::error::StoreError;
use crate::meta::State;
use crate::planted::Bug;
use crate::record::{self, ENTRY_SIZE, Entry, HEADER_SIZE, Image, Kind, NewHead};
use crate::room::Room;
use crate::segment::{self, SegmentHeader, Trailer, encode_footer, footer_blocks};
use crate::storage::{ObjectName, Storage, StorageError};
use crate::types::{BLOCK, BLOCK_SIZE, Digest, Disk, DiskIndex, EpochNumber, StoreUuid};

mod read;

pub(crate) use read::{content_of, is_whole, real_len};

/// An extent and the segment it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub seq: u64,
    pub entry: Entry,
}

impl Located {
    /// Of two images of one block and epoch the greater one counts.
    pub(crate) fn order(&self) -> (EpochNumber, u64, u32) {
        (self.entry.epoch, self.seq, self.entry.ordinal)
    }
}

/// Blocks of each disk.
pub(crate) type Presence = BTreeMap<DiskIndex, RoaringTreemap>;

/// One segment of the log.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Bytes that it takes.
    pub bytes: u64,
    /// Its trailer; without one its extents are kept in memory.
    pub trailer: Option<Trailer>,
    /// Its extents in the order of their ordinals, when it has no footer.
    pub entries: Arc<Vec<Entry>>,
    /// Blocks that it has after-images of.
    pub after: Presence,
    /// Blocks that it has before-images of.
    pub base: Presence,
    /// Smallest epoch of its extents.
    pub first_epoch: EpochNumber,
    /// Largest epoch of its extents.
    pub last_epoch: EpochNumber,
    /// Bytes of data.
    pub data_bytes: u64,
    /// Per epoch: after-images that were not relocated, and the sum of their checksums.
    pub sums: BTreeMap<EpochNumber, (u64, u64)>,
}

impl Segment {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            trailer: None,
            entries: Arc::new(Vec::new()),
            after: Presence::new(),
            base: Presence::new(),
            first_epoch: EpochNumber(u64::MAX),
            last_epoch: EpochNumber(0),
            data_bytes: 0,
            sums: BTreeMap::new(),
        }
    }

    /// Notes an extent in what can be asked without reading.
    pub(crate) fn note(&mut self, entry: &Entry) {
        let presence = match entry.image {
            Image::After => &mut self.after,
            Image::Base => &mut self.base,
        };
        presence
            .entry(entry.disk)
            .or_default()
            .insert_range(entry.block..entry.end());
        self.first_epoch = self.first_epoch.min(entry.epoch);
        self.last_epoch = self.last_epoch.max(entry.epoch);
        self.data_bytes += u64::from(entry.stored()) * BLOCK;
        if entry.image == Image::After && !entry.relocated {
            let (count, sum) = self.sums.entry(entry.epoch).or_default();
            *count += 1;
            *sum = sum.wrapping_add(entry.checksum());
        }
    }

    /// The trailer that it has when it is sealed at `end`, with so many extents in a footer of that digest.
    pub(crate) fn trailer_of(
        &self,
        store: StoreUuid,
        seq: u64,
        end: u32,
        entries: u32,
        digest: Digest,
    ) -> Trailer {
        Trailer {
            store,
            seq,
            end,
            entries,
            first_epoch: if entries == 0 {
                EpochNumber(0)
            } else {
                self.first_epoch
            },
            last_epoch: self.last_epoch,
            data_bytes: self.data_bytes,
            digest,
        }
    }

    /// Whether all of its blocks lie on these disks.
    pub(crate) fn is_on(&self, disks: &[Disk]) -> bool {
        let mut blocks = self.after.iter().chain(&self.base);
        blocks.all(|(disk, blocks)| {
            let disk = disks.get(disk.at());
            disk.is_some_and(|disk| blocks.max().is_none_or(|last| last < disk.blocks()))
        })
    }

    /// Whether it may have images of any of these blocks, which are sorted.
    pub(crate) fn may_have(&self, disk: DiskIndex, blocks: &[u64]) -> bool {
        [&self.after, &self.base].iter().any(|presence| {
            presence
                .get(&disk)
                .is_some_and(|have| blocks.iter().any(|block| have.contains(*block)))
        })
    }
}

/// The segment that is being written.
#[derive(Debug)]
struct Active {
    seq: u64,
    size_blocks: u32,
    /// Where the next record goes, in blocks.
    at: u32,
    /// Everything before it is durable.
    durable: u32,
    index: u32,
    previous: u32,
}

/// An extent that is to be appended: its data's place is counted from the start of the record's data.
pub(crate) type NewEntry = Entry;

/// What something is appended for, which decides what it may do when space is short; see `room`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What a source or a roll brings, and before-images.
    Ordinary,
    /// Live parts of a segment that is dropped next.
    Copying,
    /// What makes room, and marks.
    Bookkeeping,
}

pub(crate) struct Log<S> {
    pub storage: S,
    pub store: StoreUuid,
    disks: Vec<Disk>,
    pub segment_size: u64,
    pub room: Room,
    pub segments: BTreeMap<u64, Segment>,
    active: Option<Active>,
    pub next_seq: u64,
    footers: read::Footers,
    latched: Option<String>,
    /// Why no point can be trusted: records are lost that may have said anything.
    pub doubt: Option<String>,
    /// Footers that turned out to be damaged since the store was opened, in words.
    pub damage: Vec<String>,
}

impl<S: Storage> Log<S> {
    pub(crate) fn new(
        storage: S,
        store: StoreUuid,
        disks: Vec<Disk>,
        segment_size: u64,
        capacity: u64,
        next_seq: u64,
    ) -> Self {
        Self {
            storage,
            store,
            disks,
            segment_size,
            room: Room {
                capacity,
                ..Room::default()
            },
            segments: BTreeMap::new(),
            active: None,
            next_seq,
            footers: read::Footers::default(),
            latched: None,
            doubt: None,
            damage: Vec::new(),
        }
    }

    /// Why nothing is written any more.
    pub(crate) fn latched(&self) -> Option<&str> {
        self.latched.as_deref()
    }

    /// Stops all writing from here on.
    pub(crate) fn latch(&mut self, why: &dyn std::fmt::Display) {
        self.latched.get_or_insert_with(|| why.to_string());
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match &self.latched {
            None => Ok(()),
            Some(why) => Err(StoreError::Latched { why: why.clone() }),
        }
    }

    pub(crate) fn failed(&mut self, error: StorageError) -> StoreError {
        let error = StoreError::Storage(error);
        self.latch(&explained(&error));
        error
    }

    /// Bytes that all segments take.
    pub(crate) fn used(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// The segment that is being written.
    pub(crate) fn active_seq(&self) -> Option<u64> {
        self.active.as_ref().map(|active| active.seq)
    }

    /// Largest extent of data that fits a segment well, bytes.
    pub(crate) fn extent_bytes_max(&self) -> usize {
        let quarter = usize_of(self.segment_size / 4);
        (quarter - quarter % BLOCK_SIZE).clamp(BLOCK_SIZE, crate::types::EXTENT_BYTES_MAX)
    }

    /// Appends a record without images.
    pub(crate) fn append_meta(
        &mut self,
        state: &mut State,
        purpose: Purpose,
        kind: Kind,
        epoch: EpochNumber,
        body: &[u8],
    ) -> Result<(), StoreError> {
        self.make_room(state, purpose, body.len(), 0, 0)?;
        self.append(kind, epoch, body, 0, &[])
    }

    /// Appends a record of images. Their `data` and `ordinal` become those of their place.
    pub(crate) fn append_images(
        &mut self,
        state: &mut State,
        purpose: Purpose,
        epoch: EpochNumber,
        entries: &mut [NewEntry],
        data: &[u8],
    ) -> Result<Vec<Located>, StoreError> {
        debug_assert!(!entries.is_empty() && entries.len() <= record::ENTRIES_MAX);
        debug_assert!(data.len().is_multiple_of(BLOCK_SIZE));
        let body_len = entries.len() * ENTRY_SIZE;
        let data_blocks = u32_of(data.len() / BLOCK_SIZE);
        let seq = self.make_room(state, purpose, body_len, data_blocks, entries.len())?;
        let (Some(active), Some(segment)) = (&self.active, self.segments.get(&seq)) else {
            return Err(StoreError::refused("the log has no segment to write", ""));
        };
        let data_at = active.at + record::head_blocks(body_len);
        let first_ordinal = u32_of(segment.entries.len());
        let mut body = Vec::with_capacity(body_len);
        for (ordinal, entry) in (first_ordinal..).zip(entries.iter_mut()) {
            entry.ordinal = ordinal;
            entry.data = if entry.zero { 0 } else { entry.data + data_at };
            body.extend_from_slice(&entry.encode());
        }
        let kind = match entries[0].image {
            Image::After => Kind::After,
            Image::Base => Kind::Base,
        };
        self.append(kind, epoch, &body, u32_of(entries.len()), data)?;
        let segment = self.segments.get_mut(&seq).expect("looked up above");
        for entry in entries.iter() {
            segment.note(entry);
            Arc::make_mut(&mut segment.entries).push(*entry);
        }
        Ok(entries
            .iter()
            .map(|entry| Located { seq, entry: *entry })
            .collect())
    }

    fn append(
        &mut self,
        kind: Kind,
        epoch: EpochNumber,
        body: &[u8],
        entries: u32,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let Some(active) = &mut self.active else {
            return Err(StoreError::refused("the log has no segment to write", ""));
        };
        let (head, crc) = NewHead {
            kind,
            store: self.store,
            segment: active.seq,
            index: active.index,
            epoch,
            data_blocks: u32_of(data.len() / BLOCK_SIZE),
            durable: active.durable,
            previous: active.previous,
            body,
            entries,
        }
        .encode();
        let object = ObjectName::Segment(active.seq);
        let offset = u64::from(active.at) * BLOCK;
        active.at += u32_of((head.len() + data.len()) / BLOCK_SIZE);
        active.index += 1;
        active.previous = crc;
        self.storage
            .write(object, offset, &[&head, data])
            .map_err(|err| self.failed(err))
    }

    /// Sees to it that a record fits the segment being written; begins another when it does not.
    fn make_room(
        &mut self,
        state: &mut State,
        purpose: Purpose,
        body: usize,
        data_blocks: u32,
        entries: usize,
    ) -> Result<u64, StoreError> {
        self.check()?;
        let record_blocks = record::head_blocks(body) + data_blocks;
        if let Some(active) = &self.active {
            let has = self.segments.get(&active.seq).map_or(0, |s| s.entries.len());
            let end = active.at + record_blocks + footer_blocks(has + entries) + 1;
            if end <= active.size_blocks {
                return Ok(active.seq);
            }
        }
        // The room for a segment is known to be there before the old one is closed, so that a full store can go on
        // writing small records where they still fit.
        let needed = record_blocks + footer_blocks(entries) + 1;
        let state_len = state.encode().len() + 8 * (state.segments.len() + 2);
        let header_blocks = SegmentHeader::blocks(state_len);
        let seq = self.next_seq;
        let least = u64::from(header_blocks + needed.max(header_blocks)) * BLOCK;
        let wanted = self
            .segment_size
            .max(least)
            .max(u64::from(header_blocks) * BLOCK * 4);
        let size = self.create_segment(purpose, wanted, least)?;
        self.next_seq += 1;
        self.seal(None)?;
        state.segments = self.segments.keys().copied().collect();
        self.forget_given_up(state);
        self.begin(state, seq, size)?;
        Ok(seq)
    }

    /// Forgets the numbers of epochs that were given up and of which no segment holds anything any more: they would make every
    /// header larger for ever. Numbers that are not applied yet stay, since opening counts through them.
    fn forget_given_up(&self, state: &mut State) {
        // Records that are lost may have been of any epoch.
        if self.doubt.is_some() || state.aborted.is_empty() {
            return;
        }
        if Bug::GivenUpForgotten.live() {
            state.aborted.retain(|epoch| *epoch > state.applied);
            return;
        }
        // Only after-images are ever of an epoch that is given up, and copies are only made of what counts.
        let found: BTreeSet<EpochNumber> = self
            .segments
            .values()
            .flat_map(|segment| segment.sums.keys().copied())
            .collect();
        state
            .aborted
            .retain(|epoch| *epoch > state.applied || found.contains(epoch));
    }

    fn begin(&mut self, state: &State, seq: u64, size: u64) -> Result<(), StoreError> {
        let object = ObjectName::Segment(seq);
        let header = SegmentHeader::encode(&self.store, seq, size, &state.encode(), 1);
        self.storage
            .write(object, 0, &[&header])
            .map_err(|err| self.failed(err))?;
        if !Bug::NoDirSync.live() {
            self.storage.sync_dir().map_err(|err| self.failed(err))?;
        }
        self.segments.insert(seq, Segment::new(size));
        self.active = Some(Active {
            seq,
            size_blocks: u32_of(usize_of(size / BLOCK)),
            at: u32_of(header.len() / BLOCK_SIZE),
            durable: 0,
            index: 0,
            previous: 0,
        });
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.check()?;
        let Some(active) = &self.active else {
            return Ok(());
        };
        if active.durable == active.at {
            return Ok(());
        }
        let object = ObjectName::Segment(active.seq);
        let mut result = self.storage.sync(object);
        if Bug::SyncRetried.live() && result.is_err() {
            result = self.storage.sync(object);
        }
        result.map_err(|err| self.failed(err))?;
        if let Some(active) = &mut self.active {
            active.durable = active.at;
        }
        Ok(())
    }

    /// Seals the segment that is being written, or one that recovery has read up to `scanned`: (sequence, end in blocks).
    pub(crate) fn seal(&mut self, scanned: Option<(u64, u32)>) -> Result<(), StoreError> {
        let (seq, end) = match (scanned, &self.active) {
            (Some(scanned), _) => scanned,
            (None, Some(active)) => (active.seq, active.at),
            (None, None) => return Ok(()),
        };
        let object = ObjectName::Segment(seq);
        let Some(segment) = self.segments.get_mut(&seq) else {
            return Ok(());
        };
        let mut entries = Arc::unwrap_or_clone(std::mem::take(&mut segment.entries));
        segment::sort(&mut entries);
        let (footer, footer_digest) = encode_footer(&entries);
        let trailer = segment.trailer_of(self.store, seq, end, u32_of(entries.len()), footer_digest);
        let offset = u64::from(end) * BLOCK;
        let len = offset + u64_of(footer.len()) + BLOCK;
        segment.bytes = len;
        segment.trailer = Some(trailer.clone());
        let entries = Arc::new(entries);
        self.footers.keep(seq, &entries);
        self.active = None;
        self.storage
            .write(object, offset, &[&footer, &trailer.encode()])
            .and_then(|()| self.storage.cut(object, len))
            .and_then(|()| self.storage.sync(object))
            .map_err(|err| self.failed(err))
    }

    /// Takes sealed segments out of the log: written down, durable, and only then removed.
    pub(crate) fn drop_segments(&mut self, state: &mut State, seqs: &[u64]) -> Result<(), StoreError> {
        if seqs.is_empty() {
            return Ok(());
        }
        let mut body = Vec::new();
        crate::meta::put_numbers(&mut body, seqs.iter().copied());
        if Bug::RemoveBeforeRecord.live() {
            for seq in seqs {
                self.storage
                    .remove(ObjectName::Segment(*seq))
                    .map_err(|err| self.failed(err))?;
            }
            self.storage.sync_dir().map_err(|err| self.failed(err))?;
        }
        self.append_meta(state, Purpose::Bookkeeping, Kind::Segments, EpochNumber(0), &body)?;
        self.sync()?;
        for seq in seqs {
            self.segments.remove(seq);
            state.segments.remove(seq);
            self.footers.forget(*seq);
            if !Bug::RemoveBeforeRecord.live() {
                self.storage
                    .remove(ObjectName::Segment(*seq))
                    .map_err(|err| self.failed(err))?;
            }
        }
        self.storage.sync_dir().map_err(|err| self.failed(err))?;
        self.fill_reserve().map(drop)
    }

    /// Removes objects that are no part of the log.
    pub(crate) fn remove_objects(&mut self, objects: &[ObjectName]) -> Result<(), StoreError> {
        for object in objects {
            self.storage.remove(*object).map_err(|err| self.failed(err))?;
        }
        self.storage.sync_dir().map_err(|err| self.failed(err))
    }

    /// Writes an object from its beginning.
    pub(crate) fn write_object(&mut self, object: ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.storage
            .write(object, 0, &[bytes])
            .map_err(|err| self.failed(err))
    }

    /// Makes an object durable.
    pub(crate) fn sync_object(&mut self, object: ObjectName) -> Result<(), StoreError> {
        self.storage.sync(object).map_err(|err| self.failed(err))
    }
}

pub(crate) fn damaged(object: ObjectName, offset: u64, what: impl Into<String>) -> StoreError {
    StoreError::Damaged {
        object,
        offset,
        what: what.into(),
    }
}

/// An error with its causes, for a place that keeps only words.
pub(crate) fn explained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

const _: () = assert!(HEADER_SIZE <= BLOCK_SIZE);
