//! Every byte of a small store is changed, one after the other: a check notices each, and names just the points that depend on
//! it; no point ever reads as something else than it was.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeSet;

use harness::{World, disk_index, table};
use mt_retention::testing::{Power, SimStorage};
use mt_retention::{
    BLOCK_SIZE, Catalogue, EpochNumber, NoCatalogue, ObjectName, Offered, OpenOptions, Overlay, Storage,
    Store, check_superblocks,
};

/// A store with sealed segments, before-images, points that were dropped, and a segment that is being written.
fn world() -> World {
    let mut world = World::new(true);
    let mut epochs = Vec::new();
    for round in 0..9 {
        world.write(0, round % 8, 2).unwrap();
        world.write(1, (round * 3) % 7, 1).unwrap();
        world.zero(1, 8, 2).unwrap();
        epochs.push(world.commit(Offered::AsPoint).unwrap());
        world.apply().unwrap();
    }
    world.drop_point(epochs[2]).unwrap();
    world
}

fn options() -> OpenOptions {
    OpenOptions {
        disks: Some(table()),
        capacity: 0,
    }
}

fn bytes_of(storage: &SimStorage, object: ObjectName, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    storage.read(object, 0, &mut bytes).unwrap();
    bytes
}

/// Bytes of an object that mean anything: behind the last record of the segment being written lies nothing yet.
fn meaningful(object: ObjectName, bytes: &[u8], sealed: &[u64]) -> usize {
    match object {
        ObjectName::Segment(seq) if !sealed.contains(&seq) => {
            bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count()
        }
        ObjectName::Spare => 0,
        _ => bytes.len(),
    }
}

#[derive(Debug)]
struct Look {
    noticed: bool,
    /// Points that the check names.
    named: BTreeSet<EpochNumber>,
    /// Points that cannot be read.
    unreadable: BTreeSet<EpochNumber>,
}

/// Opens a store without touching it, reads every point, opens it once more and checks all of it.
fn look(world: &World, storage: SimStorage) -> Look {
    let targets = World::targets(&world.disks);
    // This opening knows nothing of what the check will find.
    let (mut fresh, _) = Store::open(Overlay::new(storage.clone()), options()).unwrap();
    let mut unreadable = BTreeSet::new();
    for point in &world.model.offered {
        for index in 0..harness::DISKS {
            let mut found = vec![0; harness::SIZE];
            match fresh.read_at(*point, disk_index(index), 0, &mut found, &targets) {
                Err(_) => {
                    unreadable.insert(*point);
                }
                Ok(()) => assert_eq!(
                    found,
                    harness::bytes_of(&world.model.states[point][index]),
                    "point {point} reads wrong"
                ),
            }
        }
    }
    let mut noticed = !check_superblocks(&storage).unwrap().is_empty();
    let (mut store, report) = Store::open(Overlay::new(storage), options()).unwrap();
    noticed |= !report.damage.is_empty();
    for seq in store.segments() {
        noticed |= !store.check_segment(seq).unwrap().findings.is_empty();
    }
    let mut named: BTreeSet<EpochNumber> = store
        .points()
        .map(|point| point.epoch)
        .filter(|point| store.damage_of(*point).is_some())
        .collect();
    for point in &world.model.offered {
        if store.point(*point).is_err() {
            // The commit of its epoch was in a record that is lost; then no other point is trusted either.
            assert!(!report.damage.is_empty(), "point {point} is lost without a word");
            assert!(store.points().all(|other| named.contains(&other.epoch)));
            named.insert(*point);
        }
    }
    Look {
        noticed,
        named,
        unreadable,
    }
}

