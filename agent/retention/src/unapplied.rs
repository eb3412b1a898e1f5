//! What the disks will hold when every complete epoch is on them.
//!
//! A source compares its disks with the newest epoch. While that is still on its way to the disks, they and the log hold
//! it together: what is to be written is in the log, everything else on the disks.

use crate::apply::Job;
use crate::codec::usize_of;
use crate::error::StoreError;
use crate::log::Located;
use crate::ranges::RangeMap;
use crate::storage::Storage;
use crate::store::Store;
use crate::types::{BLOCK, DiskIndex};

/// The newest image of each block that is not on its disk yet, by disk. It may name blocks that have been applied since:
/// what the log has of them is what is on the disk.
pub(crate) struct Unapplied {
    newest: Vec<RangeMap<Located>>,
}

/// Bytes of a disk that are newer in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newer {
    /// Where on the disk, bytes.
    pub offset: u64,
    /// What is to be there.
    pub content: Vec<u8>,
}

impl<S: Storage> Store<S> {
    /// What is not on `disk` yet of the `len` bytes at `offset`, ascending. Ask this first, read the disk then, and lay these
    /// over what was read: that is the disk as of the newest complete epoch. Epochs may be applied meanwhile. None may
    /// be committed.
    ///
    /// # Errors
    /// When there is no such disk, or the log cannot be read or is damaged.
    pub fn newer_than_disk(
        &mut self,
        disk: DiskIndex,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Newer>, StoreError> {
        if self.job.is_none() && self.pending.is_empty() {
            return Ok(Vec::new());
        }
        let Some(known) = self.state.disks.get(disk.at()).cloned() else {
            return Err(StoreError::refused(format!("the store has no {disk}"), ""));
        };
        let end = offset.saturating_add(len).min(known.size);
        let disks = self.state.disks.len();
        let unapplied = match self.unapplied.take() {
            Some(unapplied) => unapplied,
            None => {
                let pending = self.pending.values().flatten().copied();
                Unapplied::new(disks, self.job.as_ref(), pending)
            }
        };
        let found: Vec<(u64, u64, Located)> = unapplied
            .newest
            .get(disk.at())
            .map(|newest| {
                newest
                    .overlapping(offset / BLOCK, end.div_ceil(BLOCK))
                    .map(|(from, to, located)| (from, to, *located))
                    .collect()
            })
            .unwrap_or_default();
        self.unapplied = Some(unapplied);
        let mut wanted: Vec<Located> = found.iter().map(|(_, _, located)| *located).collect();
        wanted.dedup();
        let mut contents = self.read_many_or_mark(&wanted, &known)?.into_iter();
        let mut held: Option<(Located, Vec<u8>)> = None;
        let mut newer = Vec::with_capacity(found.len());
        for (from, to, located) in found {
            if held.as_ref().is_none_or(|(of, _)| *of != located) {
                held = Some((located, contents.next().unwrap_or_default()));
            }
            let start = (from * BLOCK).max(offset);
            let stop = (to * BLOCK).min(end);
            let content = match &held {
                Some((of, content)) if !of.entry.zero => {
                    let skip = usize_of(start - of.entry.block * BLOCK);
                    content[skip..skip + usize_of(stop - start)].to_vec()
                }
                _ => vec![0; usize_of(stop - start)],
            };
            newer.push(Newer {
                offset: start,
                content,
            });
        }
        Ok(newer)
    }
}

impl Unapplied {
    fn new(disks: usize, job: Option<&Job>, pending: impl Iterator<Item = Located>) -> Self {
        let mut newest = vec![RangeMap::default(); disks];
        let queued = job
            .iter()
            .flat_map(|job| job.out.iter().chain(&job.queue))
            .map(|piece| (piece.start, piece.end, piece.source));
        // In the order of their epochs, what a job has of them first: later ones take the place of older ones.
        let pending = pending.map(|located| (located.entry.block, located.entry.end(), located));
        for (start, end, located) in queued.chain(pending) {
            if let Some(of_disk) = newest.get_mut(located.entry.disk.at()) {
                of_disk.insert(start, end, located);
            }
        }
        Self { newest }
    }
}
