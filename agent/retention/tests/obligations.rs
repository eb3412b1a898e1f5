//! The proof obligations of a versioned block log, each by its name. What is tried at every cut and with thousands of seeds is in
//! `crash_enumeration`; here each obligation is shown on its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::enumerate::{Counts, Depth, Op, all_cuts, enumerate, failed_flush, random_workload, rot};
use harness::{BLOCKS, DISKS, SIZE, World, block_len, bytes_of, content, disk_index, spec, table};
use mt_retention::policy::{Policy, WhenFull};
use mt_retention::testing::{Power, Rng, SimDisk};
use mt_retention::{
    Agreement, BLOCK_SIZE, EpochNumber, ObjectName, Offered, OpenOptions, Store, StoreError, digest,
};

fn options() -> OpenOptions {
    OpenOptions {
        disks: Some(table()),
        capacity: 0,
    }
}

fn every_cut(ops: &[Op], images: u64) {
    let depth = Depth {
        images,
        nested_every: 0,
    };
    if let Err(broken) = enumerate(ops, 1, depth, all_cuts, &mut Counts::default()) {
        panic!("{broken}");
    }
}

#[test]
fn o1_ack_means_durable() {
    let mut world = World::new(true);
    world.write(0, 0, 4).unwrap();
    world.zero(1, 1, 3).unwrap();
    let acknowledged = world.commit(Offered::AsPoint).unwrap();
    for seed in 0..100 {
        let opened = world.crash(&mut Rng::new(seed)).unwrap();
        assert_eq!(opened.store.committed(), acknowledged, "seed {seed}");
    }
}

#[test]
fn o2_epochs_are_atomic() {
    every_cut(&[Op::Write, Op::Zero, Op::End, Op::Flush], 4);
}

#[test]
fn o3_base_before_overwrite() {
    // Applying is cut at every write in place; what is on the disk by then has its before-image in the log.
    every_cut(
        &[Op::Flush, Op::Overlap, Op::WriteAt(1, 5, 4), Op::End, Op::Flush],
        8,
    );
}

#[test]
fn o4_points_are_faithful() {
    for seed in 500..520 {
        let depth = Depth {
            images: 0,
            nested_every: 0,
        };
        // Compares every point with the model at the end of the workload.
        let none = |_| Vec::new();
        if let Err(broken) = enumerate(&random_workload(seed), seed, depth, none, &mut Counts::default()) {
            panic!("{broken}");
        }
    }
}

#[test]
fn o5_applying_and_rolling_can_be_repeated() {
    let mut world = World::new(true);
    world.write(0, 0, 6).unwrap();
    let newest = world.commit(Offered::AsPoint).unwrap();
    // Opened again and again before it is noted as applied: applied again and again.
    for seed in 0..5 {
        world.step().unwrap();
        world = world.crash(&mut Rng::new(seed)).unwrap();
    }
    world.roll(EpochNumber(0)).unwrap();
    world.check().unwrap();
    world.roll(EpochNumber(0)).unwrap();
    world.check().unwrap();
    world.roll(newest).unwrap();
    world.check().unwrap();
    assert_eq!(world.newest(), &world.model.states[&newest]);
}

#[test]
fn o6_a_torn_tail_is_found() {
    let mut world = World::new(true);
    world.write(0, 0, 2).unwrap();
    world.commit(Offered::AsPoint).unwrap();
    let before = world.store.committed();
    world.write(0, 1, 3).unwrap();
    let torn = world.commit(Offered::AsPoint).unwrap();
    // Any missing sector of what was appended last: the epoch is whole or is not there.
    let active = ObjectName::Segment(1);
    let mut dropped = 0;
    for sector in 0..128 {
        let power = Power::new();
        let storage = world.storage.copy(&power);
        storage.damage(active, |bytes| bytes[sector * 512..(sector + 1) * 512].fill(0xa5));
        let Ok((store, report)) = Store::open(storage, options()) else {
            continue;
        };
        let committed = store.committed();
        assert!(
            committed == before || committed == torn || !report.damage.is_empty(),
            "sector {sector}"
        );
        dropped += u32::from(committed == before);
    }
    assert!(dropped > 0);
}