#[test]
fn every_flipped_byte_is_noticed_and_costs_only_the_points_that_need_it() {
    let world = world();
    let sealed: Vec<u64> = {
        let (store, _) = Store::open(Overlay::new(world.storage.clone()), options()).unwrap();
        let newest = store.segments().pop().unwrap();
        store
            .segments()
            .into_iter()
            .filter(|seq| *seq != newest)
            .collect()
    };
    assert!(sealed.len() >= 2, "{sealed:?}");
    let whole = look(&world, world.storage.clone());
    assert!(
        !whole.noticed && whole.named.is_empty() && whole.unreadable.is_empty(),
        "{whole:?}"
    );
    let (mut flips, mut read, mut points_lost, mut all_lost) = (0, 0, 0, 0);
    let rotten = world.storage.copy(&Power::new());
    let open = || Store::open(Overlay::new(rotten.clone()), options()).unwrap().0;
    let mut store = open();
    let sealed_in_view = store.sealed_segments();
    let (newest, len) = world.storage.list().unwrap().into_iter().max().unwrap();
    let bytes = bytes_of(&world.storage, newest, len);
    let last_record = bytes
        .chunks(BLOCK_SIZE)
        .rfind(|block| block.starts_with(b"MTRR"))
        .unwrap();
    // Each record says up to where the segment was flushed when it was made, in blocks.
    let last_flush = u32::from_le_bytes(last_record[56..60].try_into().unwrap());
    let last_flush = usize::try_from(last_flush).unwrap() * BLOCK_SIZE;
    for (object, len) in world.storage.list().unwrap() {
        let bytes = bytes_of(&world.storage, object, len);
        for at in 0..meaningful(object, &bytes, &sealed) {
            let flip = || rotten.damage(object, |bytes| bytes[at] ^= 1 << (at % 8));
            flip();
            let findings = match object {
                ObjectName::Segment(seq) => store.check_segment(seq).unwrap().findings,
                _ => check_superblocks(&rotten).unwrap(),
            };
            assert!(!findings.is_empty(), "{object} at 0x{at:x} was not noticed");
            flips += 1;
            // All bytes of a block go the same way; opening anew and reading all points takes longer than noticing.
            if at % 512 == 77 {
                let found = look(&world, rotten.clone());
                // What the last flush wrote is taken for torn by a crash by who opens the store after that: no later record
                // says that it was there. Only the source knows, and says so, when that held an epoch.
                let is_last = object == newest && at >= last_flush;
                assert!(found.noticed || is_last, "{object} at 0x{at:x} was not noticed");
                read += 1;
                let offered = world.model.offered.len();
                points_lost += found.named.len();
                all_lost += u32::from(found.named.len() == offered);
                assert_eq!(
                    found.named, found.unreadable,
                    "{object} at 0x{at:x}: the check names these, and those cannot be read"
                );
                let is_sealed = matches!(object, ObjectName::Segment(seq) if sealed.contains(&seq));
                if is_sealed || matches!(object, ObjectName::Super(_)) {
                    assert!(
                        found.named.len() < offered,
                        "{object} at 0x{at:x} costs every point"
                    );
                }
            }
            flip();
            // A store that met a damaged footer goes on without it.
            if store.sealed_segments() != sealed_in_view {
                store = open();
            }
        }
    }
    println!(
        "flips={flips} noticed={flips} opened_and_read_for={read} points_lost={points_lost} lost_all={all_lost}"
    );
    assert!(points_lost > 0);
}

#[test]
fn a_store_that_lost_a_record_says_so_for_ever() {
    // A record's head in the newest segment is lost: what it said may have mattered to every point. Once a footer was
    // written over it, made of what was left, and the next opening but one offered all points as if nothing had been.
    let mut world = World::new(true);
    for block in 0..4 {
        world.write(0, block, 1).unwrap();
        world.commit(Offered::AsPoint).unwrap();
        world.apply().unwrap();
    }
    let storage = world.storage.copy(&Power::new());
    let (newest, len) = storage.list().unwrap().into_iter().max().unwrap();
    let bytes = bytes_of(&storage, newest, len);
    let heads: Vec<usize> = (0..bytes.len())
        .step_by(BLOCK_SIZE)
        .filter(|at| bytes[*at..].starts_with(b"MTRR"))
        .collect();
    storage.damage(newest, |bytes| bytes[heads[2] + 130] ^= 4);
    for round in 0..4 {
        let (mut store, report) = Store::open(storage.clone(), options()).unwrap();
        assert!(!report.damage.is_empty(), "round {round}");
        let points: Vec<EpochNumber> = store.points().map(|point| point.epoch).collect();
        assert!(
            points.iter().all(|point| store.damage_of(*point).is_some()),
            "round {round}"
        );
        // It goes on, into new segments, and reclaims nothing.
        store.begin_epoch().unwrap();
        let block = [round; BLOCK_SIZE];
        store
            .write(disk_index(0), 0, &block, mt_retention::digest(&block))
            .unwrap();
        store.commit_epoch(harness::spec(90), Offered::AsPoint).unwrap();
        assert_eq!(store.reclaim(100).unwrap().segments, 0);
    }
}

