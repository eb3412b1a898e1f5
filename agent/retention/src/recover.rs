//! Opening a store after anything that may have happened to it.
//!
//! 1. The superblocks say whose store this is.
//! 2. The newest segment whose header can be read gives the state; its records, and those of segments after it, change it.
//! 3. Sealed segments say by their footers what is in them. One without a footer is read record by record. Where the
//!    catalogue has a summary that the segment's trailer vouches for, not even the footer is read.
//! 4. The walk ends at the first record that is not whole. An epoch without its commit is dropped. What lies behind is
//!    never looked at again: the segment is sealed there, and the next record goes to a new one.
//! 5. Complete epochs that are not noted as applied are queued to be applied again.
//! 6. Files that are no part of the log are removed: segments that were dropped, and one that was never begun.
//!
//! 7. A superblock that cannot be read, or that a crash left behind the other, is written again.
//!
//! All of this reads until 6, 7 and the sealing of 4, which can be cut and repeated. A segment whose records are lost is
//! not sealed: its footer would hide from the next open that something is missing.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringTreemap;

use crate::apply::bytes_of;
use crate::codec::{Reader, u64_of};
use crate::error::StoreError;
use crate::log::{Located, Log, Segment, damaged};
use crate::meta::{Commit, PointChanges, State, numbers};
use crate::planted::Bug;
use crate::recent::Recent;
use crate::record::{Image, Kind};
use crate::scan::{Scan, Scanned, read_footer, read_trailer};
use crate::segment::SegmentHeader;
use crate::storage::{ObjectName, Storage};
use crate::store::{
    OpenOptions, Recovered, SEGMENT_SIZE_DEFAULT, SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN, Store, check_disks,
};
use crate::summary::{self, Catalogue, NoCatalogue};
use crate::superblock::Superblock;
use crate::types::{BLOCK, Disk, EpochNumber};
use crate::walk::Whole;

mod survey;

pub(crate) use survey::read_superblock;
pub use survey::restore_superblocks;
use survey::{Survey, survey};

impl<S: Storage> Store<S> {
    /// Opens a store, whatever happened to it before.
    ///
    /// What was acknowledged is there, half an epoch is not, and complete epochs that may not be on the disks wait to be
    /// applied: do that ([`Store::apply_step`]) before the disks are used for anything else.
    ///
    /// # Errors
    /// When there is no store, it belongs to other disks, both superblocks or the newest state are damaged, or the storage
    /// fails. Damage that leaves points usable is no error: see [`Recovered::damage`].
    pub fn open(storage: S, options: OpenOptions) -> Result<(Self, Recovered), StoreError> {
        Self::open_with(storage, options, &NoCatalogue)
    }