#[test]
fn o6_a_segment_of_another_life_is_not_read() {
    let mut world = World::new(true);
    world.write(0, 0, 2).unwrap();
    world.commit(Offered::AsPoint).unwrap();
    // The same bytes under the number of a segment that was never begun.
    let copy = world.storage.copy(&Power::new());
    copy.duplicate(ObjectName::Segment(1), ObjectName::Segment(9));
    let (store, report) = Store::open(copy, options()).unwrap();
    assert_eq!(store.committed(), world.model.acked);
    assert_eq!(report.damage, Vec::<String>::new());
}

#[test]
fn o7_a_failed_flush_is_fatal() {
    for seed in 0..6 {
        failed_flush(seed).unwrap();
    }
}

#[test]
fn o8_other_disks_are_refused() {
    let world = World::new(true);
    for change in 0..3 {
        let mut disks = table();
        match change {
            0 => disks[0].id = "naa.other".to_owned(),
            1 => disks[1].size += 512,
            _ => disks.swap(0, 1),
        }
        let options = OpenOptions {
            disks: Some(disks),
            capacity: 0,
        };
        let found = Store::open(world.storage.copy(&Power::new()), options);
        assert!(
            matches!(found, Err(StoreError::Foreign { .. })),
            "change {change}"
        );
    }
    let mut world = world;
    world.write(0, 0, 1).unwrap();
    world.commit(Offered::AsPoint).unwrap();
    let small = [SimDisk::new(SIZE), SimDisk::new(SIZE - 512)];
    let before = [small[0].content(), small[1].content()];
    let refused = world.store.apply_step(&World::targets(&small), 4096);
    assert!(matches!(refused, Err(StoreError::Foreign { .. })));
    assert_eq!(
        [small[0].content(), small[1].content()],
        before,
        "not a byte was written"
    );
}

#[test]
fn o9_lag_is_known_and_recovery_is_what_lagged() {
    let mut world = World::new(true);
    for _ in 0..4 {
        world.write(0, 0, 2).unwrap();
        world.commit(Offered::AsPoint).unwrap();
    }
    assert_eq!(world.store.lag_bytes(), 8 * BLOCK_SIZE as u64);
    let (_, report) = Store::open(world.storage.copy(&Power::new()), options()).unwrap();
    assert_eq!(report.to_apply, 4);
    world.apply().unwrap();
    assert_eq!(world.store.lag_bytes(), 0);
}

#[test]
fn o10_a_source_that_was_lost_finds_its_place() {
    let mut world = World::new(true);
    world.write(0, 0, 2).unwrap();
    let acknowledged = world.commit(Offered::AsPoint).unwrap();
    // Half an epoch, then silence.
    world.write(0, 1, 2).unwrap();
    let uuid = world.store.uuid();
    let mut world = world.crash(&mut Rng::new(3)).unwrap();
    let compare = |world: &World, generation, confirmed| {
        world
            .store
            .compare_with_source(uuid, generation, EpochNumber(confirmed))
    };
    assert_eq!(compare(&world, 1, acknowledged.0), Agreement::Agreed);
    assert_eq!(compare(&world, 1, 0), Agreement::SourceBehind);
    assert_eq!(compare(&world, 1, acknowledged.0 + 1), Agreement::StoreBehind);
    assert_eq!(
        world.store.compare_with_source([0; 16], 1, acknowledged),
        Agreement::OtherStore
    );
    world.raise().unwrap();
    assert_eq!(compare(&world, 1, acknowledged.0), Agreement::Fenced);
    assert_eq!(compare(&world, 3, acknowledged.0), Agreement::StoreBehind);
}