#[test]
fn a_sealed_segment_that_was_cut_never_passes_for_whole() {
    // Where a segment had lost its trailer, it was taken for whole when what was left behind its last whole record had just the
    // length of a footer and a trailer. Cut in the middle of a record, it often had. The images behind the cut were missed by
    // nobody: points that need them were on offer, and read as the disks are now.
    let world = world();
    let (store, _) = Store::open(Overlay::new(world.storage.clone()), options()).unwrap();
    // Opening has sealed the newest, and nothing tells that its end was lost.
    let newest = store.segments().pop().unwrap();
    let sealed = store.sealed_segments().into_iter().filter(|seq| *seq != newest);
    let sealed: Vec<u64> = sealed.collect();
    drop(store);
    let (mut cuts, mut named) = (0, 0);
    for seq in sealed {
        let object = ObjectName::Segment(seq);
        let objects = world.storage.list().unwrap();
        let len = objects.iter().find(|(name, _)| *name == object).unwrap().1;
        for blocks in 0..usize::try_from(len).unwrap() / BLOCK_SIZE {
            for damaged in [
                None,
                Some(blocks.saturating_sub(1)),
                Some(blocks.saturating_sub(2)),
            ] {
                let storage = world.storage.copy(&Power::new());
                storage.damage(object, |bytes| {
                    bytes.truncate(blocks * BLOCK_SIZE);
                    if let Some(at) = damaged
                        && let Some(block) = bytes.get_mut(at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE)
                    {
                        block[..512].fill(0);
                    }
                });
                // Every point that can be read is as it was; see there.
                let found = look(&world, storage);
                assert!(found.noticed, "{object} of {blocks} blocks");
                assert!(
                    found.unreadable.is_subset(&found.named),
                    "{object} of {blocks} blocks: {found:?}"
                );
                cuts += 1;
                named += found.named.len();
            }
        }
    }
    println!("cuts={cuts} points_named={named}");
    assert!(cuts > 100 && named > 0);
}

#[test]
fn segments_that_are_gone_below_a_header_that_rotted_are_missed() {
    // The header of the newest segment names those before it. Where that had rotted and some of them were gone as well, nobody
    // knew that there had been any: damage of the header was told, and points that need what was in them read as the disks are.
    let world = world();
    let (store, _) = Store::open(Overlay::new(world.storage.clone()), options()).unwrap();
    let segments = store.segments();
    drop(store);
    let newest = *segments.last().unwrap();
    let mut tried = 0;
    for from in 1..segments.len() - 1 {
        for to in from..segments.len() - 1 {
            let mut storage = world.storage.copy(&Power::new());
            storage.damage(ObjectName::Segment(newest), |bytes| bytes[44] ^= 1);
            for gone in &segments[from..=to] {
                storage.remove(ObjectName::Segment(*gone)).unwrap();
            }
            // Every point that can be read is as it was; see there.
            let found = look(&world, storage);
            assert!(
                found.noticed && !found.named.is_empty(),
                "{from} to {to}: {found:?}"
            );
            assert!(
                found.unreadable.is_subset(&found.named),
                "{from} to {to}: {found:?}"
            );
            tried += 1;
        }
    }
    assert!(tried > 1, "{segments:?}");
}

