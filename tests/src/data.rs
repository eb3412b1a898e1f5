//! Content of disks: the same from the same seed, and told apart by digest.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// One mebibyte.
pub const MIB: u64 = 1024 * 1024;

/// Random numbers that are the same in every run (SplitMix64, Steele and others 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator; the seed names the whole sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; the bias of the remainder does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// Fills with bytes that do not compress.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A vector of `len` such bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// How an image is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Random everywhere.
    Random,
    /// Mebibytes of random bytes and of zeros by turns, the zeros as holes.
    HalfZero,
}

/// Writes `size` bytes over `path` from its beginning; what is zero stays as it was (a hole in a new file).
pub fn fill(path: &Path, size: u64, how: Fill, seed: u64) {
    let file = File::options()
        .write(true)
        .open(path)
        .expect("the image can be written");
    let mut random = Random::new(seed);
    let mut piece = vec![0; usize::try_from(MIB).expect("a mebibyte fits")];
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(MIB.min(size - offset)).expect("bounded by a mebibyte");
        if how == Fill::Random || (offset / MIB) % 2 == 1 {
            random.fill(&mut piece[..len]);
            file.write_all_at(&piece[..len], offset)
                .expect("the image can be written");
        }
        offset += len as u64;
    }
    file.sync_all().expect("the image can be synced");
}

/// Overwrites `count` distinct blocks of `block` bytes with random content; answers how many bytes that were.
pub fn change_blocks(path: &Path, size: u64, block: u64, count: u64, seed: u64) -> u64 {
    let file = File::options()
        .write(true)
        .open(path)
        .expect("the image can be written");
    let mut random = Random::new(seed);
    let mut chosen = BTreeSet::new();
    while (chosen.len() as u64) < count.min(size / block) {
        chosen.insert(random.below(size / block));
    }
    let len = usize::try_from(block).expect("blocks are small");
    for number in &chosen {
        file.write_all_at(&random.bytes(len), number * block)
            .expect("the image can be written");
    }
    file.sync_all().expect("the image can be synced");
    chosen.len() as u64 * block
}

/// Writes bytes at an offset.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options()
        .write(true)
        .open(path)
        .expect("the file can be written");
    file.write_all_at(bytes, offset)
        .and_then(|()| file.sync_all())
        .expect("the file can be written");
}

/// Reads `len` bytes at an offset.
pub fn read_at(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut bytes, offset))
        .expect("the file can be read");
    bytes
}

/// Digest of the first `size` bytes.
pub fn digest(path: &Path, size: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).expect("the file can be read");
    let copied = std::io::copy(&mut file.take(size), &mut hasher).expect("the file can be read");
    assert_eq!(copied, size, "{} is shorter than {size} bytes", path.display());
    hasher.finalize()
}

/// Fails unless the first `size` bytes of both are the same; names the first place where they are not.
pub fn assert_same(left: &Path, right: &Path, size: u64) {
    if let Some(offset) = first_difference(left, right, size) {
        panic!(
            "{} and {} differ, first at offset {offset:#x} of {size} bytes",
            left.display(),
            right.display()
        );
    }
}

/// The first offset at which they differ.
pub fn first_difference(left: &Path, right: &Path, size: u64) -> Option<u64> {
    let open = |path: &Path| File::open(path).expect("the file can be read");
    let (left, right) = (open(left), open(right));
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(MIB.min(size - offset)).expect("bounded by a mebibyte");
        let (mut a, mut b) = (vec![0; len], vec![0; len]);
        left.read_exact_at(&mut a, offset)
            .expect("the left file can be read");
        right
            .read_exact_at(&mut b, offset)
            .expect("the right file can be read");
        if let Some(place) = a.iter().zip(&b).position(|(a, b)| a != b) {
            return Some(offset + place as u64);
        }
        offset += len as u64;
    }
    None
}
