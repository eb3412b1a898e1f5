//! Which chunks of a disk have changed.

use std::ops::Range;

/// Smallest chunk, bytes: the unit in which replication compares.
pub const CHUNK_BYTES_MIN: u32 = 4096;
/// Largest chunk, bytes.
pub const CHUNK_BYTES_MAX: u32 = 64 << 20;
/// What a chunk is where nothing is said, bytes: the unit of digests.
pub const CHUNK_BYTES_DEFAULT: u32 = 65_536;

/// Size of a disk and of its chunks. The last chunk may be a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSize {
    disk_bytes: u64,
    chunk_bytes: u32,
}

impl ChunkSize {
    /// Chunks of `chunk_bytes` on a disk of `disk_bytes`.
    ///
    /// `None` when a chunk is no power of two from [`CHUNK_BYTES_MIN`] to [`CHUNK_BYTES_MAX`], or the disk is empty.
    #[must_use]
    pub fn new(disk_bytes: u64, chunk_bytes: u32) -> Option<Self> {
        let fits =
            (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes) && chunk_bytes.is_power_of_two();
        (fits && disk_bytes > 0).then_some(Self {
            disk_bytes,
            chunk_bytes,
        })
    }

    /// Size of the disk, bytes.
    #[must_use]
    pub fn disk_bytes(self) -> u64 {
        self.disk_bytes
    }

    /// Size of a chunk, bytes.
    #[must_use]
    pub fn chunk_bytes(self) -> u32 {
        self.chunk_bytes
    }

    /// Number of chunks.
    #[must_use]
    pub fn count(self) -> u64 {
        self.disk_bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    /// Kernel sectors of a chunk, as a power of two.
    pub(crate) fn sector_shift(self) -> u32 {
        self.chunk_bytes.trailing_zeros().saturating_sub(9)
    }

    /// Chunks that a range of bytes touches, as far as they exist.
    #[must_use]
    pub fn of_bytes(self, offset: u64, len: u64) -> Range<u64> {
        let chunk = u64::from(self.chunk_bytes);
        let end = offset.saturating_add(len).div_ceil(chunk).min(self.count());
        let start = if len == 0 { end } else { (offset / chunk).min(end) };
        start..end
    }
}

/// A set of chunks of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSet {
    size: ChunkSize,
    words: Vec<u64>,
}

impl ChunkSet {
    /// The empty set.
    ///
    /// # Panics
    /// Never on a machine whose memory could hold a bit for every chunk.
    #[must_use]
    pub fn new(size: ChunkSize) -> Self {
        let words = usize::try_from(size.count().div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            size,
            words: vec![0; words],
        }
    }

    /// All chunks.
    #[must_use]
    pub fn all(size: ChunkSize) -> Self {
        let mut set = Self::new(size);
        set.insert(0..size.count());
        set
    }

    /// The set whose 64 chunks from the first on are the bits of the first word, and so on. Bits behind the last chunk
    /// are left out, words that are missing are empty.
    #[must_use]
    pub fn from_words(size: ChunkSize, words: impl IntoIterator<Item = u64>) -> Self {
        let mut set = Self::new(size);
        for (own, word) in set.words.iter_mut().zip(words) {
            *own = word;
        }
        set.trim();
        set
    }

