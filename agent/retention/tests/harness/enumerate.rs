//! Workloads, cut at every point; what is left has to keep the promise.

use std::fmt;

use mt_retention::testing::{Power, Rng};
use mt_retention::{EpochNumber, Offered, OpenOptions, Storage, Store, StoreError};

use super::{BLOCKS, DISKS, World, table};

/// One act of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Write,
    Overlap,
    Zero,
    /// Everything complete goes to the disks.
    Flush,
    End,
    Prune,
    Thin,
    Roll,
    Cancel,
    /// For random workloads: any range.
    WriteAt(usize, usize, usize),
    ZeroAt(usize, usize, usize),
    EndWithoutPoint,
    Step,
    RollTo(u64),
    Pin(u64),
    Raise,
    /// One step of getting space back, while everything else goes on.
    Reclaim,
}

pub const SMALL: [Op; 9] = [
    Op::Write,
    Op::Overlap,
    Op::Zero,
    Op::Flush,
    Op::End,
    Op::Prune,
    Op::Thin,
    Op::Roll,
    Op::Cancel,
];

/// A broken promise, and how to see it again.
#[derive(Debug)]
pub struct Broken {
    pub what: String,
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.how, self.what)
    }
}

/// What was looked at.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub states: u64,
    pub workloads: u64,
}

fn act(world: &mut World, op: Op) -> Result<(), StoreError> {
    let points = world.model.offered.clone();
    let point = |number: u64| {
        points
            .get(usize::try_from(number).unwrap() % points.len().max(1))
            .copied()
    };
    match op {
        Op::Write => world.write(0, 2, 2),
        Op::Overlap => world.write(0, 3, 2),
        Op::Zero => world.zero(1, 1, 3),
        Op::WriteAt(disk, block, count) => world.write(disk, block, count),
        Op::ZeroAt(disk, block, count) => world.zero(disk, block, count),
        Op::Flush => world.apply(),
        Op::Step => world.step().map(|_| ()),
        Op::End => world.commit(Offered::AsPoint).map(|_| ()),
        Op::EndWithoutPoint => world.commit(Offered::No).map(|_| ()),
        Op::Prune if points.len() > 1 => {
            world.drop_point(points[0])?;
            world.store.reclaim(100).map(|_| ())
        }
        Op::Thin if points.len() > 2 => {
            world.drop_point(points[1])?;
            world.store.reclaim(100).map(|_| ())
        }
        Op::Prune | Op::Thin => world.store.reclaim(100).map(|_| ()),
        Op::Roll => match points.first() {
            Some(oldest) => world.roll(*oldest),
            None => Ok(()),
        },
        Op::RollTo(number) => match point(number) {
            Some(to) => world.roll(to),
            None => Ok(()),
        },
        Op::Pin(number) => match point(number) {
            Some(epoch) => {
                world.store.set_pinned(epoch, true)?;
                world.store.set_pinned(epoch, false)
            }
            None => Ok(()),
        },
        Op::Raise => world.raise(),
        Op::Reclaim => world.store.reclaim_step(100).map(|_| ()),
        Op::Cancel => {
            world.abort();
            Ok(())
        }
    }
}

/// A flush of storage fails once, and the one after it would succeed: nothing may be acknowledged any more, and what was
/// acknowledged before is there after power loss.
pub fn failed_flush(seed: u64) -> Result<(), String> {
    for sync in 0..40 {
        let mut world = begin().map_err(|err| format!("history: {err}"))?;
        world.power.fail_sync_at(world.power.syncs() + sync);
        let mut failed = false;
        for op in random_workload(seed)
            .iter()
            .chain(&[Op::Write, Op::End, Op::Write, Op::End])
        {
            match act(&mut world, *op) {
                Ok(()) => {}
                Err(StoreError::Storage(_) | StoreError::Latched { .. }) => failed = true,
                Err(err) => return Err(format!("flush {sync}: {err}")),
            }
            if failed {
                if world.store.latched().is_none() {
                    return Err(format!("flush {sync} failed, and the store goes on"));
                }
                break;
            }
        }
        world
            .crash(&mut Rng::new(seed ^ sync))
            .map_err(|what| format!("flush {sync}: {what}"))?;
        if !failed {
            break;
        }
    }
    Ok(())
}

