//! The durable state against a model: whatever is done to it, closed and opened in between, it answers as a map would.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use mt_agent::model::{NewPair, PairId, PairName, SeedingMark};
use mt_agent::state::{State, StateError};
use mt_blockdev::scsi::ScsiId;
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};

const SIZE: u64 = 1 << 40;

fn scsi_id(number: u8) -> ScsiId {
    format!("naa.6000c29a71e02b4c9d118e55037fab{number:02x}")
        .parse()
        .expect("it can be parsed")
}

fn new_pair(name: u8, disk: u8) -> NewPair {
    NewPair {
        name: PairName::new("db01", &name.to_string()).expect("the state answers"),
        scsi_id: scsi_id(disk),
        size: SIZE,
        logical_block_size: 512,
        overwrite: false,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add { name: u8, disk: u8, overwrite: bool },
    Remove { name: u8 },
    Adopt { name: u8 },
    FixSize { name: u8, size: u64 },
    Begin { name: u8, seeding: u8, size: u64 },
    Mark { name: u8, seeding: u8, durable: u64 },
    Complete { name: u8, seeding: u8 },
    Reopen,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct ModelPair {
    disk: u8,
    overwrite: bool,
    adopted: bool,
    protected_size: Option<u64>,
    seeding: Option<(u8, u64, u64, bool)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (name, disk, seeding) = (0..4_u8, 0..4_u8, 0..3_u8);
    let bytes = 0..(1_u64 << 50);
    let step = prop_oneof![
        4 => (name.clone(), disk, any::<bool>())
            .prop_map(|(name, disk, overwrite)| Step::Add { name, disk, overwrite }),
        1 => name.clone().prop_map(|name| Step::Remove { name }),
        1 => name.clone().prop_map(|name| Step::Adopt { name }),
        1 => (name.clone(), bytes.clone()).prop_map(|(name, size)| Step::FixSize { name, size }),
        2 => (name.clone(), seeding.clone(), bytes.clone())
            .prop_map(|(name, seeding, size)| Step::Begin { name, seeding, size }),
        4 => (name.clone(), seeding.clone(), bytes)
            .prop_map(|(name, seeding, durable)| Step::Mark { name, seeding, durable }),
        1 => (name, seeding).prop_map(|(name, seeding)| Step::Complete { name, seeding }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

/// Carries a step out on the model; the refusals of which the state must answer one, none when it must do it.
fn apply(model: &mut BTreeMap<u8, ModelPair>, step: &Step) -> Vec<&'static str> {
    match *step {
        Step::Add {
            name,
            disk,
            overwrite,
        } => {
            let exists = model
                .get(&name)
                .is_some_and(|pair| pair.disk != disk)
                .then_some("exists");
            let taken = model
                .iter()
                .any(|(other, pair)| *other != name && pair.disk == disk)
                .then_some("taken");
            let refusals: Vec<&str> = exists.into_iter().chain(taken).collect();
            if !refusals.is_empty() {
                return refusals;
            }
            if let Some(pair) = model.get_mut(&name) {
                pair.overwrite |= overwrite;
            } else {
                model.insert(
                    name,
                    ModelPair {
                        disk,
                        overwrite,
                        ..ModelPair::default()
                    },
                );
            }
        }
        Step::Remove { name } => drop(model.remove(&name)),
        Step::Adopt { name } => model
            .get_mut(&name)
            .into_iter()
            .for_each(|pair| pair.adopted = true),
        Step::FixSize { name, size } => {
            model
                .get_mut(&name)
                .into_iter()
                .for_each(|pair| pair.protected_size = Some(size));
        }
        Step::Begin { name, seeding, size } => {
            model
                .get_mut(&name)
                .into_iter()
                .for_each(|pair| pair.seeding = Some((seeding, 0, size, false)));
        }
        Step::Mark {
            name,
            seeding,
            durable,
        } => {
            if let Some(pair) = model.get_mut(&name)
                && let Some(mark) = pair.seeding.as_mut().filter(|mark| mark.0 == seeding)
            {
                mark.1 = durable;
            }
        }
        Step::Complete { name, seeding } => {
            if let Some(pair) = model.get_mut(&name)
                && let Some(mark) = pair.seeding.as_mut().filter(|mark| mark.0 == seeding)
            {
                (mark.1, mark.3) = (mark.2, true);
            }
        }
        Step::Reopen => {}
    }
    Vec::new()
}

fn ask(state: &State, step: &Step) -> Option<&'static str> {
    let id_of = |name: u8| -> Option<PairId> {
        let name = PairName::new("db01", &name.to_string()).expect("the state answers");
        state.pair(&name).expect("the state answers").map(|pair| pair.id)
    };
    match *step {
        Step::Add {
            name,
            disk,
            overwrite,
        } => {
            let new = NewPair {
                overwrite,
                ..new_pair(name, disk)
            };
            match state.add_pair(&new, Timestamp::UNIX_EPOCH) {
                Ok(_) => {}
                Err(StateError::PairExists { .. }) => return Some("exists"),
                Err(StateError::DiskTaken { .. }) => return Some("taken"),
                Err(error) => panic!("{error}"),
            }
        }
        Step::Remove { name } => {
            state
                .remove_pair(&PairName::new("db01", &name.to_string()).expect("the state answers"))
                .expect("the state answers");
        }
        Step::Adopt { name } => id_of(name)
            .into_iter()
            .for_each(|id| state.set_adopted(id).expect("the state answers")),
        Step::FixSize { name, size } => {
            id_of(name)
                .into_iter()
                .for_each(|id| state.set_protected_size(id, size).expect("the state answers"));
        }
        Step::Begin { name, seeding, size } => {
            id_of(name).into_iter().for_each(|id| {
                state
                    .begin_seeding(id, [seeding; 16], size, "here")
                    .expect("the state answers")
            });
        }
        Step::Mark {
            name,
            seeding,
            durable,
        } => {
            id_of(name).into_iter().for_each(|id| {
                state
                    .store_mark(id, [seeding; 16], durable)
                    .expect("the state answers")
            });
        }
        Step::Complete { name, seeding } => {
            id_of(name).into_iter().for_each(|id| {
                state
                    .complete_seeding(id, [seeding; 16])
                    .expect("the state answers")
            });
        }
        Step::Reopen => {}
    }
    None
}

fn seen(state: &State) -> BTreeMap<u8, ModelPair> {
    let pairs = state.pairs().expect("the state answers").into_iter();
    let model = |mark: SeedingMark| (mark.seeding_id[0], mark.durable, mark.size, mark.complete);
    pairs
        .map(|pair| {
            let seeding = state.seeding(pair.id).expect("the state answers").map(model);
            let disk = (0..4)
                .find(|disk| scsi_id(*disk) == pair.scsi_id)
                .expect("the state answers");
            let (overwrite, adopted, protected_size) = (pair.overwrite, pair.adopted, pair.protected_size);
            (
                pair.name.disk.parse().expect("it can be parsed"),
                ModelPair {
                    disk,
                    overwrite,
                    adopted,
                    protected_size,
                    seeding,
                },
            )
        })
        .collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 32, ..Default::default() })]

    #[test]
    fn the_state_does_what_a_map_would(steps in steps()) {
        // Memory, where there is some: each step is synced, and a disk would make this a test of patience.
        let shared_memory = Path::new("/dev/shm");
        let folder = match shared_memory.is_dir() {
            true => tempfile::tempdir_in(shared_memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let mut model = BTreeMap::new();
        let mut state = Some(State::open(folder.path()).unwrap());
        for step in &steps {
            if matches!(step, Step::Reopen) {
                drop(state.take());
                state = Some(State::open(folder.path()).unwrap());
            }
            let open = state.as_ref().unwrap();
            let (said, legal) = (ask(open, step), apply(&mut model, step));
            proptest::prop_assert!(said.map_or(legal.is_empty(), |said| legal.contains(&said)), "{step:?}: {said:?}");
            proptest::prop_assert_eq!(&seen(open), &model, "after {:?}", step);
        }
    }
}