    fn trim(&mut self) {
        let rest = self.size.count() % 64;
        if rest > 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << rest) - 1;
        }
    }

    /// Size of disk and chunks.
    #[must_use]
    pub fn size(&self) -> ChunkSize {
        self.size
    }

    /// The set as words, as [`Self::from_words`] takes them.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds chunks; those that do not exist are left out.
    pub fn insert(&mut self, chunks: Range<u64>) {
        let end = chunks.end.min(self.size.count());
        let mut at = chunks.start;
        while at < end {
            let stop = ((at / 64 + 1) * 64).min(end);
            let ones = stop - at;
            let mask = if ones == 64 {
                u64::MAX
            } else {
                ((1 << ones) - 1) << (at % 64)
            };
            if let Some(word) = usize::try_from(at / 64)
                .ok()
                .and_then(|index| self.words.get_mut(index))
            {
                *word |= mask;
            }
            at = stop;
        }
    }

    /// Whether a chunk is in it.
    #[must_use]
    pub fn contains(&self, chunk: u64) -> bool {
        usize::try_from(chunk / 64)
            .ok()
            .and_then(|index| self.words.get(index))
            .is_some_and(|word| word >> (chunk % 64) & 1 == 1)
    }

    /// Adds all of another set of a disk of this size.
    pub fn union(&mut self, other: &Self) {
        for (own, word) in self.words.iter_mut().zip(&other.words) {
            *own |= word;
        }
        self.trim();
    }

    /// Number of chunks in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Runs of neighbouring chunks as ranges of bytes, in order; the last ends with the disk.
    pub fn extents(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, true)?;
            let end = self.next(start, false).unwrap_or(self.size.count());
            at = end;
            let chunk = u64::from(self.size.chunk_bytes);
            Some(start * chunk..(end * chunk).min(self.size.disk_bytes))
        })
    }

    /// The first chunk from `at` on that is in the set, or is not.
    fn next(&self, at: u64, wanted: bool) -> Option<u64> {
        let mut index = usize::try_from(at / 64).ok()?;
        let mut ignored = at % 64;
        loop {
            let word = *self.words.get(index)?;
            let word = if wanted { word } else { !word } & (u64::MAX << ignored);
            if word != 0 {
                let chunk = u64::try_from(index).ok()? * 64 + u64::from(word.trailing_zeros());
                return (chunk < self.size.count()).then_some(chunk);
            }
            index += 1;
            ignored = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_that_make_no_sense_are_none() {
        assert!(ChunkSize::new(1 << 30, 65_536).is_some());
        for chunk in [0, 2048, 65_535, 128 << 20] {
            assert_eq!(ChunkSize::new(1 << 30, chunk), None, "{chunk}");
        }
        assert_eq!(ChunkSize::new(0, 65_536), None);
    }

    #[test]
    fn the_last_chunk_ends_with_the_disk() {
        let size = ChunkSize::new(130 * 4096 + 512, 4096).unwrap();
        assert_eq!(size.count(), 131);
        let all = ChunkSet::all(size);
        assert_eq!(all.len(), 131);
        assert!(all.extents().eq(std::iter::once(0..130 * 4096 + 512)));
        assert_eq!(size.of_bytes(130 * 4096, u64::MAX), 130..131);
        assert_eq!(size.of_bytes(4095, 2), 0..2);
        assert_eq!(size.of_bytes(4096, 0), 1..1);
    }

    proptest! {
        #[test]
        fn extents_are_what_was_inserted(
            chunks in 1_u64..400,
            ranges in prop::collection::vec((0_u64..450, 0_u64..70), 0..6),
        ) {
            let size = ChunkSize::new(chunks * 4096 - 512, 4096).unwrap();
            let mut set = ChunkSet::new(size);
            for (start, len) in &ranges {
                set.insert(*start..start + len);
            }
            let wanted: Vec<u64> = (0..chunks)
                .filter(|chunk| ranges.iter().any(|(start, len)| (*start..start + len).contains(chunk)))
                .collect();
            let contained: Vec<u64> = (0..chunks + 100).filter(|chunk| set.contains(*chunk)).collect();
            prop_assert_eq!(&contained, &wanted);
            prop_assert_eq!(set.len(), u64::try_from(wanted.len()).unwrap());
            let mut told = Vec::new();
            for extent in set.extents() {
                prop_assert!(extent.start < extent.end && extent.end <= size.disk_bytes());
                told.extend(extent.start / 4096..extent.end.div_ceil(4096));
            }
            prop_assert_eq!(told, wanted);
            prop_assert_eq!(ChunkSet::from_words(size, set.words().iter().copied()), set);
        }
    }
}