    /// Opens a store as [`Store::open`] does, and spares reading the footers that a catalogue has summaries of.
    ///
    /// # Errors
    /// As [`Store::open`]. Nothing about the catalogue is an error.
    pub fn open_with(
        storage: S,
        options: OpenOptions,
        catalogue: &dyn Catalogue,
    ) -> Result<(Self, Recovered), StoreError> {
        let survey = survey(&storage)?;
        let superblock = &survey.superblock;
        check_disks(&superblock.disks)?;
        if let Some(wanted) = &options.disks {
            compare_disks(&superblock.disks, wanted)?;
        }
        let mut recovery = Recovery {
            storage: &storage,
            catalogue,
            superblock,
            state: State::default(),
            segments: BTreeMap::new(),
            report: Recovered::default(),
            to_seal: Vec::new(),
            to_repair: Vec::new(),
            doubt: None,
            seen: EpochNumber(0),
        };
        let garbage = recovery.read(&survey)?;
        recovery.end_epochs()?;
        let Recovery {
            state,
            segments,
            mut report,
            to_seal,
            to_repair,
            doubt,
            ..
        } = recovery;
        // Whatever it says: no size outside of these was ever given.
        let segment_size = match superblock.segment_size {
            0 => SEGMENT_SIZE_DEFAULT,
            size => size.clamp(SEGMENT_SIZE_MIN, SEGMENT_SIZE_MAX),
        };
        let newest_name = survey.lengths.keys().next_back().copied().unwrap_or_default();
        let next_seq = newest_name.checked_add(1).ok_or_else(|| {
            damaged(
                ObjectName::Segment(newest_name),
                0,
                "its number is the largest there is, so that no segment can follow it",
            )
        })?;
        let mut log = Log::new(
            storage,
            superblock.store,
            state.disks.clone(),
            segment_size,
            options.capacity,
            next_seq,
        );
        log.segments = segments;
        log.doubt = doubt;
        for (seq, header) in &to_repair {
            log.write_object(ObjectName::Segment(*seq), header)?;
            log.sync_object(ObjectName::Segment(*seq))?;
        }
        for sealed in to_seal {
            log.seal(Some(sealed))?;
        }
        if !garbage.is_empty() {
            log.remove_objects(&garbage)?;
        }
        // Last: its absence is only noticed by a full store.
        if survey.spare == Some(0) {
            log.remove_objects(&[ObjectName::Spare])?;
        }
        log.room.spare = survey.spare.unwrap_or(0);
        log.fill_reserve()?;
        // Whether there is room is not known before it was tried.
        log.room.short = 1;
        let mut store = Self {
            log,
            covered: vec![RoaringTreemap::new(); state.disks.len()],
            state,
            super_sequence: superblock.sequence,
            open: None,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            unapplied: None,
            packing: true,
            job: None,
            damage: Vec::new(),
            examined: BTreeSet::new(),
            horizon: 0,
            moving: None,
            unreachable: BTreeMap::new(),
            held: BTreeMap::new(),
            recent: Recent::default(),
        };
        store.load()?;
        if let Some(what) = survey.to_repair {
            store.restore_superblocks()?;
            report.repaired.push(what);
        }
        report.to_apply = u64_of(store.pending.len());
        store.damage.extend(report.damage.iter().cloned());
        report.damage = store.status().damage;
        Ok((store, report))
    }

    /// Fills what is kept in memory beside the state: epochs to apply, and which blocks are covered.
    fn load(&mut self) -> Result<(), StoreError> {
        let applied = self.state.applied;
        for seq in self.log.segments.keys().copied().collect::<Vec<_>>() {
            let Some(segment) = self.log.segments.get(&seq) else {
                continue;
            };
            let first = segment.first_epoch;
            let last = segment.last_epoch;
            let plain =
                last <= applied && (first > last || self.state.aborted.range(first..=last).next().is_none());
            if plain {
                for (disk, blocks) in &segment.after {
                    self.covered[disk.at()] |= blocks;
                }
                continue;
            }
            for entry in self.log.entries(seq)?.iter() {
                if !self.state.counts(entry.epoch) {
                    continue;
                }
                let blocks = entry.block..entry.end();
                match entry.image {
                    Image::After if entry.epoch <= applied => {
                        self.covered[entry.disk.at()].insert_range(blocks);
                    }
                    Image::After => {
                        let located = Located { seq, entry: *entry };
                        self.pending.entry(entry.epoch).or_default().push(located);
                    }
                    // Taken for an epoch that is to be applied again: its block may be overwritten already.
                    Image::Base if entry.epoch > applied => {
                        self.covered[entry.disk.at()].insert_range(blocks);
                    }
                    Image::Base => {}
                }
            }
        }
        for images in self.pending.values_mut() {
            images.sort_unstable_by_key(Located::order);
        }
        self.pending_bytes = self.pending.values().map(|images| bytes_of(images)).sum();
        // Epochs that changed nothing have no images, and still are complete.
        for epoch in applied.0 + 1..=self.state.committed.0 {
            let epoch = EpochNumber(epoch);
            if self.state.counts(epoch) {
                self.pending.entry(epoch).or_default();
            }
        }
        Ok(())
    }
}

fn compare_disks(ours: &[Disk], wanted: &[Disk]) -> Result<(), StoreError> {
    if ours == wanted {
        return Ok(());
    }
    let list = |disks: &[Disk]| {
        let texts: Vec<String> = disks
            .iter()
            .map(|d| format!("{} ({} bytes)", d.id, d.size))
            .collect();
        texts.join(", ")
    };
    Err(StoreError::Foreign {
        found: format!("it is for {}, and the pairs are {}", list(ours), list(wanted)),
    })
}

/// Whatever the checksums say: so many numbers that counting them would not end.
const TOO_FAR_APART: &str = "its epochs are further apart than they can be";

