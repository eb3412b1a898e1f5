//! The store as its owner holds it: creation, state, points, generation.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

use crate::apply::Job;
use crate::codec::u64_of;
use crate::error::StoreError;
use crate::ingest::OpenEpoch;
use crate::log::{Located, Log, Purpose};
use crate::meta::{PointChanges, State};
use crate::planted::Bug;
use crate::record::Kind;
use crate::storage::{ObjectName, Storage, TargetDisk};
use crate::superblock::Superblock;
use crate::types::{
    BLOCK, DISK_ID_BYTES_MAX, DISKS_MAX, Disk, DiskIndex, EpochNumber, Origin, Point, PointSpec, StoreUuid,
};

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
    /// Points that cannot be reached, and why.
    pub(crate) unreachable: BTreeMap<EpochNumber, String>,
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
            log: Log::new(storage, options.uuid, options.segment_size, options.capacity, 1),
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
            unreachable: BTreeMap::new(),
        };
        // The first record makes the first segment, whose header holds the initial point.
        store.log.append_meta(
            &mut store.state,
            Purpose::Housekeeping,
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
        store.log.set_spare_aside(false)?;
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
        let pending: u64 = self
            .pending
            .values()
            .flatten()
            .map(|located| u64::from(located.entry.count) * BLOCK)
            .sum();
        match &self.job {
            None => pending,
            Some(job) => job.left_bytes() + pending,
        }
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

    /// Points on offer, oldest first.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = &Point> {
        self.state.points.values()
    }

    /// Why a point cannot be reached; `None` for one that can.
    pub fn damage_of(&self, epoch: EpochNumber) -> Option<&str> {
        self.unreachable.get(&epoch).map(String::as_str)
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
            capacity: self.log.capacity,
            segments: u64_of(self.log.segments.len()),
            latched: self.log.latched().map(str::to_owned),
            damage: self.damage.clone(),
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

    /// Keeps a point whatever the policy says, or lets go of it.
    ///
    /// # Errors
    /// When there is no such point, or the storage fails.
    pub fn set_pinned(&mut self, epoch: EpochNumber, pinned: bool) -> Result<(), StoreError> {
        let point = self.point(epoch)?;
        if point.pinned == pinned {
            return Ok(());
        }
        let mut changes = PointChanges::default();
        if pinned {
            changes.pinned.push(epoch);
        } else {
            changes.released.push(epoch);
        }
        self.change_points(&changes)
    }

    /// Takes points off the offer. What only they needed becomes free for [`Store::reclaim`].
    ///
    /// # Errors
    /// When one of them is not on offer, is pinned, or is being rolled to; or the storage fails. Then none is dropped.
    pub fn drop_points(&mut self, epochs: &[EpochNumber]) -> Result<(), StoreError> {
        let mut dropped = BTreeSet::new();
        for epoch in epochs {
            if self.point(*epoch)?.pinned {
                return Err(StoreError::refused(
                    format!("recovery point {epoch} is pinned"),
                    "release it first",
                ));
            }
            if self.open.as_ref().is_some_and(|open| open.needs(*epoch)) {
                return Err(StoreError::refused(
                    format!("recovery point {epoch} is being rolled to, or is the way back from it"),
                    "wait for the roll to end, or cancel it",
                ));
            }
            dropped.insert(*epoch);
        }
        if dropped.is_empty() {
            return Ok(());
        }
        self.change_points(&PointChanges {
            dropped: dropped.into_iter().collect(),
            ..PointChanges::default()
        })
    }

    fn change_points(&mut self, changes: &PointChanges) -> Result<(), StoreError> {
        self.log.append_meta(
            &mut self.state,
            Purpose::Housekeeping,
            Kind::Points,
            EpochNumber(0),
            &changes.encode(),
        )?;
        self.log.sync()?;
        changes.apply(&mut self.state.points);
        self.examined.clear();
        for epoch in &changes.dropped {
            self.unreachable.remove(epoch);
        }
        Ok(())
    }

    /// A point on offer.
    ///
    /// # Errors
    /// When there is none.
    pub fn point(&self, epoch: EpochNumber) -> Result<&Point, StoreError> {
        self.state.points.get(&epoch).ok_or(StoreError::UnknownPoint {
            epoch,
            newest: self.state.points.keys().next_back().copied(),
        })
    }

    /// A point on offer that can be reached.
    pub(crate) fn reachable(&self, epoch: EpochNumber) -> Result<&Point, StoreError> {
        let point = self.point(epoch)?;
        match self.unreachable.get(&epoch) {
            None => Ok(point),
            Some(why) => Err(StoreError::PointDamaged {
                epoch,
                why: why.clone(),
            }),
        }
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

pub(crate) fn new_point(
    spec: PointSpec,
    epoch: EpochNumber,
    origin: Origin,
    changed_bytes: u64,
) -> Result<Point, StoreError> {
    use crate::types::{POINT_NAME_BYTES_MAX, POINT_TAGS_MAX};
    let too_long = |text: &String| text.len() > POINT_NAME_BYTES_MAX;
    if too_long(&spec.name) || spec.tags.len() > POINT_TAGS_MAX || spec.tags.iter().any(too_long) {
        return Err(StoreError::refused(
            format!(
                "a point's name and tags have at most {POINT_NAME_BYTES_MAX} bytes each, and there are at most \
                 {POINT_TAGS_MAX} tags"
            ),
            "choose shorter ones",
        ));
    }
    Ok(Point {
        epoch,
        consistency: spec.consistency,
        origin,
        source_time_ms: spec.source_time_ms,
        received_time_ms: spec.received_time_ms,
        name: spec.name,
        tags: spec.tags,
        pinned: false,
        changed_bytes,
    })
}
