//! Each planted bug has to be caught by the same checks that the real code passes.

mod harness;

use harness::enumerate::{Counts, Depth, failed_flush, random, rot};
use mt_retention::planted::Bug;

/// Runs everything until something breaks.
fn suite(seeds: u64) -> Option<String> {
    let depth = Depth {
        images: 4,
        nested_every: 0,
    };
    for seed in 0..seeds {
        if let Err(broken) = random(seed, 12, depth, &mut Counts::default()) {
            return Some(broken.to_string());
        }
        if let Err(what) = failed_flush(seed) {
            return Some(format!("failed flush, seed {seed}: {what}"));
        }
        if let Err(what) = rot(seed, 24) {
            return Some(format!("rot, seed {seed}: {what}"));
        }
    }
    None
}

#[test]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let caught = std::thread::spawn(move || {
            Bug::plant(Some(bug));
            suite(150)
        })
        .join();
        match caught {
            Ok(None) => missed.push(bug),
            Ok(Some(how)) => println!("{bug:?}: {how}"),
            // A check inside the code or the model stopped it.
            Err(_) => println!("{bug:?}: panicked"),
        }
    }
    println!("planted_bugs={} missed={}", Bug::ALL.len(), missed.len());
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn without_a_bug_the_same_checks_pass() {
    assert_eq!(suite(10), None);
}
