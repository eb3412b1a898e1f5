//! A map from ranges of blocks to values: what a plan of many overlapping extents comes down to.

use std::collections::BTreeMap;

/// Ranges that do not overlap, each with a value.
#[derive(Debug, Clone)]
pub(crate) struct RangeMap<V> {
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self {
            ranges: BTreeMap::new(),
        }
    }
}

impl<V: Clone> RangeMap<V> {
    /// Gives `start..end` a value, in place of any it had.
    pub(crate) fn insert(&mut self, start: u64, end: u64, value: V) {
        self.remove(start, end);
        if start < end {
            self.ranges.insert(start, (end, value));
        }
    }

    /// Gives those parts of `start..end` a value that have none.
    pub(crate) fn insert_absent(&mut self, start: u64, end: u64, value: &V) {
        let mut at = start;
        let mut gaps = Vec::new();
        for (from, to, _) in self.overlapping(start, end) {
            if at < from {
                gaps.push((at, from));
            }
            at = to;
        }
        if at < end {
            gaps.push((at, end));
        }
        for (from, to) in gaps {
            self.ranges.insert(from, (to, value.clone()));
        }
    }

    /// Takes `start..end` out.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if let Some((&before, &mut (ref mut before_end, ref value))) =
            self.ranges.range_mut(..start).next_back()
            && *before_end > start
        {
            let behind = (*before_end > end).then(|| (*before_end, value.clone()));
            *before_end = start;
            debug_assert!(before < start);
            if let Some(rest) = behind {
                self.ranges.insert(end, rest);
            }
        }
        while let Some((&at, &(at_end, _))) = self.ranges.range(start..end).next() {
            let (_, value) = self.ranges.remove(&at).expect("it was just found");
            if at_end > end {
                self.ranges.insert(end, (at_end, value));
            }
        }
    }

    /// The parts of `start..end` that have a value, ascending and clipped.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, &V)> {
        let first = match self.ranges.range(..start).next_back() {
            Some((&at, &(at_end, _))) if at_end > start => at,
            _ => start,
        };
        self.ranges
            .range(first..end.max(first))
            .map(move |(&at, (at_end, value))| (at.max(start), (*at_end).min(end), value))
            .filter(|(from, to, _)| from < to)
    }

    /// All ranges, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, &V)> {
        self.ranges.iter().map(|(&at, (end, value))| (at, *end, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn it_is_an_array_with_fewer_words(ops in proptest::collection::vec((0_u8..3, 0_u64..40, 0_u64..12), 0..40)) {
            let mut map = RangeMap::default();
            let mut model = [None; 64];
            for (value, (op, start, len)) in ops.into_iter().enumerate() {
                let end = start + len;
                let cells = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
                match op {
                    0 => {
                        map.insert(start, end, value);
                        model[cells].fill(Some(value));
                    }
                    1 => {
                        map.insert_absent(start, end, &value);
                        model[cells].iter_mut().filter(|cell| cell.is_none()).for_each(|cell| *cell = Some(value));
                    }
                    _ => {
                        map.remove(start, end);
                        model[cells].fill(None);
                    }
                }
            }
            let mut seen = [None; 64];
            for (start, end, value) in map.iter() {
                seen[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(Some(*value));
            }
            prop_assert_eq!(seen, model);
            let mut part = [None; 64];
            for (start, end, value) in map.overlapping(7, 23) {
                part[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(Some(*value));
            }
            for (at, cell) in part.iter().enumerate() {
                prop_assert_eq!(*cell, if (7..23).contains(&at) { model[at] } else { None });
            }
        }
    }
}
