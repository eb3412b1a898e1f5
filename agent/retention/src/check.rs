//! Reading every byte of a store and saying what is not as it was written, and which points depend on it.
//!
//! What is checked of a segment: its header, the chain of its records, the digest of every extent and the zeros behind one that
//! ends with its disk, that its footer says the same as its records, and its trailer. Of the superblocks: each of the two.

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::log::Located;
use crate::record::Entry;
use crate::recover::read_superblock;
use crate::scan::{read_footer, read_trailer};
use crate::segment::sort;
use crate::storage::{ObjectName, Storage};
use crate::store::Store;
use crate::walk::Finding;

/// What was found in a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Bytes read.
    pub bytes: u64,
    /// What is not as it was written; empty for a segment that is whole.
    pub findings: Vec<Finding>,
}

impl<S: Storage> Store<S> {
    /// Reads a segment from end to end. Points that need what is damaged in it are marked; see [`Store::damage_of`]. Reads up
    /// to one segment of the log and changes nothing in storage. A segment that is not in the log any more is whole.
    ///
    /// # Errors
    /// When the storage fails. Damage is no error.
    pub fn check_segment(&mut self, seq: u64) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        let Some(segment) = self.log.segments.get(&seq) else {
            return Ok(checked);
        };
        let object = ObjectName::Segment(seq);
        checked.bytes = segment.bytes;
        let walked = self.log.whole(seq).walk()?;
        checked.findings.clone_from(&walked.findings);
        let mut footer = None;
        if let Some(trailer) = segment.trailer.clone() {
            match read_trailer(&self.log.storage, &self.log.store, seq, segment.bytes)? {
                Ok(found) if found == trailer => {}
                Ok(_) => checked.findings.push(Finding::new(
                    object,
                    segment.bytes.saturating_sub(crate::types::BLOCK),
                    "its trailer is another one than when it was opened",
                )),
                Err(what) => checked.findings.push(Finding::new(
                    object,
                    segment.bytes.saturating_sub(crate::types::BLOCK),
                    what,
                )),
            }
            match read_footer(&self.log.storage, seq, &trailer, &self.state.disks) {
                Ok(entries) => footer = Some(entries),
                Err(StoreError::Damaged { offset, what, .. }) => {
                    checked.findings.push(Finding::new(object, offset, what));
                }
                Err(err) => return Err(err),
            }
        }
        let unreadable = match footer {
            Some(footer) => self.compare(seq, &footer, &walked.entries, walked.unreadable, &mut checked)?,
            None => {
                let unreadable = walked.unreadable.clone();
                if self.log.segments.get(&seq).is_some_and(|s| s.trailer.is_some()) {
                    self.log.without_footer(seq, walked);
                } else if let Some(why) = walked.lost {
                    self.log.doubt.get_or_insert(why);
                }
                unreadable
            }
        };
        for entry in unreadable {
            let located = Located { seq, entry };
            let disk = self.state.disks[entry.disk.at()].clone();
            if let Err(StoreError::Damaged { offset, what, .. }) = self.read_or_mark(&located, &disk) {
                checked.findings.push(Finding::new(object, offset, what));
            }
        }
        Ok(checked)
    }

    /// Compares what the footer says with the records; extents that only the footer knows are read by it. Returns those whose
    /// data is not what was written.
    fn compare(
        &self,
        seq: u64,
        footer: &[Entry],
        records: &[Entry],
        mut unreadable: Vec<Entry>,
        checked: &mut Checked,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut sorted = records.to_vec();
        sort(&mut sorted);
        if sorted == footer {
            return Ok(unreadable);
        }
        let missing: Vec<Entry> = footer
            .iter()
            .filter(|entry| !sorted.contains(entry))
            .copied()
            .collect();
        if missing.is_empty() || checked.findings.is_empty() {
            let what = format!(
                "its footer has {} extents, and its records {}",
                footer.len(),
                records.len()
            );
            checked
                .findings
                .push(Finding::new(ObjectName::Segment(seq), 0, what));
        }
        unreadable.retain(|entry| footer.contains(entry));
        for entry in missing {
            let Some(disk) = self.state.disks.get(entry.disk.at()) else {
                continue;
            };
            match self.log.read(&Located { seq, entry }, disk) {
                Ok(_) => {}
                Err(StoreError::Damaged { .. }) => unreadable.push(entry),
                Err(err) => return Err(err),
            }
        }
        Ok(unreadable)
    }
}

/// Reads both superblocks of a store and says what is wrong with them.
///
/// # Errors
/// When the storage fails. Damage is no error.
pub fn check_superblocks<S: Storage>(storage: &S) -> Result<Vec<Finding>, StoreError> {
    let objects = storage.list()?;
    let mut findings = Vec::new();
    for slot in [0, 1] {
        let object = ObjectName::Super(slot);
        match objects.iter().find(|(name, _)| *name == object) {
            None => findings.push(Finding::new(object, 0, "it is missing")),
            Some((_, len)) => {
                if let Err((what, _)) = read_superblock(storage, slot, *len)? {
                    findings.push(Finding::new(object, 0, what));
                }
            }
        }
    }
    Ok(findings)
}
