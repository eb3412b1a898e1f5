// SPDX-License-Identifier: MIT OR Apache-2.0
//! A whole store, opened from bytes that are not what was written.
//!
//! The store is always the same: two small disks, some epochs, sealed segments with before-images, a segment that is being
//! written. The input says what is done to its bytes. A store is too long and too well checked for random bytes to become
//! one.

mod medium;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use mt_retention::{
    BLOCK_SIZE, Consistency, CreateOptions, Disk, DiskIndex, EpochNumber, ObjectName, Offered, OpenOptions,
    PointSpec, SEGMENT_SIZE_MIN, Store, StoreError, TargetDisk, check_superblocks, digest,
};

use medium::{Medium, Ram, Shared};

/// Blocks of each disk; the last is cut to 512 bytes.
const BLOCKS: usize = 10;
const SIZE: usize = (BLOCKS - 1) * BLOCK_SIZE + 512;
const DISKS: u16 = 2;
/// Most changes that one input makes.
const PATCHES_MAX: usize = 24;

/// A change of the bytes of a store. The object is counted among all there are, and behind them the summaries of the
/// catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patch {
    /// Other bytes in place of those that are there.
    Write {
        /// Which object.
        object: u8,
        /// Where, bytes from its beginning.
        at: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A sector of 512 bytes from elsewhere.
    Copy {
        /// Which object.
        object: u8,
        /// Which sector of it.
        sector: u16,
        /// From which object.
        from: u8,
        /// From which sector of that.
        from_sector: u16,
    },
    /// A sector of zeros.
    Zero {
        /// Which object.
        object: u8,
        /// Which sector of it.
        sector: u16,
    },
    /// The object ends early.
    Cut {
        /// Which object.
        object: u8,
        /// Bytes that are left.
        len: u32,
    },
    /// The object is there once more, as a segment of another number.
    Name {
        /// Which object.
        object: u8,
        /// The number.
        segment: u64,
    },
    /// The object is gone.
    Remove {
        /// Which object.
        object: u8,
    },
}

/// The changes that an input means: each a byte for its kind, a byte for its object, and its fields, little-endian; the
/// bytes of a write have their count (u8) in front.
#[must_use]
pub fn patches(mut rest: &[u8]) -> Vec<Patch> {
    let mut patches = Vec::new();
    while let [kind, object, behind @ ..] = rest {
        let object = *object;
        let (patch, behind) = match (kind % 6, behind) {
            (0, [a, b, c, d, len, behind @ ..]) => {
                let len = usize::from(*len).min(behind.len());
                let (bytes, behind) = behind.split_at(len);
                let at = u32::from_le_bytes([*a, *b, *c, *d]);
                let bytes = bytes.to_vec();
                (Patch::Write { object, at, bytes }, behind)
            }
            (1, [a, b, from, c, d, behind @ ..]) => {
                let patch = Patch::Copy {
                    object,
                    sector: u16::from_le_bytes([*a, *b]),
                    from: *from,
                    from_sector: u16::from_le_bytes([*c, *d]),
                };
                (patch, behind)
            }
            (2, [a, b, behind @ ..]) => {
                let sector = u16::from_le_bytes([*a, *b]);
                (Patch::Zero { object, sector }, behind)
            }
            (3, [a, b, c, d, behind @ ..]) => {
                let len = u32::from_le_bytes([*a, *b, *c, *d]);
                (Patch::Cut { object, len }, behind)
            }
            (4, behind) => (Patch::Remove { object }, behind),
            (5, [a, b, c, d, e, f, g, h, behind @ ..]) => {
                let segment = u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                (Patch::Name { object, segment }, behind)
            }
            _ => break,
        };
        if patches.len() == PATCHES_MAX {
            break;
        }
        patches.push(patch);
        rest = behind;
    }
    patches
}

/// Damage: every point that is on offer reads as the disks were, or is an error.
///
/// Nothing can tell that the end of the newest segment was never written from that it was lost, so what is done to that one
/// segment is a single small change of what was flushed before the last time.
pub fn store(bytes: &[u8]) {
    let base = base();
    let mut medium = base.medium.clone();
    let mut newest_changed = false;
    for patch in patches(bytes) {
        if medium.object_of(&patch) == Some(ObjectName::Segment(base.newest)) {
            let is_small = matches!(&patch, Patch::Write { at, bytes, .. }
                if bytes.len() <= 64 && *at as usize + bytes.len() <= base.last_flush);
            if !is_small || newest_changed {
                continue;
            }
            newest_changed = true;
        }
        medium.apply(&patch);
    }
    examine(&medium, Some(&base.contents));
}