#[test]
fn numbers_that_nobody_gave_are_damage_and_not_an_endless_count() {
    // Behind checksums that fit, as somebody with the volume in hand can make them: an epoch of 2^63 was counted up to, disks
    // that are not there were indexed, and a file of the largest number there is had a successor.
    let world = world();
    let newest = world.storage.list().unwrap().into_iter().max().unwrap().0;
    for (at, value) in [
        (64 + 8, u64::MAX),
        (64 + 8, 1 << 62),
        (64 + 16, u64::MAX),
        (64 + 24, u64::MAX),
    ] {
        let storage = world.storage.copy(&Power::new());
        storage.damage(newest, |bytes| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            mt_retention::fuzz::reseal(newest, bytes);
        });
        let error = Store::open(storage, options()).err().unwrap();
        assert!(error.to_string().contains("further apart"), "{error}");
    }
    // A commit of such an epoch, and extents of it.
    let storage = world.storage.copy(&Power::new());
    storage.damage(newest, |bytes| {
        let head = (0..bytes.len() / BLOCK_SIZE)
            .map(|block| block * BLOCK_SIZE)
            .find(|at| bytes[*at..].starts_with(b"MTRR") && bytes[at + 6] == 3)
            .unwrap();
        bytes[head + 40..head + 48].copy_from_slice(&(1_u64 << 62).to_le_bytes());
        mt_retention::fuzz::reseal(newest, bytes);
    });
    let error = Store::open(storage, options()).err().unwrap();
    assert!(error.to_string().contains("whose number nobody gave"), "{error}");
    let storage = world.storage.copy(&Power::new());
    storage.duplicate(newest, ObjectName::Segment(u64::MAX));
    let error = Store::open(storage, options()).err().unwrap();
    assert!(error.to_string().contains("the largest there is"), "{error}");
}

#[test]
fn a_footer_of_disks_that_are_not_there_is_not_followed() {
    // With a catalogue the footer is read late, and its extents were not held against the disks.
    let world = world();
    let storage = world.storage.copy(&Power::new());
    let (plain, _) = Store::open(Overlay::new(storage.clone()), options()).unwrap();
    let seq = plain.sealed_segments()[0];
    let object = ObjectName::Segment(seq);
    storage.damage(object, |bytes| {
        let footer = bytes.len() - 2 * BLOCK_SIZE;
        bytes[footer..footer + 2].copy_from_slice(&4100_u16.to_le_bytes());
        mt_retention::fuzz::reseal(object, bytes);
    });
    let (store, _) = Store::open(Overlay::new(storage.clone()), options()).unwrap();
    assert!(
        store
            .status()
            .damage
            .iter()
            .any(|what| what.contains("out of bounds"))
    );
    // The summary of what is there now: blocks of such a disk.
    let mut summary = plain.summary(seq).unwrap();
    let trailer = bytes_of(&storage, object, {
        let objects = storage.list().unwrap();
        objects.iter().find(|(name, _)| *name == object).unwrap().1
    });
    let trailer = &trailer[trailer.len() - BLOCK_SIZE..];
    summary[16..116].copy_from_slice(&trailer[..100]);
    summary[120..122].copy_from_slice(&4100_u16.to_le_bytes());
    mt_retention::fuzz::reseal_summary(&mut summary);
    let catalogue = Kept(vec![(seq, summary)]);
    let (store, report) = Store::open_with(Overlay::new(storage), options(), &catalogue).unwrap();
    assert!(
        report.catalogue[0].contains("that its disks do not have"),
        "{report:?}"
    );
    assert!(
        store
            .status()
            .damage
            .iter()
            .any(|what| what.contains("out of bounds"))
    );
}

#[test]
fn a_superblock_that_is_lost_is_written_again() {
    let mut world = world();
    world.raise().unwrap();
    for slot in [0, 1] {
        for how in 0..3 {
            let storage = world.storage.copy(&Power::new());
            let object = ObjectName::Super(slot);
            match how {
                0 => storage.damage(object, |bytes| bytes[44] ^= 1),
                1 => storage.damage(object, |bytes| bytes.truncate(100)),
                _ => storage.lose(object),
            }
            assert_eq!(check_superblocks(&storage).unwrap().len(), 1);
            let (store, report) = Store::open(storage.clone(), options()).unwrap();
            assert_eq!(report.repaired.len(), 1, "{report:?}");
            assert_eq!(store.generation(), world.model.generation);
            drop(store);
            assert_eq!(check_superblocks(&storage).unwrap(), []);
            let (_, report) = Store::open(storage, options()).unwrap();
            assert_eq!(report.repaired, Vec::<String>::new());
        }
    }
}