/// Bytes of segments change behind the store's back: every read is right or an error.
pub fn rot(seed: u64, flips: u64) -> Result<(u64, u64), String> {
    let mut rng = Rng::new(seed);
    let mut world = begin().map_err(|err| err.to_string())?;
    for op in random_workload(seed) {
        act(&mut world, op).map_err(|err| err.to_string())?;
    }
    world.abort();
    world.apply().map_err(|err| err.to_string())?;
    let (mut noticed, mut unused) = (0, 0);
    let objects = world.storage.list().map_err(|err| err.to_string())?;
    for _ in 0..flips {
        let (object, len) = objects[usize::try_from(rng.below(objects.len() as u64)).unwrap()];
        if len == 0 {
            continue;
        }
        let at = usize::try_from(rng.below(len)).unwrap();
        let bit = 1 << rng.below(8);
        let power = Power::new();
        let storage = world.storage.copy(&power);
        storage.damage(object, |bytes| bytes[at] ^= bit);
        let disks: Vec<_> = world.disks.iter().map(|disk| disk.copy(&power)).collect();
        match world
            .look(storage, &disks)
            .map_err(|what| format!("{object} byte {at} bit {bit}: {what}"))?
        {
            true => noticed += 1,
            false => unused += 1,
        }
    }
    Ok((noticed, unused))
}

/// A machine with a little history: two points, the newer one not on the disks yet.
fn begin() -> Result<World, StoreError> {
    let mut world = World::new(true);
    world.write(0, 0, 3)?;
    world.write(1, 2, 2)?;
    world.commit(Offered::AsPoint)?;
    world.apply()?;
    world.write(0, 1, 4)?;
    world.zero(1, 0, 3)?;
    world.commit(Offered::AsPoint)?;
    Ok(world)
}

/// Does the workload; `cut` is counted from where the history ends.
fn run(ops: &[Op], cut: Option<u64>) -> Result<(World, u64, bool), String> {
    let mut world = begin().map_err(|err| format!("history: {err}"))?;
    let start = world.power.changes();
    if let Some(cut) = cut {
        world.power.cut_at(start + cut);
    }
    let mut result = Ok(());
    for op in ops.iter().chain(&[Op::End, Op::Flush]) {
        result = act(&mut world, *op);
        if result.is_err() {
            break;
        }
    }
    let dead = world.power.is_dead();
    match result {
        Err(err) if !dead => Err(format!("without a fault: {err}")),
        _ => {
            let changes = world.power.changes() - start;
            Ok((world, changes, dead))
        }
    }
}

/// How thoroughly to look.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// Images of what power loss leaves, for each cut.
    pub images: u64,
    /// Each so-manieth image is cut again at every point of its recovery; 0 for none.
    pub nested_every: u64,
}