#[test]
fn any_flipped_bit_is_noticed_or_unused() {
    let (mut noticed, mut unused) = (0, 0);
    for seed in 1_000..1_012 {
        let counts = rot(seed, 60).unwrap();
        noticed += counts.0;
        unused += counts.1;
    }
    println!("flips_noticed={noticed} flips_unused={unused} wrong_reads=0");
    assert!(noticed > 20);
}

#[test]
fn a_full_store_goes_on_at_fifty_different_places() {
    let policy = Policy {
        minimum_age_ms: 0,
        when_full: WhenFull::GoOnWithoutRollback,
        ..Policy::default()
    };
    let mut met_full = 0;
    for place in 0..50_u64 {
        let mut world = World::with_capacity(true, (7 << 16) + place * 4096 * 3);
        let mut rng = Rng::new(place);
        for round in 0..30 {
            met_full += write_until_it_fits(&mut world, &policy, &mut rng, place + round);
            let newest = world.model.acked;
            assert!(
                world.store.status().used <= world.store.status().capacity,
                "place {place}"
            );
            world.model.offered = world.store.points().map(|point| point.epoch).collect();
            assert!(
                world.model.offered.contains(&newest),
                "place {place}: the newest point stays"
            );
            world.check().unwrap();
        }
    }
    assert!(met_full >= 50, "it was full only {met_full} times");
}

/// One epoch, committed and applied, making room as often as needed; returns how often that was.
fn write_until_it_fits(world: &mut World, policy: &Policy, rng: &mut Rng, salt: u64) -> u64 {
    let mut image = world.newest().clone();
    let mut met = 0;
    let epoch = world.store.begin_epoch().unwrap();
    for _ in 0..2 {
        let disk = usize::try_from(rng.below(DISKS as u64)).unwrap();
        let block = usize::try_from(rng.below(BLOCKS as u64)).unwrap();
        let tag = (epoch.0 << 16) + rng.below(1 << 16) + 1;
        image[disk][block] = tag;
        let data = content(tag, block_len(block));
        let offset = (block * BLOCK_SIZE) as u64;
        met += fit(world, policy, |world| {
            world.store.write(disk_index(disk), offset, &data, digest(&data))
        });
    }
    let time = i64::try_from(salt).unwrap();
    met += fit(world, policy, |world| {
        world.store.commit_epoch(spec(time), Offered::AsPoint).map(|_| ())
    });
    world.model.acked = epoch;
    world.model.states.insert(epoch, image);
    met += fit(world, policy, World::apply);
    met
}

fn fit(
    world: &mut World,
    policy: &Policy,
    mut call: impl FnMut(&mut World) -> Result<(), StoreError>,
) -> u64 {
    for met in 0..50 {
        match call(world) {
            Ok(()) => return met,
            Err(StoreError::Full { .. }) => {
                let made = world.store.make_room(1 << 40, policy).unwrap();
                if made.stopped {
                    // What is complete and not on the disks holds space that comes back when it is.
                    let applied = world.apply();
                    assert!(applied.is_ok(), "stuck: {made:?}, {applied:?}");
                }
            }
            Err(err) => panic!("{err}"),
        }
    }
    panic!("it stays full");
}

#[test]
fn images_of_the_model_are_what_disks_hold() {
    let world = World::new(false);
    assert_eq!(world.disks[0].content(), bytes_of(&world.newest()[0]));
}

