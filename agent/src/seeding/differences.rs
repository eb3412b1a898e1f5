//! The ranges in which two disks differ: merged, ascending, and bounded in number.

use std::collections::BTreeMap;

use mt_wire::Range;

/// Most ranges that are remembered; beyond it only their bytes are counted, so that comparing two unrelated disks of
/// any size stays within a few megabytes.
pub const RANGES_MAX: usize = 65_536;

/// A set of ranges that do not overlap.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
    bytes_unlisted: u64,
}

impl Differences {
    /// Adds a range that touches none of those added before, in any order.
    pub fn insert(&mut self, range: Range) {
        self.bytes += range.len;
        let Range { mut offset, mut len } = range;
        if let Some((&before, &before_len)) = self.ranges.range(..offset).next_back()
            && before + before_len == offset
        {
            self.ranges.remove(&before);
            offset = before;
            len += before_len;
        }
        if let Some(behind_len) = self.ranges.remove(&(offset + len)) {
            len += behind_len;
        }
        if self.ranges.len() < RANGES_MAX {
            self.ranges.insert(offset, len);
        } else {
            self.bytes_unlisted += len;
        }
    }

    /// The ranges, ascending and merged.
    pub fn ranges(&self) -> impl Iterator<Item = Range> {
        self.ranges.iter().map(|(&offset, &len)| Range { offset, len })
    }

    /// Number of ranges that are listed.
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Bytes that differ in all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that differ in ranges beyond [`RANGES_MAX`].
    pub fn bytes_unlisted(&self) -> u64 {
        self.bytes_unlisted
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn neighbours_merge_in_whatever_order_they_come() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut differences = Differences::default();
            for index in order {
                differences.insert(Range {
                    offset: index * 10,
                    len: 10,
                });
            }
            differences.insert(Range { offset: 40, len: 5 });
            let ranges: Vec<_> = differences.ranges().collect();
            assert_eq!(
                ranges,
                [Range { offset: 0, len: 30 }, Range { offset: 40, len: 5 }],
                "{order:?}"
            );
            assert_eq!(differences.bytes(), 35);
        }
    }

    #[test]
    fn memory_is_bounded_and_bytes_are_still_counted() {
        let mut differences = Differences::default();
        let count = RANGES_MAX as u64 + 10;
        for index in 0..count {
            differences.insert(Range {
                offset: index * 8192,
                len: 4096,
            });
        }
        assert_eq!(differences.count(), RANGES_MAX);
        assert_eq!(differences.bytes(), count * 4096);
        assert_eq!(differences.bytes_unlisted(), 10 * 4096);
    }
}
