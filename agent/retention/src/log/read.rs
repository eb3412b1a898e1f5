//! What is in the log, read back: extents of segments by their footers or their records, and content by its digest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Located, Log, Segment, explained};
use crate::codec::{Malformed, usize_of};
use crate::error::StoreError;
use crate::pack;
use crate::planted::Bug;
use crate::record::Entry;
use crate::scan::read_footer;
use crate::storage::{ObjectName, Storage};
use crate::types::{BLOCK, BLOCK_SIZE, Disk, DiskIndex, digest};
use crate::walk::{Walked, Whole};

/// Most bytes of footers kept in memory.
const FOOTER_BYTES_MAX: usize = 48 << 20;
/// Most blocks read with one request, and the widest gap that is read over to save one.
const READ_BLOCKS_MAX: u32 = 512;
const READ_GAP_BLOCKS: u32 = 16;

/// Footers that were read, the least used of which go first.
#[derive(Default)]
pub(super) struct Footers {
    kept: BTreeMap<u64, (u64, Arc<Vec<Entry>>)>,
    bytes: usize,
    clock: u64,
}

impl Footers {
    pub(super) fn find(&mut self, seq: u64) -> Option<Arc<Vec<Entry>>> {
        self.clock += 1;
        let (used, entries) = self.kept.get_mut(&seq)?;
        *used = self.clock;
        Some(Arc::clone(entries))
    }

    pub(super) fn keep(&mut self, seq: u64, entries: &Arc<Vec<Entry>>) {
        self.bytes += entries.len() * size_of::<Entry>();
        self.kept.insert(seq, (self.clock, Arc::clone(entries)));
        while self.bytes > FOOTER_BYTES_MAX && self.kept.len() > 1 {
            let oldest = self.kept.iter().min_by_key(|(_, (used, _))| *used);
            let Some(oldest) = oldest.map(|(seq, _)| *seq) else {
                return;
            };
            self.forget(oldest);
        }
    }

    pub(super) fn forget(&mut self, seq: u64) {
        if let Some((_, entries)) = self.kept.remove(&seq) {
            self.bytes -= entries.len() * size_of::<Entry>();
        }
    }
}

impl<S: Storage> Log<S> {
    /// All extents of a segment: sorted when it is sealed, by ordinal when it is not.
    pub(crate) fn entries(&mut self, seq: u64) -> Result<Arc<Vec<Entry>>, StoreError> {
        let Some(segment) = self.segments.get(&seq) else {
            return Ok(Arc::new(Vec::new()));
        };
        let Some(trailer) = &segment.trailer else {
            return Ok(Arc::clone(&segment.entries));
        };
        if let Some(entries) = self.footers.find(seq) {
            return Ok(entries);
        }
        match read_footer(&self.storage, seq, trailer, &self.disks) {
            Ok(entries) => {
                let entries = Arc::new(entries);
                self.footers.keep(seq, &entries);
                Ok(entries)
            }
            Err(err @ StoreError::Damaged { .. }) => {
                self.damage
                    .push(format!("{}; it was read record by record", explained(&err)));
                let walked = self.whole(seq).walk()?;
                Ok(self.without_footer(seq, walked))
            }
            Err(err) => Err(err),
        }
    }

    /// Reads the footer of a sealed segment, whether it is kept in memory or not.
    pub(crate) fn reread_footer(&mut self, seq: u64) -> Result<(), StoreError> {
        self.footers.forget(seq);
        let entries = self.entries(seq)?;
        if let Some(segment) = self.segments.get_mut(&seq) {
            let mut anew = Segment::new(segment.bytes);
            for entry in entries.iter() {
                anew.note(entry);
            }
            anew.trailer = segment.trailer.take();
            anew.entries = std::mem::take(&mut segment.entries);
            *segment = anew;
        }
        Ok(())
    }