/// Cuts a workload at the given points.
pub fn enumerate(
    ops: &[Op],
    seed: u64,
    depth: Depth,
    choose: impl Fn(u64) -> Vec<u64>,
    counts: &mut Counts,
) -> Result<(), Broken> {
    let broken = |cut: Option<u64>, image: u64, second: Option<u64>, what: String| Broken {
        what,
        how: format!("seed {seed}, workload {ops:?}, cut {cut:?}, image {image}, second cut {second:?}"),
    };
    let (mut whole, changes, _) = run(ops, None).map_err(|what| broken(None, 0, None, what))?;
    whole.check().map_err(|what| broken(None, 0, None, what))?;
    counts.workloads += 1;
    for cut in choose(changes) {
        let (world, _, _) = run(ops, Some(cut)).map_err(|what| broken(Some(cut), 0, None, what))?;
        for image in 0..depth.images {
            let again = |salt: u64| Rng::new(seed ^ (cut << 20) ^ (image << 40) ^ (salt << 50));
            counts.states += 1;
            let (power, storage, disks) = world.wreck(&mut again(0));
            let mut opened = world
                .reopen(power.clone(), storage, disks)
                .map_err(|what| broken(Some(cut), image, None, what))?;
            let recovery = power.changes();
            if image == 0 {
                go_on(&mut opened)
                    .map_err(|what| broken(Some(cut), image, None, format!("afterwards: {what}")))?;
            }
            if depth.nested_every == 0 || !(cut + image).is_multiple_of(depth.nested_every) {
                continue;
            }
            for second in 0..recovery {
                counts.states += 1;
                let (power, storage, disks) = world.wreck(&mut again(0));
                power.cut_at(second);
                // It may fail anywhere; what counts is what the next one finds.
                let options = OpenOptions {
                    disks: Some(table()),
                    capacity: 0,
                };
                if let Ok((mut store, _)) = Store::open(storage.clone(), options) {
                    let _ = store.apply_all(&World::targets(&disks), 5 * 4096);
                }
                let mut rng = again(1 + second);
                let power = Power::new();
                let storage = storage.crash(&mut rng, &power);
                let disks = disks.iter().map(|disk| disk.crash(&mut rng, &power)).collect();
                world
                    .reopen(power, storage, disks)
                    .map_err(|what| broken(Some(cut), image, Some(second), what))?;
            }
        }
    }
    Ok(())
}

/// After recovery life goes on.
fn go_on(world: &mut World) -> Result<(), String> {
    let mut more = || -> Result<(), StoreError> {
        world.write(0, 4, 2)?;
        world.write(1, 0, 2)?;
        world.commit(Offered::AsPoint)?;
        world.apply()
    };
    more().map_err(|err| err.to_string())?;
    world.check()
}

/// All sequences of up to `len` acts out of [`SMALL`].
pub fn sequences(len: usize) -> Vec<Vec<Op>> {
    let mut all: Vec<Vec<Op>> = vec![Vec::new()];
    let mut last = all.clone();
    for _ in 0..len {
        last = last
            .iter()
            .flat_map(|head| {
                SMALL.iter().map(|op| {
                    let mut ops = head.clone();
                    ops.push(*op);
                    ops
                })
            })
            .collect();
        all.extend(last.iter().cloned());
    }
    all
}

/// A random workload.
pub fn random_workload(seed: u64) -> Vec<Op> {
    let mut rng = Rng::new(seed);
    let len = 4 + rng.below(14);
    (0..len)
        .map(|_| {
            let disk = usize::try_from(rng.below(DISKS as u64)).unwrap();
            let block = usize::try_from(rng.below(BLOCKS as u64)).unwrap();
            let count = 1 + usize::try_from(rng.below((BLOCKS - block).min(5) as u64)).unwrap();
            match rng.below(22) {
                0..=4 => Op::WriteAt(disk, block, count),
                5 => Op::ZeroAt(disk, block, count),
                6..=8 => Op::End,
                9 => Op::EndWithoutPoint,
                10 => Op::Flush,
                11 => Op::Step,
                12 => Op::RollTo(rng.next_u64() >> 8),
                13 => Op::Pin(rng.next_u64() >> 8),
                14 => Op::Thin,
                15 | 16 => Op::Prune,
                17 => Op::Raise,
                18..=20 => Op::Reclaim,
                _ => Op::Cancel,
            }
        })
        .collect()
}

/// A random workload, cut at up to `cuts` random points.
pub fn random(seed: u64, cuts: u64, depth: Depth, counts: &mut Counts) -> Result<(), Broken> {
    let ops = random_workload(seed);
    let choose = |changes: u64| {
        let mut rng = Rng::new(seed ^ 0x5eed);
        (0..cuts.min(changes)).map(|_| rng.below(changes)).collect()
    };
    enumerate(&ops, seed, depth, choose, counts)
}

/// Every cut.
pub fn all_cuts(changes: u64) -> Vec<u64> {
    (0..changes).collect()
}

/// For the number of an epoch in a message.
pub fn number(epoch: EpochNumber) -> u64 {
    epoch.0
}
