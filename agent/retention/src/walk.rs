//! Reading a segment that was durable from end to end, over whatever bytes changed in it since.
//!
//! Unlike the tail of the log, where the first record that is not whole is the end, here everything was there once: what is
//! not whole is damage, and the walk goes on behind it.

use serde::{Deserialize, Serialize};

use crate::codec::{u32_of, u64_of, usize_of};
use crate::error::StoreError;
use crate::log::{Segment, is_whole, real_len};
use crate::pack;
use crate::record::Entry;
use crate::scan::{Scan, Scanned, read_header};
use crate::segment::{encode_footer, sort};
use crate::storage::{ObjectName, Storage};
use crate::types::{BLOCK, BLOCK_SIZE, Disk, StoreUuid};

/// Most bytes of a trailer that may be wrong while it still counts as the one that is expected: fewer than its digest has,
/// which would be another one altogether.
const TRAILER_BYTES_WRONG_MAX: usize = 16;

/// Bytes that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the object.
    pub object: String,
    /// Where in it, bytes.
    pub offset: u64,
    /// What was found.
    pub what: String,
}

impl Finding {
    pub(crate) fn new(object: ObjectName, offset: u64, what: impl Into<String>) -> Self {
        Self {
            object: object.to_string(),
            offset,
            what: what.into(),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at 0x{:x}: {}", self.object, self.offset, self.what)
    }
}

/// A segment to read, and what is known of it beforehand.
pub(crate) struct Whole<'a, S> {
    pub storage: &'a S,
    pub store: StoreUuid,
    pub seq: u64,
    pub len: u64,
    pub disks: &'a [Disk],
    /// Where its records end, in blocks, when something that was checked says so.
    pub end: Option<u32>,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// All extents, in their order.
    pub entries: Vec<Entry>,
    /// Those whose data is not what was written.
    pub unreadable: Vec<Entry>,
    pub findings: Vec<Finding>,
    /// Why extents may be missing.
    pub lost: Option<String>,
}

