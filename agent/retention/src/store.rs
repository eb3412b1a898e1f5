//! The store as its owner holds it: creation, state, points, generation.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

use crate::apply::Job;
use crate::codec::u64_of;
use crate::error::StoreError;
use crate::ingest::OpenEpoch;
use crate::log::{Located, Log, Purpose};
use crate::meta::State;
use crate::planted::Bug;
use crate::recent::Recent;
use crate::reclaim::Moving;
use crate::record::Kind;
use crate::storage::{ObjectName, Storage, TargetDisk};
use crate::superblock::Superblock;
use crate::types::{
    BLOCK, DISK_ID_BYTES_MAX, DISKS_MAX, Disk, DiskIndex, EpochNumber, Origin, PointSpec, StoreUuid,
};
use crate::unapplied::Unapplied;

mod points;

pub(crate) use points::new_point;

/// Size of a segment unless told otherwise, bytes.
pub const SEGMENT_SIZE_DEFAULT: u64 = 64 << 20;
/// Smallest segment, bytes: a header, a few records and a footer.
pub const SEGMENT_SIZE_MIN: u64 = 64 << 10;
/// Largest segment, bytes.
pub const SEGMENT_SIZE_MAX: u64 = 1 << 30;

/// How to make a store.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Random: tells this store from every other.
    pub uuid: StoreUuid,
    /// The pairs' generation.
    pub generation: u64,
    /// The machine's target disks, in an order that stays.
    pub disks: Vec<Disk>,
    /// Bytes a segment; see [`SEGMENT_SIZE_DEFAULT`].
    pub segment_size: u64,
    /// Most bytes that the store may take; 0 for as many as the volume has.
    pub capacity: u64,
    /// Offers the disks as they are now as the first point, "before failback": everything that is overwritten later is
    /// kept for it. Without it the first point is the end of the first epoch.
    pub initial_point: Option<PointSpec>,
}

/// How to open a store.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The disks that it must be for, in their order; `None` to take what it says (for looking only).
    pub disks: Option<Vec<Disk>>,
    /// Most bytes that the store may take; 0 for as many as the volume has.
    pub capacity: u64,
}

/// What opening a store found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// Epochs that had begun and were not complete: dropped.
    pub dropped_epochs: Vec<EpochNumber>,
    /// Complete epochs that are not known to be on the disks: to be applied (again).
    pub to_apply: u64,
    /// Damage found, in words; empty for a store that is whole.
    pub damage: Vec<String>,
    /// What could not be read and was written again from a copy, in words. A crash leaves such things behind, too.
    pub repaired: Vec<String>,
    /// Segments whose footers were not read, since the catalogue had a summary of them.
    pub summaries: u64,
    /// What of the catalogue did not count, in words.
    pub catalogue: Vec<String>,
}

/// What the store holds, for status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Identity of the store.
    pub uuid: StoreUuid,
    /// Generation of its pairs.
    pub generation: u64,
    /// The newest complete epoch: what has been acknowledged.
    pub committed: EpochNumber,
    /// The newest epoch that is on the disks and flushed.
    pub applied: EpochNumber,
    /// Bytes of complete epochs that are not on the disks yet.
    pub lag_bytes: u64,
    /// The epoch being received.
    pub open_epoch: Option<EpochNumber>,
    /// Points on offer.
    pub points: u64,
    /// Bytes taken on the retention volume.
    pub used: u64,
    /// Bytes that may be taken; 0 for no limit of its own.
    pub capacity: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Why nothing is acknowledged any more.
    pub latched: Option<String>,
    /// Damage found so far, in words.
    pub damage: Vec<String>,
}

/// What a source that reconnects and the store make of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Agreement {
    /// Both know the same newest epoch: go on.
    Agreed,
    /// The store has complete epochs whose acknowledgement the source never saw: it may clear their changes.
    SourceBehind,
    /// The source was promised an epoch that the store does not have: the appliance was set back to an older state, or its
    /// volume lost what it had flushed. Nothing may be mixed: compare the disks anew.
    StoreBehind,
    /// The source talked to another store: compare the disks anew.
    OtherStore,
    /// The source belongs to a generation that a failover has ended.
    Fenced,
}

