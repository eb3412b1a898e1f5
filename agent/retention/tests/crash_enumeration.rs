//! Power loss at every point of small workloads, and of many random ones.
//!
//! A cut leaves any part of what was not flushed, in any order, torn at 512 bytes. Whatever it leaves, the store has to open,
//! and then: what was acknowledged is there, every point on offer reads bit for bit, nothing else changed.
//!
//! Without MT_CRASH_STATES a sample runs, fit for an unoptimised build. With it, in a release build, all workloads of three
//! acts run, then random ones until that many states were looked at:
//!
//! ```text
//! MT_CRASH_STATES=300000 cargo test --release -p mt-retention --test crash_enumeration -- --nocapture
//! ```
//!
//! A failure prints its seed, workload and cut; MT_CRASH_SEED=n runs that random seed alone, at every cut.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use harness::enumerate::{Broken, Counts, Depth, all_cuts, enumerate, random, sequences};

/// Least number of random seeds of a full run.
const SEEDS_MIN: u64 = 2_000;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Works off numbered jobs on all processors; stops at the first broken promise of each.
fn on_all_processors(
    more: impl Fn(u64, &Counts) -> bool + Sync,
    job: impl Fn(u64, &mut Counts) -> Result<(), Broken> + Sync,
) -> (Counts, Vec<Broken>) {
    let next = AtomicU64::new(0);
    let result = Mutex::new((Counts::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let sum = result.lock().unwrap().0;
                    if !more(number, &sum) {
                        return;
                    }
                    let mut counts = Counts::default();
                    let done = job(number, &mut counts);
                    let mut result = result.lock().unwrap();
                    result.0.states += counts.states;
                    result.0.workloads += counts.workloads;
                    if let Err(broken) = done {
                        result.1.push(broken);
                        if result.1.len() >= 5 {
                            return;
                        }
                    }
                }
            });
        }
    });
    result.into_inner().unwrap()
}

#[test]
fn no_crash_breaks_the_promise() {
    if let Some(seed) = setting("MT_CRASH_SEED") {
        let ops = harness::enumerate::random_workload(seed);
        let depth = Depth {
            images: 6,
            nested_every: 1,
        };
        if let Err(broken) = enumerate(&ops, seed, depth, all_cuts, &mut Counts::default()) {
            panic!("{broken}");
        }
        return;
    }
    let start = Instant::now();
    let wanted = setting("MT_CRASH_STATES");
    let (small, small_depth, seeds) = match wanted {
        Some(_) => (
            sequences(3),
            Depth {
                images: 1,
                nested_every: 4,
            },
            SEEDS_MIN,
        ),
        None => (
            sequences(1),
            Depth {
                images: 1,
                nested_every: 3,
            },
            12,
        ),
    };
    let small_count = u64::try_from(small.len()).unwrap();
    let (small_counts, mut broken) = on_all_processors(
        |number, _| number < small_count,
        |number, counts| {
            let ops = &small[usize::try_from(number).unwrap()];
            enumerate(ops, number, small_depth, all_cuts, counts)
        },
    );
    let random_depth = Depth {
        images: 3,
        nested_every: 12,
    };
    let (random_counts, more) = on_all_processors(
        |number, sum| {
            number < seeds || wanted.is_some_and(|wanted| small_counts.states + sum.states < wanted)
        },
        |number, counts| random(number, 12, random_depth, counts),
    );
    broken.extend(more);
    let lost = broken.iter().filter(|b| b.what.contains("acknowledged")).count();
    println!(
        "crash_states={} small_workloads={} small_states={} random_workloads={} random_states={} lost_acks={lost} wrong_points={} \
         seconds={}",
        small_counts.states + random_counts.states,
        small_counts.workloads,
        small_counts.states,
        random_counts.workloads,
        random_counts.states,
        broken.len() - lost,
        start.elapsed().as_secs(),
    );
    for what in &broken {
        println!("{what}");
    }
    assert!(broken.is_empty(), "the first: {}", broken[0]);
}