/// Forgery: the same with checksums that fit. What is read may be wrong then; nothing may panic, hang or take too much.
pub fn forged(bytes: &[u8]) {
    let base = base();
    let mut medium = base.medium.clone();
    for patch in patches(bytes) {
        medium.apply(&patch);
    }
    medium.reseal(&base.medium);
    examine(&medium, None);
}

/// Opens the store, reads every point, checks every segment, and reads once more.
fn examine(medium: &Medium, contents: Option<&BTreeMap<EpochNumber, Vec<Vec<u8>>>>) {
    let base = base();
    let _ = check_superblocks(medium);
    let options = OpenOptions {
        disks: contents.map(|_| table()),
        capacity: 0,
    };
    let Ok((mut store, _)) = Store::open_with(medium.clone(), options, medium) else {
        return;
    };
    read_points(&mut store, base, contents);
    for seq in store.segments() {
        let _ = store.check_segment(seq);
    }
    read_points(&mut store, base, contents);
    // It goes on where it can: what it writes then must not make right what is wrong.
    let block = vec![0x77; BLOCK_SIZE];
    let go_on = |store: &mut Store<Medium>| -> Result<(), StoreError> {
        store.begin_epoch()?;
        store.write(DiskIndex(0), 0, &block, digest(&block))?;
        store.commit_epoch(spec(90), Offered::AsPoint)?;
        Ok(())
    };
    let _ = go_on(&mut store);
}

fn read_points(
    store: &mut Store<Medium>,
    base: &Base,
    contents: Option<&BTreeMap<EpochNumber, Vec<Vec<u8>>>>,
) {
    let disks: Vec<&dyn TargetDisk> = base.disks.iter().map(|disk| disk as &dyn TargetDisk).collect();
    let points: Vec<EpochNumber> = store.points().map(|point| point.epoch).take(32).collect();
    for point in points {
        for disk in 0..DISKS {
            let mut found = vec![0; SIZE];
            if store
                .read_at(point, DiskIndex(disk), 0, &mut found, &disks)
                .is_err()
            {
                continue;
            }
            if let Some(contents) = contents {
                let expected = contents
                    .get(&point)
                    .and_then(|disks| disks.get(usize::from(disk)));
                assert!(
                    expected == Some(&found),
                    "point {point} reads wrong on disk {disk}"
                );
            }
        }
    }
}

fn table() -> Vec<Disk> {
    (0..DISKS)
        .map(|disk| Disk {
            id: format!("naa.{disk}"),
            size: SIZE as u64,
        })
        .collect()
}

fn spec(time: i64) -> PointSpec {
    PointSpec {
        consistency: Consistency::Crash,
        source_time_ms: time,
        received_time_ms: time,
        name: format!("point {time}"),
        tags: vec!["a=b".to_owned()],
    }
}

/// The store before anything is done to it.
struct Base {
    medium: Medium,
    disks: Vec<Ram>,
    contents: BTreeMap<EpochNumber, Vec<Vec<u8>>>,
    newest: u64,
    /// Bytes of the newest segment that were flushed before the last time.
    last_flush: usize,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| make().unwrap_or_else(|error| panic!("the store cannot be made: {error}")))
}

