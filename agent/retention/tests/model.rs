//! Random histories of a store against a simple model, without faults.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use harness::{BLOCKS, DISKS, World};
use mt_retention::testing::Rng;
use mt_retention::{EpochNumber, Offered};

fn range(rng: &mut Rng) -> (usize, usize, usize) {
    let disk = usize::try_from(rng.below(DISKS as u64)).unwrap();
    let block = usize::try_from(rng.below(BLOCKS as u64)).unwrap();
    let count = 1 + usize::try_from(rng.below((BLOCKS - block) as u64)).unwrap();
    (disk, block, count)
}

fn history(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let mut world = World::new(!rng.one_in(4));
    for _ in 0..60 {
        let (disk, block, count) = range(&mut rng);
        world.store.set_packing(rng.one_in(2));
        let done = match rng.below(12) {
            0..=3 => world.write(disk, block, count),
            4 => world.zero(disk, block, count),
            5 | 6 => world.commit(Offered::AsPoint).map(|_| ()),
            7 => world.commit(Offered::No).map(|_| ()),
            8 => world.step_among_others(&mut rng).map(|_| ()),
            9 => {
                world.abort();
                Ok(())
            }
            10 => {
                world.abort();
                world.apply().map_err(|err| err.to_string())?;
                let (power, storage, disks) =
                    (world.power.clone(), world.storage.clone(), world.disks.clone());
                world = world.reopen(power, storage, disks)?;
                Ok(())
            }
            _ => {
                let points = world.model.offered.clone();
                match points.len() {
                    0 => Ok(()),
                    len => {
                        let to = points[usize::try_from(rng.below(len as u64)).unwrap()];
                        world.roll(to)
                    }
                }
            }
        };
        done.map_err(|err| err.to_string())?;
        world.check_points()?;
        world.check_newest(&mut rng)?;
    }
    world.apply().map_err(|err| err.to_string())?;
    world.check()
}

#[test]
fn every_point_reads_as_the_disks_were() {
    for seed in 0..25 {
        if let Err(what) = history(seed) {
            panic!("seed {seed}: {what}");
        }
    }
}

#[test]
fn a_roll_of_a_roll_returns() {
    let mut world = World::new(true);
    world.write(0, 0, 4).unwrap();
    world.commit(Offered::AsPoint).unwrap();
    world.write(0, 2, 4).unwrap();
    world.zero(1, 0, BLOCKS).unwrap();
    let newest = world.commit(Offered::AsPoint).unwrap();
    world.apply().unwrap();
    world.roll(EpochNumber(0)).unwrap();
    world.check().unwrap();
    world.roll(newest).unwrap();
    world.check().unwrap();
    assert_eq!(world.newest(), &world.model.states[&newest]);
}