/// What broke: rolls that found no room were given up, and what they had appended was never dropped, since its epoch was
/// newer than any that would ever be applied. Each try left less, until points could neither be pinned nor deleted.
/// Phases: rolls fill a store whose points may not go; then pins, deletions and the marks of rolls still work, any number of
/// times; after a power cut as well; and with leave to drop points everything goes on.
#[test]
fn rolls_that_fill_a_store_leave_a_way_out() {
    for (limited, place) in [
        (true, 0),
        (true, 5),
        (true, 11),
        (false, 0),
        (false, 3),
        (false, 8),
    ] {
        let bytes = (12 << 16) + place * 4096 * 3;
        let mut world = World::with_capacity(true, if limited { bytes } else { 0 });
        world.storage.set_capacity((!limited).then_some(bytes));
        let held = Policy {
            when_full: WhenFull::Stop,
            minimum_age_ms: i64::MAX,
            ..Policy::default()
        };
        for _ in 0..3 {
            world.write(0, 0, BLOCKS).unwrap();
            world.write(1, 0, BLOCKS).unwrap();
            world.commit(Offered::AsPoint).unwrap();
            world.apply().unwrap();
        }
        let oldest = EpochNumber(0);
        let mut full = 0;
        for round in 0..60 {
            if !roll_or_give_up(&mut world, oldest, &held, round) {
                full += 1;
            }
            let points: Vec<EpochNumber> = world.store.points().map(|point| point.epoch).collect();
            for point in &points {
                world.store.set_pinned(*point, true).unwrap();
                world.store.set_pinned(*point, false).unwrap();
            }
        }
        assert!(
            full > 30,
            "limited: {limited}, place {place}: it was full {full} times"
        );
        for round in 0..40 {
            let epoch = world.store.points().next().unwrap().epoch;
            for _ in 0..20 {
                world.store.set_pinned(epoch, round % 2 == 0).unwrap();
                world.store.set_pinned(epoch, round % 2 != 0).unwrap();
            }
        }
        let epoch = world.store.points().next().unwrap().epoch;
        world.store.set_pinned(epoch, false).unwrap();
        world.model.offered = world.store.points().map(|point| point.epoch).collect();
        world.check().unwrap();
        // Opened again, it is as full as before, and says so.
        let mut rng = Rng::new(place);
        world = world.crash(&mut rng).unwrap();
        if limited {
            world.store.set_capacity(bytes);
        } else {
            world.storage.set_capacity(Some(bytes));
        }
        assert!(
            !world.store.has_room().unwrap(),
            "limited: {limited}, place {place}"
        );
        assert!(!roll_or_give_up(&mut world, oldest, &held, 99));
        // The oldest is deleted by hand, and what that frees is enough to go on.
        let free = Policy {
            minimum_age_ms: 0,
            ..held
        };
        while world.store.points().count() > 2 {
            let oldest = world.store.points().next().unwrap().epoch;
            world.store.delete_point(oldest, 1 << 40, &free).unwrap();
        }
        world.model.offered = world.store.points().map(|point| point.epoch).collect();
        let oldest = world.model.offered[0];
        assert!(
            roll_or_give_up(&mut world, oldest, &free, 100),
            "limited: {limited}, place {place}: {:?}",
            world.store.status()
        );
        world.model.offered = world.store.points().map(|point| point.epoch).collect();
        world.check().unwrap();
    }
}

/// A roll that makes room as the policy allows; `false` when it was given up, and then nothing changed.
fn roll_or_give_up(world: &mut World, to: EpochNumber, policy: &Policy, round: i64) -> bool {
    let before = world.newest().clone();
    let mut roll = world.store.begin_roll(to, spec(round)).unwrap();
    let marked = world.store.committed();
    world.model.states.entry(marked).or_insert(before);
    world.model.acked = marked;
    loop {
        match world.store.roll_step(&mut roll, 3 * BLOCK_SIZE as u64) {
            Ok(step) if step.complete => break,
            Ok(_) => {}
            Err(StoreError::Full { .. }) => {
                if world.store.make_room(1 << 40, policy).unwrap().stopped {
                    world.store.abort_epoch();
                    return false;
                }
            }
            Err(err) => panic!("{err}"),
        }
    }
    loop {
        match world.store.finish_roll(&roll, spec(round)) {
            Ok(_) => break,
            Err(StoreError::Full { .. }) => {
                if world.store.make_room(1 << 40, policy).unwrap().stopped {
                    world.store.abort_epoch();
                    return false;
                }
            }
            Err(err) => panic!("{err}"),
        }
    }
    world.model.acked = roll.epoch();
    let image = world.model.states[&to].clone();
    world.model.states.insert(roll.epoch(), image);
    world.apply().unwrap();
    true
}