/// A store of one machine. Every method that takes disks wants them in the order of the store's table.
pub struct Store<S> {
    pub(crate) log: Log<S>,
    pub(crate) state: State,
    pub(crate) super_sequence: u64,
    pub(crate) open: Option<OpenEpoch>,
    /// After-images of complete epochs that are not applied.
    pub(crate) pending: BTreeMap<EpochNumber, Vec<Located>>,
    /// Per disk the blocks that can be overwritten without taking a before-image.
    pub(crate) covered: Vec<RoaringTreemap>,
    pub(crate) job: Option<Job>,
    pub(crate) damage: Vec<String>,
    /// Segments that were looked at for dropping since points changed last.
    pub(crate) examined: BTreeSet<u64>,
    /// The newest segment of this round of looking.
    pub(crate) horizon: u64,
    /// The segment whose live parts are being copied.
    pub(crate) moving: Option<Moving>,
    /// Points that cannot be reached, and why.
    pub(crate) unreachable: BTreeMap<EpochNumber, String>,
    /// Points that somebody looks at, and how many do.
    pub(crate) held: BTreeMap<EpochNumber, u32>,
    /// Content of epochs that are not applied.
    pub(crate) recent: Recent,
    /// Bytes of complete epochs that are in no job yet.
    pub(crate) pending_bytes: u64,
    /// What the disks will hold when everything complete is applied; made when it is asked for.
    pub(crate) unapplied: Option<Unapplied>,
    /// Whether content is packed where that pays.
    pub(crate) packing: bool,
}

impl<S: Storage> Store<S> {
    /// Makes a store in storage that holds nothing.
    ///
    /// The superblocks are written last: until they are durable there is no store. An interrupted creation leaves objects
    /// without a superblock; whoever owns the place removes it and begins anew.
    ///
    /// # Errors
    /// When the storage holds objects, an option is out of bounds, or the storage fails.
    pub fn create(storage: S, options: CreateOptions) -> Result<Self, StoreError> {
        check_disks(&options.disks)?;
        if !(SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&options.segment_size)
            || !options.segment_size.is_multiple_of(BLOCK)
        {
            return Err(StoreError::refused(
                format!(
                    "a segment of {} bytes is outside {SEGMENT_SIZE_MIN} to {SEGMENT_SIZE_MAX}, or not whole blocks",
                    options.segment_size
                ),
                "",
            ));
        }
        if options.capacity > 0 && options.capacity < 6 * options.segment_size {
            return Err(StoreError::refused(
                format!(
                    "a retention store of {} bytes cannot work with segments of {} bytes: it needs six",
                    options.capacity, options.segment_size
                ),
                "give it more space, or smaller segments",
            ));
        }
        if let Some((object, _)) = storage.list()?.first() {
            return Err(StoreError::refused(
                format!("there is a retention store already: {object}"),
                "open it, or name another folder",
            ));
        }
        let mut points = BTreeMap::new();
        if let Some(spec) = options.initial_point {
            let point = new_point(spec, EpochNumber(0), Origin::Initial, 0)?;
            points.insert(EpochNumber(0), point);
        }
        let covered = vec![RoaringTreemap::new(); options.disks.len()];
        let mut store = Self {
            log: Log::new(
                storage,
                options.uuid,
                options.disks.clone(),
                options.segment_size,
                options.capacity,
                1,
            ),
            state: State {
                generation: options.generation,
                disks: options.disks,
                points,
                ..State::default()
            },
            super_sequence: 0,
            open: None,
            pending: BTreeMap::new(),
            covered,
            job: None,
            damage: Vec::new(),
            examined: BTreeSet::new(),
            horizon: 0,
            moving: None,
            unreachable: BTreeMap::new(),
            held: BTreeMap::new(),
            recent: Recent::default(),
            pending_bytes: 0,
            unapplied: None,
            packing: true,
        };
        // The first record makes the first segment, whose header holds the initial point.
        store.log.append_meta(
            &mut store.state,
            Purpose::Bookkeeping,
            Kind::Applied,
            EpochNumber(0),
            &[],
        )?;
        store.log.sync()?;
        for slot in [0, 1] {
            let object = ObjectName::Super(slot);
            store
                .log
                .storage
                .create(object, u64_of(crate::superblock::SUPERBLOCK_SIZE))?;
        }
        store.write_superblocks()?;
        if !store.log.fill_reserve()? {
            return Err(store.log.full());
        }
        store.log.storage.sync_dir()?;
        Ok(store)
    }

    /// Identity of the store.
    pub fn uuid(&self) -> StoreUuid {
        self.log.store
    }

    /// Generation of its pairs.
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Its disks, in the order that every call wants them.
    pub fn disks(&self) -> &[Disk] {
        &self.state.disks
    }

    /// The newest complete epoch: everything up to it survives power loss.
    pub fn committed(&self) -> EpochNumber {
        self.state.committed
    }

    /// The newest number that was given to an epoch, complete or not.
    pub fn last_epoch(&self) -> EpochNumber {
        self.state.last_epoch
    }

    /// The newest epoch that is on the disks and flushed.
    pub fn applied(&self) -> EpochNumber {
        self.state.applied
    }

