//! Content that was appended a moment ago and is about to be written in place: kept in memory, so that it is not read back.
//!
//! It is bounded and only a short cut: what does not fit, and everything after a crash, is read from the log. What is kept
//! was checked against its digest when it arrived, and goes away with its epoch.

use std::collections::BTreeMap;

use crate::codec::usize_of;
use crate::log::Located;
use crate::types::{BLOCK_SIZE, EpochNumber};

/// Buffers of a store that wait for their next use, so that memory is not given back and taken again for each record.
const SPARE_MAX: usize = 1;

/// Data of records, by the segment and the block of it at which they lie.
#[derive(Default)]
pub(crate) struct Recent {
    bytes_max: usize,
    bytes: usize,
    kept: BTreeMap<(u64, u32), (EpochNumber, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
}

impl Recent {
    /// Keeps at most so many bytes from here on.
    pub(crate) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        if self.bytes > bytes_max {
            self.kept.clear();
            self.bytes = 0;
        }
    }

    /// Keeps the data of a record, when there is room; leaves an empty buffer in its place.
    pub(crate) fn keep(&mut self, epoch: EpochNumber, placed: &[Located], data: &mut Vec<u8>) {
        let first = placed.iter().find(|located| !located.entry.zero);
        if let Some(first) = first
            && self.bytes + data.len() <= self.bytes_max
        {
            self.bytes += data.len();
            let next = self.spare.pop().unwrap_or_default();
            let kept = std::mem::replace(data, next);
            self.kept.insert((first.seq, first.entry.data), (epoch, kept));
        } else {
            data.clear();
        }
    }

    /// The data of an extent as it lies in the log, when it is kept.
    pub(crate) fn find(&self, located: &Located) -> Option<&[u8]> {
        let place = (located.seq, located.entry.data);
        let (&(seq, start), (_, data)) = self.kept.range(..=place).next_back()?;
        if seq != located.seq {
            return None;
        }
        let from = usize_of(u64::from(located.entry.data - start)) * BLOCK_SIZE;
        let len = usize_of(u64::from(located.entry.stored())) * BLOCK_SIZE;
        data.get(from..from + len)
    }

    /// Lets go of an epoch.
    pub(crate) fn forget(&mut self, epoch: EpochNumber) {
        self.forget_those(|of| of == epoch);
    }

    /// Lets go of everything up to an epoch.
    pub(crate) fn forget_until(&mut self, epoch: EpochNumber) {
        self.forget_those(|of| of <= epoch);
    }

    fn forget_those(&mut self, gone: impl Fn(EpochNumber) -> bool) {
        let (spare, bytes) = (&mut self.spare, &mut self.bytes);
        self.kept.retain(|_, (of, data)| {
            if !gone(*of) {
                return true;
            }
            *bytes -= data.len();
            if spare.len() < SPARE_MAX {
                data.clear();
                spare.push(std::mem::take(data));
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Entry, Image};
    use crate::types::DiskIndex;

    fn located(seq: u64, data: u32, count: u32) -> Located {
        Located {
            seq,
            entry: Entry {
                disk: DiskIndex(0),
                image: Image::After,
                zero: false,
                relocated: false,
                count,
                packed: None,
                block: 7,
                epoch: EpochNumber(1),
                data,
                ordinal: 0,
                digest: [0; 32],
            },
        }
    }

    #[test]
    fn what_fits_is_found_whole_and_goes_with_its_epoch() {
        let mut recent = Recent::default();
        recent.set_bytes_max(5 * BLOCK_SIZE);
        let blocks =
            |bytes: &[u8]| -> Vec<u8> { bytes.iter().flat_map(|byte| [*byte; BLOCK_SIZE]).collect() };
        let mut data = blocks(&[1, 2, 3]);
        recent.keep(EpochNumber(1), &[located(4, 10, 2), located(4, 12, 1)], &mut data);
        assert!(data.is_empty());
        let mut data = blocks(&[4, 5]);
        recent.keep(EpochNumber(2), &[located(5, 10, 2)], &mut data);
        let mut data = blocks(&[6]);
        recent.keep(EpochNumber(2), &[located(5, 20, 1)], &mut data);
        assert!(
            data.is_empty(),
            "there is no room, and the buffer can be filled again"
        );
        assert_eq!(recent.find(&located(4, 11, 2)), Some(&blocks(&[2, 3])[..]));
        assert_eq!(recent.find(&located(4, 12, 2)), None, "it is not whole");
        assert_eq!(recent.find(&located(4, 9, 1)), None);
        assert_eq!(recent.find(&located(5, 20, 1)), None);
        assert_eq!(
            recent.find(&located(6, 1, 1)),
            None,
            "another segment, nearer its start"
        );
        recent.forget_until(EpochNumber(1));
        assert_eq!(recent.find(&located(4, 10, 1)), None);
        assert_eq!(recent.find(&located(5, 11, 1)), Some(&blocks(&[5])[..]));
        recent.forget(EpochNumber(2));
        assert_eq!(recent.bytes, 0);
    }
}