struct Recovery<'a, S> {
    storage: &'a S,
    catalogue: &'a dyn Catalogue,
    superblock: &'a Superblock,
    state: State,
    segments: BTreeMap<u64, Segment>,
    report: Recovered,
    to_seal: Vec<(u64, u32)>,
    /// Segments whose header is to be written again.
    to_repair: Vec<(u64, Vec<u8>)>,
    /// Why no point can be trusted, when records are lost that may have said anything.
    doubt: Option<String>,
    /// The largest epoch of any image.
    seen: EpochNumber,
}

impl<S: Storage> Recovery<'_, S> {
    /// Reads all segments; returns the objects that are no part of the log.
    fn read(&mut self, survey: &Survey) -> Result<Vec<ObjectName>, StoreError> {
        let mut garbage = Vec::new();
        let Some((base, header)) = &survey.base else {
            return Err(damaged(
                ObjectName::Segment(survey.lengths.keys().next().copied().unwrap_or_default()),
                0,
                "no segment's header can be read",
            ));
        };
        let base = *base;
        self.state = header.state.clone();
        self.state.generation = self.state.generation.max(self.superblock.generation);
        if !self.state.epochs_are_within_reach() {
            return Err(damaged(ObjectName::Segment(base), 0, TOO_FAR_APART));
        }
        if self.state.disks != self.superblock.disks {
            return Err(damaged(
                ObjectName::Segment(base),
                0,
                "its disks are not those of the superblock",
            ));
        }
        let mut headless_newer = Vec::new();
        for (seq, len) in &survey.lengths {
            if *seq == base {
                self.replay(*seq, *len, header.header_blocks)?;
            } else if self.state.segments.contains(seq) {
                self.read_sealed(*seq, *len)?;
            } else if let Some(what) = survey.headless.get(seq) {
                match self.first_record(*seq, *len)? {
                    None => garbage.push(ObjectName::Segment(*seq)),
                    Some((at, synced)) => {
                        if synced {
                            self.report
                                .damage
                                .push(format!("segment {}: {what}", ObjectName::Segment(*seq)));
                        }
                        headless_newer.push((*seq, *len, at, synced));
                    }
                }
            } else {
                garbage.push(ObjectName::Segment(*seq));
            }
        }
        let mut keep = BTreeSet::from([base]);
        self.state.segments.insert(base);
        let mut before = base;
        for (seq, len, at, synced) in headless_newer {
            // The header would have named the segments before it. Each is begun behind the one that is sealed, which is kept: so
            // none may be missing in between, or hold nothing. Where the header was never durable a crash may have left a number out.
            let is_sealed = self
                .segments
                .get(&before)
                .is_some_and(|segment| segment.trailer.is_some());
            if synced && seq == before + 1 && !is_sealed {
                let what = format!("the end of segment {} is lost", ObjectName::Segment(before));
                self.report.damage.push(what.clone());
                self.doubt = Some(what);
            }
            if synced && seq > before + 1 {
                let what = format!(
                    "segments between {} and {} are missing",
                    ObjectName::Segment(before),
                    ObjectName::Segment(seq)
                );
                self.report.damage.push(what.clone());
                self.doubt = Some(what);
            }
            before = seq;
            // The header it should have had: without it, it would look damaged for as long as it lives.
            let state = self.state.encode();
            let header = SegmentHeader::encode(&self.superblock.store, seq, len, &state, at);
            if SegmentHeader::blocks(state.len()) <= at {
                self.to_repair.push((seq, header));
            }
            self.replay(seq, len, at)?;
            keep.insert(seq);
            self.state.segments.insert(seq);
        }
        // Without what the records of the newest segments took out of the log.
        keep.extend(self.state.segments.iter().copied());
        for seq in self.segments.keys().copied().collect::<Vec<_>>() {
            if !keep.contains(&seq) {
                self.segments.remove(&seq);
                garbage.push(ObjectName::Segment(seq));
            }
        }
        for seq in &keep {
            if !self.segments.contains_key(seq) {
                let what = format!("segment {} is missing", ObjectName::Segment(*seq));
                self.report.damage.push(what.clone());
                self.doubt = Some(what);
            }
        }
        self.state.segments = keep;
        Ok(garbage)
    }

    /// Where the records of a segment begin whose header cannot be read, and whether any of them shows that the segment was
    /// flushed: then it is damaged. Otherwise power may have failed while it was begun; what is whole in it counts all
    /// the same, since nothing in its header is not in the segments before it.
    fn first_record(&self, seq: u64, len: u64) -> Result<Option<(u32, bool)>, StoreError> {
        let scan = Scan::new(
            self.storage,
            self.superblock.store,
            seq,
            len,
            &self.superblock.disks,
            0,
        );
        let mut first = None;
        let blocks = u32::try_from(len / BLOCK).unwrap_or(u32::MAX);
        for at in 1..blocks {
            if let Ok(head) = scan.head_at(at)? {
                if head.index == 0 && first.is_none() {
                    first = Some(at);
                }
                if head.durable > 0 {
                    return Ok(first.map(|first| (first, true)));
                }
            }
        }
        Ok(first.map(|first| (first, false)))
    }

    /// Reads a sealed segment: by what the catalogue has of it, by its footer, or record by record when that is not whole.
    fn read_sealed(&mut self, seq: u64, len: u64) -> Result<(), StoreError> {
        let trailer = read_trailer(self.storage, &self.superblock.store, seq, len)?;
        if let Ok(trailer) = &trailer
            && let Some(summary) = self.catalogue.summary(seq)
        {
            match summary::decode(&summary, trailer, len) {
                Ok(segment) if !segment.is_on(&self.superblock.disks) => self.report.catalogue.push(format!(
                    "segment {}: its summary is about blocks that its disks do not have",
                    ObjectName::Segment(seq)
                )),
                Ok(segment) => {
                    self.report.summaries += 1;
                    self.add(seq, segment);
                    return Ok(());
                }
                Err(what) => self
                    .report
                    .catalogue
                    .push(format!("segment {}: {what}", ObjectName::Segment(seq))),
            }
        }
        let entries = match &trailer {
            Ok(trailer) => match read_footer(self.storage, seq, trailer, &self.superblock.disks) {
                Ok(entries) => Ok(entries),
                Err(StoreError::Damaged { what, .. }) => Err(what),
                Err(err) => return Err(err),
            },
            Err(what) => Err((*what).to_owned()),
        };
        let mut segment = Segment::new(len);
        match entries {
            Ok(entries) => {
                for entry in &entries {
                    segment.note(entry);
                }
                segment.trailer = trailer.ok();
            }
            Err(what) => {
                self.report.damage.push(format!(
                    "segment {}: {what}; it was read record by record",
                    ObjectName::Segment(seq)
                ));
                let whole = Whole {
                    storage: self.storage,
                    store: self.superblock.store,
                    seq,
                    len,
                    disks: &self.superblock.disks,
                    end: trailer.ok().map(|trailer| trailer.end),
                };
                let walked = whole.walk()?;
                for entry in &walked.entries {
                    segment.note(entry);
                }
                segment.entries = std::sync::Arc::new(walked.entries);
                if let Some(why) = walked.lost {
                    self.report.damage.push(why.clone());
                    self.doubt = Some(why);
                }
            }
        }
        self.add(seq, segment);
        Ok(())
    }

    fn add(&mut self, seq: u64, segment: Segment) {
        self.seen = self.seen.max(segment.last_epoch);
        self.segments.insert(seq, segment);
    }

    /// The next record. Where there is none, but a later one proves that what should be here was durable once, bytes changed
    /// since: then that is reported, and the walk goes on behind it.
    fn next_or_after_damage(&mut self, scan: &mut Scan<'_, S>) -> Result<Option<Scanned>, StoreError> {
        loop {
            let what = match scan.next()? {
                Ok(record) => return Ok(Some(record)),
                Err(what) => what,
            };
            let Some(next) = scan.durable_after()? else {
                return Ok(None);
            };
            // A process that looks on while another one writes: by now what is durable can be read.
            if let Ok(record) = scan.next()? {
                return Ok(Some(record));
            }
            let object = ObjectName::Segment(scan.seq);
            self.report
                .damage
                .push(format!("segment {object} at block {}: {what}", scan.at));
            if let Some(record) = scan.unchecked()? {
                // Only the data is damaged; who reads it is told.
                return Ok(Some(record));
            }
            self.doubt = Some(format!("a record of segment {object} is lost: {what}"));
            scan.go_on_at(next.0, &next.1);
        }
    }

    /// Reads the newest segment, whose records change the state.
    fn replay(&mut self, seq: u64, len: u64, header_blocks: u32) -> Result<(), StoreError> {
        let mut scan = Scan::new(
            self.storage,
            self.superblock.store,
            seq,
            len,
            &self.superblock.disks,
            header_blocks,
        );
        let mut segment = Segment::new(len);
        let mut found = Vec::new();
        let mut commits = Vec::new();
        let doubt_before = self.doubt.take();
        while let Some(record) = self.next_or_after_damage(&mut scan)? {
            for entry in &record.entries {
                segment.note(entry);
            }
            found.extend(record.entries);
            let at = u64::from(record.at) * BLOCK;
            let broken = |what| damaged(ObjectName::Segment(seq), at, what);
            match record.head.kind {
                Kind::After | Kind::Base => {}
                Kind::Commit => {
                    let commit = Commit::decode(&record.head.body).map_err(broken)?;
                    if !self.state.committed.is_within_reach(record.head.epoch) {
                        return Err(broken("it ends an epoch whose number nobody gave"));
                    }
                    for given_up in self.state.committed.0.saturating_add(1)..record.head.epoch.0 {
                        self.state.aborted.insert(EpochNumber(given_up));
                    }
                    self.state.committed = record.head.epoch;
                    if commit.offered {
                        self.state.points.insert(commit.point.epoch, commit.point.clone());
                    }
                    commits.push((record.head.epoch, commit));
                }
                Kind::Applied => self.state.applied = self.state.applied.max(record.head.epoch),
                Kind::Points => {
                    let changes = PointChanges::decode(&record.head.body).map_err(broken)?;
                    changes.apply(&mut self.state.points);
                }
                Kind::Segments => {
                    for dropped in numbers(&mut Reader::new(&record.head.body)).map_err(broken)? {
                        self.state.segments.remove(&dropped);
                    }
                }
            }
        }
        let end = scan.at;
        // A trailer may be there whose footer is not: both were on their way when power failed.
        let sealed = match read_trailer(self.storage, &self.superblock.store, seq, len)? {
            Ok(trailer) if trailer.end == end => {
                match read_footer(self.storage, seq, &trailer, &self.superblock.disks) {
                    Ok(entries) if entries.len() == found.len() => Some(trailer),
                    Ok(_) | Err(StoreError::Damaged { .. }) => None,
                    Err(err) => return Err(err),
                }
            }
            _ => None,
        };
        if sealed.is_some() {
            segment.trailer = sealed;
        } else {
            segment.entries = std::sync::Arc::new(found);
            if self.doubt.is_none() {
                self.to_seal.push((seq, end));
            }
        }
        self.doubt = doubt_before.or(self.doubt.take());
        self.add(seq, segment);
        self.state.last_epoch = self.state.last_epoch.max(self.state.committed);
        for (epoch, commit) in commits {
            let mut found = (0_u64, 0_u64);
            for (count, sum) in self.segments.values().filter_map(|s| s.sums.get(&epoch)) {
                found = (found.0 + count, found.1.wrapping_add(*sum));
            }
            // Only what is still in the log can be summed up: an older part may have been compacted since.
            if self.state.applied < epoch && found != (commit.extents, commit.checksum) {
                self.doubt = Some(format!("extents of epoch {epoch} are lost"));
                self.report.damage.push(format!(
                    "epoch {epoch} has {} extents, and was acknowledged with {}",
                    found.0, commit.extents
                ));
            }
        }
        Ok(())
    }

    /// Gives up what was not complete.
    fn end_epochs(&mut self) -> Result<(), StoreError> {
        if Bug::HalfEpochCounts.live() && self.seen > self.state.committed {
            self.state.committed = self.seen;
        }
        let newest = self.state.last_epoch.max(self.seen);
        self.state.last_epoch = newest;
        if !self.state.epochs_are_within_reach() {
            let last = self.segments.keys().next_back().copied().unwrap_or_default();
            return Err(damaged(ObjectName::Segment(last), 0, TOO_FAR_APART));
        }
        for epoch in self.state.committed.0 + 1..=newest.0 {
            let epoch = EpochNumber(epoch);
            if self.state.aborted.insert(epoch) {
                self.report.dropped_epochs.push(epoch);
            }
        }
        Ok(())
    }
}