    /// Bytes of complete epochs that are not on the disks yet. What bounds the lag is the caller's to decide: it holds back
    /// the next epoch while this is too large.
    pub fn lag_bytes(&self) -> u64 {
        self.pending_bytes + self.job.as_ref().map_or(0, |job| job.left_bytes)
    }

    /// Bytes that the open epoch has so far.
    pub fn open_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.bytes)
    }

    /// Whether content of more than a block is packed (LZ4) where that saves a quarter of its place; it is unless told
    /// otherwise. What is packed already can be read either way.
    pub fn set_packing(&mut self, packing: bool) {
        self.packing = packing;
    }

    /// Keeps up to so many bytes of what comes in until it is on the disks, instead of reading it back from the log. Nothing
    /// unless told otherwise.
    pub fn set_memory(&mut self, bytes: usize) {
        self.recent.set_bytes_max(bytes);
    }

    /// When the oldest epoch that is not applied was received, milliseconds since 1970; `None` when the disks are up to
    /// date or the epoch is no point.
    pub fn lag_since_ms(&self) -> Option<i64> {
        let oldest = self
            .job
            .as_ref()
            .map(|job| job.first_epoch)
            .or_else(|| self.pending.keys().next().copied())?;
        self.state.points.get(&oldest).map(|point| point.received_time_ms)
    }

    /// Everything worth showing.
    pub fn status(&self) -> Status {
        Status {
            uuid: self.uuid(),
            generation: self.generation(),
            committed: self.committed(),
            applied: self.applied(),
            lag_bytes: self.lag_bytes(),
            open_epoch: self.open.as_ref().map(|open| open.number),
            points: u64_of(self.state.points.len()),
            used: self.log.used(),
            capacity: self.log.room.capacity,
            segments: u64_of(self.log.segments.len()),
            latched: self.log.latched().map(str::to_owned),
            damage: self.damage.iter().chain(&self.log.damage).cloned().collect(),
        }
    }

    /// Why nothing is written or acknowledged any more. Only opening the store anew starts afresh, and that reads
    /// back what is really there.
    pub fn latched(&self) -> Option<&str> {
        self.log.latched()
    }

    /// Compares with what a source remembers: the store it talked to, its generation, and the newest epoch whose
    /// acknowledgement it has stored durably. Only [`Agreement::Agreed`] and [`Agreement::SourceBehind`] allow to go on.
    pub fn compare_with_source(&self, uuid: StoreUuid, generation: u64, confirmed: EpochNumber) -> Agreement {
        if uuid != self.uuid() {
            Agreement::OtherStore
        } else if generation < self.state.generation {
            Agreement::Fenced
        } else if generation > self.state.generation || confirmed > self.state.committed {
            Agreement::StoreBehind
        } else if confirmed < self.state.committed {
            Agreement::SourceBehind
        } else {
            Agreement::Agreed
        }
    }

    /// Raises the generation, durably, in both superblocks: from here on a source of an older one is refused.
    ///
    /// # Errors
    /// When it is not higher than the present one, an epoch is open, or the storage fails.
    pub fn raise_generation(&mut self, generation: u64) -> Result<(), StoreError> {
        self.log.check()?;
        if generation == self.state.generation {
            return Ok(());
        }
        if generation < self.state.generation {
            return Err(StoreError::refused(
                format!(
                    "the generation is {} and cannot go back to {generation}",
                    self.state.generation
                ),
                "",
            ));
        }
        self.state.generation = generation;
        self.write_superblocks()
    }

    /// Writes both superblocks, one after the other.
    pub(crate) fn write_superblocks(&mut self) -> Result<(), StoreError> {
        for _copy in 0..2 {
            self.super_sequence += 1;
            let slot = u8::from(self.super_sequence.is_multiple_of(2));
            let bytes = Superblock {
                store: self.log.store,
                sequence: self.super_sequence,
                generation: self.state.generation,
                segment_size: self.log.segment_size,
                applied: self.state.applied,
                committed: self.state.committed,
                disks: self.state.disks.clone(),
            }
            .encode();
            let object = ObjectName::Super(slot);
            self.log.write_object(object, &bytes)?;
            if !Bug::GenerationNotSynced.live() {
                self.log.sync_object(object)?;
            }
        }
        Ok(())
    }

    /// Writes both superblocks where one of them is missing or cannot be read.
    pub(crate) fn restore_superblocks(&mut self) -> Result<(), StoreError> {
        let objects = self.log.storage.list()?;
        for slot in [0, 1] {
            let object = ObjectName::Super(slot);
            let len = u64_of(crate::superblock::SUPERBLOCK_SIZE);
            match objects.iter().find(|(name, _)| *name == object) {
                Some((_, found)) if *found == len => continue,
                // Too short to be written in place.
                Some(_) => self.log.remove_objects(&[object])?,
                None => {}
            }
            self.log.storage.create(object, len)?;
            self.log.storage.sync_dir()?;
        }
        self.write_superblocks()
    }

    /// What opening this store needs to know of a sealed segment, for a [`Catalogue`](crate::Catalogue); `None` for one that has
    /// no footer.
    pub fn summary(&self, segment: u64) -> Option<Vec<u8>> {
        crate::summary::encode(self.log.segments.get(&segment)?)
    }

    /// Whether a summary says of a segment what this store knows of it.
    pub fn is_summary(&self, segment: u64, summary: &[u8]) -> bool {
        let known = self.log.segments.get(&segment);
        known.is_some_and(|known| crate::summary::says(summary, known))
    }

    /// Reads the footer of a sealed segment again, in place of what a catalogue said of it. One that is damaged leaves the
    /// segment to be read record by record.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn reread_footer(&mut self, segment: u64) -> Result<(), StoreError> {
        self.log.reread_footer(segment)
    }

    /// Numbers of the segments that have a footer, ascending: of these a catalogue may keep summaries.
    pub fn sealed_segments(&self) -> Vec<u64> {
        let sealed = self.log.segments.iter().filter(|(_, s)| s.trailer.is_some());
        sealed.map(|(seq, _)| *seq).collect()
    }

    /// Numbers of all segments of the log, ascending.
    pub fn segments(&self) -> Vec<u64> {
        self.log.segments.keys().copied().collect()
    }

    /// Most bytes that the store may take from now on; 0 for as many as the volume has.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.log.room.capacity = capacity;
        self.log.room.short = self.log.room.short.max(1);
    }

    /// How full the store is of what it may take, in the words of its alarms; one without a limit is never full.
    pub fn fullness(&self) -> crate::policy::Fullness {
        self.log.fullness()
    }

    /// Whether what a source or a roll brings can be taken, in a segment of its own where the one being written is full.
    ///
    /// # Errors
    /// When the store is latched or the storage fails for another reason than space.
    pub fn has_room(&mut self) -> Result<bool, StoreError> {
        self.log.has_room()
    }

    pub(crate) fn check_targets(&self, disks: &[&dyn TargetDisk]) -> Result<(), StoreError> {
        if disks.len() != self.state.disks.len() {
            return Err(StoreError::Foreign {
                found: format!(
                    "it has {} disks, and {} are here",
                    self.state.disks.len(),
                    disks.len()
                ),
            });
        }
        for (ours, here) in self.state.disks.iter().zip(disks) {
            if ours.size != here.size() {
                return Err(StoreError::Foreign {
                    found: format!(
                        "disk {} had {} bytes when the store was made, it has {} now",
                        ours.id,
                        ours.size,
                        here.size()
                    ),
                });
            }
        }
        Ok(())
    }

    /// An error of a target disk; after one of a write or a flush nothing is acknowledged any more.
    pub(crate) fn disk_failed(
        &mut self,
        attempted: &'static str,
        disk: DiskIndex,
        offset: u64,
        source: std::io::Error,
    ) -> StoreError {
        let id = self
            .state
            .disks
            .get(disk.at())
            .map_or_else(String::new, |d| d.id.clone());
        let error = StoreError::Disk {
            attempted,
            disk,
            id,
            offset,
            source,
        };
        if attempted != "reading" {
            self.log.latch(&crate::log::explained(&error));
        }
        error
    }

    /// Gives the storage back.
    pub fn into_storage(self) -> S {
        self.log.storage
    }
}

pub(crate) fn check_disks(disks: &[Disk]) -> Result<(), StoreError> {
    if disks.is_empty() || disks.len() > DISKS_MAX {
        return Err(StoreError::refused(
            format!("a machine has 1 to {DISKS_MAX} disks, not {}", disks.len()),
            "",
        ));
    }
    let mut ids = BTreeSet::new();
    for disk in disks {
        if disk.id.is_empty() || disk.id.len() > DISK_ID_BYTES_MAX || !ids.insert(&disk.id) {
            return Err(StoreError::refused(
                format!(
                    "the ID {:?} of a disk is empty, too long, or there twice",
                    disk.id
                ),
                "",
            ));
        }
        if disk.size == 0 || !disk.size.is_multiple_of(512) || disk.size > 1 << 50 {
            return Err(StoreError::refused(
                format!("disk {} cannot have {} bytes", disk.id, disk.size),
                "",
            ));
        }
    }
    Ok(())
}