    /// A segment of this log, to be read from end to end.
    pub(crate) fn whole(&self, seq: u64) -> Whole<'_, S> {
        let segment = self.segments.get(&seq);
        let active = self.active.as_ref().filter(|active| active.seq == seq);
        let sealed = segment.and_then(|segment| segment.trailer.as_ref());
        Whole {
            storage: &self.storage,
            store: self.store,
            seq,
            len: segment.map_or(0, |segment| segment.bytes),
            disks: &self.disks,
            end: active
                .map(|active| active.at)
                .or(sealed.map(|trailer| trailer.end)),
        }
    }

    /// From here on a segment whose footer is damaged is known by what its records said.
    pub(crate) fn without_footer(&mut self, seq: u64, walked: Walked) -> Arc<Vec<Entry>> {
        if let Some(why) = walked.lost {
            self.doubt.get_or_insert(why);
        }
        let entries = Arc::new(walked.entries);
        self.footers.forget(seq);
        if let Some(segment) = self.segments.get_mut(&seq) {
            segment.trailer = None;
            segment.entries = Arc::clone(&entries);
        }
        entries
    }

    /// Calls `each` for every extent that touches one of `blocks`, which are sorted, with the blocks' positions.
    pub(crate) fn for_each_touching(
        &mut self,
        disk: DiskIndex,
        blocks: &[u64],
        mut each: impl FnMut(Located, std::ops::Range<usize>),
    ) -> Result<(), StoreError> {
        let (Some(&first), Some(&last)) = (blocks.first(), blocks.last()) else {
            return Ok(());
        };
        let candidates: Vec<u64> = self
            .segments
            .iter()
            .filter(|(_, segment)| segment.may_have(disk, blocks))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in candidates {
            for entry in self.entries(seq)?.iter() {
                let other_disk = entry.disk != disk && !Bug::OtherDisk.live();
                if other_disk || entry.end() <= first || entry.block > last {
                    continue;
                }
                let from = blocks.partition_point(|block| *block < entry.block);
                let to = blocks.partition_point(|block| *block < entry.end());
                if from < to {
                    each(Located { seq, entry: *entry }, from..to);
                }
            }
        }
        Ok(())
    }

    /// Reads the content of an extent and checks its digest. `disk` is the one it belongs to.
    pub(crate) fn read(&self, located: &Located, disk: &Disk) -> Result<Vec<u8>, StoreError> {
        let entry = &located.entry;
        if entry.zero {
            return Ok(vec![0; usize_of(u64::from(entry.count)) * BLOCK_SIZE]);
        }
        let mut stored = vec![0; usize_of(u64::from(entry.stored())) * BLOCK_SIZE];
        let object = ObjectName::Segment(located.seq);
        let offset = u64::from(entry.data) * BLOCK;
        self.storage.read(object, offset, &mut stored)?;
        checked(located, disk, stored)
    }

    /// Reads the content of many extents of one disk, neighbours in the log with one request, and checks each digest. Each is
    /// an error of its own.
    pub(crate) fn read_many(
        &self,
        wanted: &[Located],
        disk: &Disk,
    ) -> Result<Vec<Result<Vec<u8>, StoreError>>, StoreError> {
        let mut found: Vec<Result<Vec<u8>, StoreError>> = Vec::with_capacity(wanted.len());
        let mut order: Vec<usize> = Vec::with_capacity(wanted.len());
        for (at, located) in wanted.iter().enumerate() {
            found.push(Ok(Vec::new()));
            if !located.entry.zero {
                order.push(at);
            }
        }
        let place = |at: &usize| (wanted[*at].seq, wanted[*at].entry.data);
        order.sort_unstable_by_key(place);
        let mut run = 0;
        while run < order.len() {
            let (seq, start) = place(&order[run]);
            let mut end = start + wanted[order[run]].entry.stored();
            let mut next = run + 1;
            while let Some(at) = order.get(next) {
                let (next_seq, data) = place(at);
                let next_end = data + wanted[*at].entry.stored();
                if next_seq != seq || data > end + READ_GAP_BLOCKS || next_end > start + READ_BLOCKS_MAX {
                    break;
                }
                end = end.max(next_end);
                next += 1;
            }
            let mut bytes = vec![0; usize_of(u64::from(end - start)) * BLOCK_SIZE];
            let object = ObjectName::Segment(seq);
            self.storage.read(object, u64::from(start) * BLOCK, &mut bytes)?;
            for at in &order[run..next] {
                let entry = &wanted[*at].entry;
                let from = usize_of(u64::from(entry.data - start)) * BLOCK_SIZE;
                let len = usize_of(u64::from(entry.stored())) * BLOCK_SIZE;
                found[*at] = checked(&wanted[*at], disk, bytes[from..from + len].to_vec());
            }
            run = next;
        }
        Ok(found)
    }
}

/// The content of an extent whose data is `stored`, whole blocks.
///
/// # Errors
/// When it is packed, and no pack of the extent's length.
pub(crate) fn content_of<'a>(
    entry: &Entry,
    disk: &Disk,
    stored: Cow<'a, [u8]>,
) -> Result<Cow<'a, [u8]>, Malformed> {
    match entry.packed {
        None => Ok(stored),
        Some(_) => pack::unpack(&stored, real_len(entry, disk)).map(Cow::Owned),
    }
}

/// Whether the data of an extent is what was written.
pub(crate) fn is_whole(entry: &Entry, disk: &Disk, stored: &[u8]) -> bool {
    content_of(entry, disk, Cow::Borrowed(stored)).is_ok_and(|content| {
        content
            .get(..real_len(entry, disk))
            .is_some_and(|real| digest(real) == entry.digest)
    })
}

/// The content of an extent, when its digest says so.
fn checked(located: &Located, disk: &Disk, stored: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let entry = &located.entry;
    match content_of(entry, disk, Cow::Owned(stored)) {
        Ok(content)
            if digest(&content[..real_len(entry, disk)]) == entry.digest || Bug::DigestNotRead.live() =>
        {
            return Ok(content.into_owned());
        }
        Err(_) if Bug::DigestNotRead.live() => {
            return Ok(vec![0; usize_of(u64::from(entry.count)) * BLOCK_SIZE]);
        }
        _ => {}
    }
    Err(StoreError::Damaged {
        object: ObjectName::Segment(located.seq),
        offset: u64::from(entry.data) * BLOCK,
        what: format!(
            "the content of {} blocks of {} ({}) at block {} in epoch {} fails its digest",
            entry.count, entry.disk, disk.id, entry.block, entry.epoch
        ),
    })
}

/// Bytes of an extent that are on its disk: the last block of a disk may be cut.
pub(crate) fn real_len(entry: &Entry, disk: &Disk) -> usize {
    let len = u64::from(entry.count) * BLOCK;
    usize_of(len.min(disk.size.saturating_sub(entry.block * BLOCK)))
}