impl<S: Storage> Whole<'_, S> {
    /// Reads every record.
    pub(crate) fn walk(&self) -> Result<Walked, StoreError> {
        let object = ObjectName::Segment(self.seq);
        let mut walked = Walked::default();
        let limit = self.end.map_or(self.len, |end| u64::from(end) * BLOCK);
        let mut scan = self.scan(0, limit.min(self.len));
        match read_header(self.storage, self.seq, self.len)? {
            Ok(header) if header.store == self.store && header.seq == self.seq => {
                scan.at = header.header_blocks;
            }
            header => {
                let what = header.err().unwrap_or("its header belongs to another segment");
                walked.findings.push(Finding::new(object, 0, what));
                match scan.next_head()? {
                    Some((at, head)) if head.index == 0 => scan.at = at,
                    Some((at, head)) => {
                        walked.lost = Some(format!("records of segment {object} are lost behind its header"));
                        scan.go_on_at(at, &head);
                    }
                    None => {}
                }
            }
        }
        loop {
            let at = u64::from(scan.at) * BLOCK;
            if self.end.is_some_and(|end| scan.at >= end) {
                break;
            }
            let what = match scan.next()? {
                Ok(record) => {
                    self.look_behind(&record, &mut walked)?;
                    walked.entries.extend(record.entries);
                    continue;
                }
                Err(what) => what,
            };
            if let Some(record) = scan.unchecked()? {
                let known = walked.unreadable.len();
                self.look_into(&record, &mut walked)?;
                if walked.unreadable.len() == known {
                    walked.findings.push(Finding::new(object, at, what));
                }
                walked.entries.extend(record.entries);
            } else if let Some((next, head)) = scan.next_head()? {
                walked.findings.push(Finding::new(object, at, what));
                walked.lost = Some(format!(
                    "a record of segment {object} at 0x{at:x} is lost: {what}"
                ));
                scan.go_on_at(next, &head);
            } else {
                // Nothing follows: the end, if this is where it should be.
                let fits = match self.end {
                    Some(end) => scan.at == end,
                    None => self.was_sealed_at(scan.at, &walked.entries)?,
                };
                if !fits {
                    walked.findings.push(Finding::new(object, at, what));
                    walked.lost = Some(format!(
                        "the last records of segment {object} from 0x{at:x} are lost: {what}"
                    ));
                }
                break;
            }
        }
        Ok(walked)
    }

    /// Whether what lies at the end of a segment shows that it was sealed behind just these records: their footer, or the
    /// trailer that goes with them but for a few bytes. Room for both is no proof. A segment that was cut leaves that much behind
    /// its last whole record for many lengths, and points that need what was there would be offered and read wrong.
    fn was_sealed_at(&self, at: u32, entries: &[Entry]) -> Result<bool, StoreError> {
        let mut sorted = entries.to_vec();
        sort(&mut sorted);
        let (footer, digest) = encode_footer(&sorted);
        let offset = u64::from(at) * BLOCK;
        if offset + u64_of(footer.len()) + BLOCK != self.len {
            return Ok(false);
        }
        let object = ObjectName::Segment(self.seq);
        let mut found = vec![0; footer.len() + BLOCK_SIZE];
        self.storage.read(object, offset, &mut found)?;
        let (found_footer, found_trailer) = found.split_at(footer.len());
        if !footer.is_empty() && found_footer == footer {
            return Ok(true);
        }
        let mut segment = Segment::new(self.len);
        for entry in entries {
            segment.note(entry);
        }
        let trailer = segment.trailer_of(self.store, self.seq, at, u32_of(entries.len()), digest);
        let differ = trailer
            .encode()
            .iter()
            .zip(found_trailer)
            .filter(|(a, b)| a != b)
            .count();
        Ok(differ <= TRAILER_BYTES_WRONG_MAX)
    }

    fn scan(&self, at: u32, len: u64) -> Scan<'_, S> {
        Scan::new(self.storage, self.store, self.seq, len, self.disks, at)
    }

    /// Looks at the zeros behind the content of extents that are packed, or whose last block is cut by the end of their disk:
    /// nothing reads them, and no digest covers them.
    fn look_behind(&self, record: &Scanned, walked: &mut Walked) -> Result<(), StoreError> {
        for entry in record.entries.iter().filter(|entry| !entry.zero) {
            let len = usize_of(u64::from(entry.stored())) * BLOCK_SIZE;
            let Some(real) = self.disks.get(entry.disk.at()).map(|disk| real_len(entry, disk)) else {
                continue;
            };
            if real == len && entry.packed.is_none() {
                continue;
            }
            let object = ObjectName::Segment(self.seq);
            let offset = u64::from(entry.data) * BLOCK;
            let mut stored = vec![0; len];
            self.storage.read(object, offset, &mut stored)?;
            let behind = match entry.packed {
                Some(_) => pack::behind(&stored),
                None => stored.get(real..).unwrap_or_default(),
            };
            if let Some(at) = behind.iter().position(|byte| *byte != 0) {
                let offset = offset + u64_of(len - behind.len() + at);
                let what = "not zero behind the end of the content; nothing depends on it";
                walked.findings.push(Finding::new(object, offset, what));
            }
        }
        Ok(())
    }

    /// Which extents of a record have other data than they should.
    fn look_into(&self, record: &Scanned, walked: &mut Walked) -> Result<(), StoreError> {
        let object = ObjectName::Segment(self.seq);
        for entry in &record.entries {
            let Some(disk) = self.disks.get(entry.disk.at()).filter(|_| !entry.zero) else {
                continue;
            };
            let offset = u64::from(entry.data) * BLOCK;
            let mut stored = vec![0; usize_of(u64::from(entry.stored())) * BLOCK_SIZE];
            if offset + u64_of(stored.len()) > self.len {
                walked.unreadable.push(*entry);
                continue;
            }
            self.storage.read(object, offset, &mut stored)?;
            if !is_whole(entry, disk, &stored) {
                walked.unreadable.push(*entry);
            }
        }
        Ok(())
    }
}