fn make() -> Result<Base, StoreError> {
    let disks: Vec<Ram> = (0..DISKS)
        .map(|disk| Ram::filled(0x10 + u8::try_from(disk).unwrap_or(0)))
        .collect();
    let targets: Vec<&dyn TargetDisk> = disks.iter().map(|disk| disk as &dyn TargetDisk).collect();
    let shared = Shared::default();
    let options = CreateOptions {
        uuid: [7; 16],
        generation: 1,
        disks: table(),
        segment_size: SEGMENT_SIZE_MIN,
        capacity: 0,
        initial_point: Some(spec(0)),
    };
    let mut store = Store::create(shared.clone(), options)?;
    let mut now: Vec<Vec<u8>> = disks.iter().map(Ram::content).collect();
    let mut contents = BTreeMap::new();
    if let Some(point) = store.points().next() {
        contents.insert(point.epoch, now.clone());
    }
    for round in 0..7_usize {
        store.begin_epoch()?;
        for (disk, block, count) in [(0_u16, round % 8, 2), (1, (round * 3) % 7, 1)] {
            let tag = u8::try_from(0x80 + round * 4 + usize::from(disk)).unwrap_or(0);
            let bytes = vec![tag; count * BLOCK_SIZE];
            let offset = block * BLOCK_SIZE;
            store.write(DiskIndex(disk), offset as u64, &bytes, digest(&bytes))?;
            now[usize::from(disk)][offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        let offset = 8 * BLOCK_SIZE;
        store.zero(DiskIndex(1), offset as u64, (SIZE - offset) as u64)?;
        now[1][offset..].fill(0);
        let done = store.commit_epoch(spec(1 + i64::try_from(round).unwrap_or(0)), Offered::AsPoint)?;
        contents.insert(done.epoch, now.clone());
        while !store.apply_step(&targets, 8 << 20)?.up_to_date {}
        if round == 4 {
            store.drop_points(&[done.epoch])?;
            contents.remove(&done.epoch);
        }
    }
    let segments = store.segments();
    let newest = segments.last().copied().unwrap_or_default();
    let summaries = store.sealed_segments().into_iter();
    let summaries = summaries
        .filter_map(|seq| Some((seq, store.summary(seq)?)))
        .collect();
    drop(store);
    let mut medium = shared.medium();
    medium.summaries = summaries;
    let bytes = medium
        .objects
        .get(&ObjectName::Segment(newest))
        .cloned()
        .unwrap_or_default();
    // Each record says up to where the segment was flushed when it was made, in blocks.
    let last = bytes.chunks(BLOCK_SIZE).rfind(|block| block.starts_with(b"MTRR"));
    let flushed = last.and_then(|block| block.get(56..60)?.first_chunk());
    let last_flush = flushed.map_or(0, |field| u32::from_le_bytes(*field) as usize * BLOCK_SIZE);
    let base = Base {
        medium,
        disks,
        contents,
        newest,
        last_flush,
    };
    assert!(
        segments.len() >= 3 && base.last_flush > 0 && base.contents.len() == 7,
        "a store worth damaging"
    );
    Ok(base)
}

/// The parts of the store's format as they lie in it, each with its kind in front as [`mt_retention::fuzz::parts`] wants it,
/// and a name: what the corpus is made of.
#[must_use]
pub fn retention_parts() -> Vec<(String, Vec<u8>)> {
    let medium = &base().medium;
    let mut parts = Vec::new();
    let mut put = |name: String, kind: u8, bytes: &[u8]| {
        let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        parts.push((name, [&[kind], &bytes[..len]].concat()));
    };
    for (name, bytes) in &medium.objects {
        let ObjectName::Segment(seq) = name else {
            put(format!("{name}"), 0, bytes);
            continue;
        };
        // Several of a kind say the same.
        if *seq > 2 {
            continue;
        }
        let blocks: Vec<&[u8]> = bytes.chunks(BLOCK_SIZE).collect();
        put(format!("header-{seq}"), 1, blocks[0]);
        put(format!("state-{seq}"), 6, &blocks[0][64..]);
        for (at, block) in blocks
            .iter()
            .enumerate()
            .filter(|(_, block)| block.starts_with(b"MTRR"))
        {
            put(format!("head-{seq}-{at}"), 2, block);
            match block[6] {
                3 => put(format!("commit-{seq}-{at}"), 4, &block[128..]),
                5 => put(format!("points-{seq}-{at}"), 5, &block[128..]),
                _ => {}
            }
        }
        if let [.., footer, trailer] = blocks.as_slice()
            && trailer.starts_with(b"MTRT")
        {
            put(format!("trailer-{seq}"), 3, &[&trailer[..100], footer].concat());
        }
    }
    for (seq, summary) in medium.summaries.iter().take(2) {
        // Behind the head that holds a trailer of its own.
        put(format!("summary-{seq}"), 7, &summary[116..]);
        put(format!("whole-summary-{seq}"), 7, summary);
    }
    parts
}