/// Summaries as a catalogue would keep them.
struct Kept(Vec<(u64, Vec<u8>)>);

impl Catalogue for Kept {
    fn summary(&self, segment: u64) -> Option<Vec<u8>> {
        let found = self.0.iter().find(|(seq, _)| *seq == segment);
        found.map(|(_, summary)| summary.clone())
    }
}

fn kept<S: Storage>(store: &Store<S>) -> Kept {
    let sealed = store.sealed_segments().into_iter();
    Kept(sealed.map(|seq| (seq, store.summary(seq).unwrap())).collect())
}

#[test]
fn a_catalogue_changes_nothing_but_the_time_it_takes() {
    let world = world();
    let open = |catalogue: &dyn Catalogue| {
        Store::open_with(Overlay::new(world.storage.clone()), options(), catalogue).unwrap()
    };
    let (plain, report) = open(&NoCatalogue);
    assert_eq!((report.summaries, report.catalogue.len()), (0, 0));
    let catalogue = kept(&plain);
    let (quick, report) = open(&catalogue);
    let sealed = catalogue.0.len() as u64;
    assert!(
        report.summaries >= 2 && report.summaries < sealed + 1,
        "{report:?}"
    );
    assert!(quick.points().eq(plain.points()));
    assert_eq!(quick.status(), plain.status());
    let again = kept(&quick);
    assert!(
        again.0 == catalogue.0,
        "what a summary says is what a footer says"
    );

    // Any byte of it that is not right is noticed, and the footer is read instead.
    let (seq, summary) = &catalogue.0[0];
    for at in 0..summary.len() {
        let mut wrong = summary.clone();
        wrong[at] ^= 1 << (at % 8);
        let (store, report) = open(&Kept(vec![(*seq, wrong)]));
        assert_eq!((report.summaries, report.catalogue.len()), (0, 1), "byte {at}");
        assert!(store.points().eq(plain.points()));
    }
    // Of another segment, of another store, or cut.
    let other = catalogue.0[1].1.clone();
    for wrong in [other, summary[..50].to_vec(), Vec::new()] {
        let (_, report) = open(&Kept(vec![(*seq, wrong)]));
        assert_eq!((report.summaries, report.catalogue.len()), (0, 1));
    }
}

#[test]
fn a_footer_that_rots_behind_a_catalogue_costs_nothing() {
    let world = world();
    let storage = world.storage.copy(&Power::new());
    let (plain, _) = Store::open(Overlay::new(storage.clone()), options()).unwrap();
    let catalogue = kept(&plain);
    let object = ObjectName::Segment(catalogue.0[0].0);
    storage.damage(object, |bytes| {
        let footer = bytes.len() - 2 * BLOCK_SIZE;
        bytes[footer + 5] ^= 1;
    });
    let (mut store, report) = Store::open_with(Overlay::new(storage), options(), &catalogue).unwrap();
    assert_eq!(report.damage, Vec::<String>::new(), "it was not read");
    let targets = World::targets(&world.disks);
    for point in &world.model.offered {
        for index in 0..harness::DISKS {
            let mut found = vec![0; harness::SIZE];
            store
                .read_at(*point, disk_index(index), 0, &mut found, &targets)
                .unwrap();
            assert_eq!(found, harness::bytes_of(&world.model.states[point][index]));
        }
    }
    assert_eq!(store.status().damage.len(), 1, "{:?}", store.status().damage);
}

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let world = world();
    let storage = world.storage.copy(&Power::new());
    for slot in [0, 1] {
        storage.damage(ObjectName::Super(slot), |bytes| bytes[8] = 9);
    }
    let before = storage.list().unwrap();
    let error = Store::open(storage.clone(), options()).err().unwrap();
    assert!(error.to_string().contains("format 9"), "{error}");
    assert!(error.hint().unwrap().contains("newer agent"));
    assert_eq!(storage.list().unwrap(), before);
}
