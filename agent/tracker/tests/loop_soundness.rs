//! Whether a copy that follows the marks of a disk under load ends equal to it.
//!
//! A reader that takes the marks while writes are under way may read before they arrive. On a loop device such reads wait
//! behind the writes in one worker, and every tracker passes; so the load runs in a control group of its own, which gives
//! it a worker of its own, and reads overtake it. The same rig catches trackers that mark at one side only.

mod support;

use std::process::Child;

use mt_tracker::kernel::DiskFolder;
use mt_tracker::proof::{Doubt, Verdict};
use mt_tracker::tracker::{Options, Planted, Tracker};
use support::{Copy, Disk, Group, MIB, settle, skip, tracker_or_skip};

const DISK: u64 = 64 * MIB;
const CHUNK: u32 = 4096;
/// Runs of the tracker as it is.
const RUNS: u64 = 30;
/// Writes of one run; with every turn of the copier between two of them it is one chance of the race.
const WRITES: u64 = 10_000;

/// What one run showed.
#[derive(Debug)]
#[expect(dead_code, reason = "all of it is printed")]
struct Outcome {
    stale: usize,
    harvests: u32,
    verdict: Verdict,
    unseen: u64,
}

/// Starts random writes of 4 KiB, 64 at a time.
fn load(disk: &Disk, group: &Group, writes: u64, seed: u64) -> Child {
    let args = [
        "--name=load".to_owned(),
        format!("--filename={}", disk.text()),
        "--rw=randwrite".to_owned(),
        "--bs=4k".to_owned(),
        "--direct=1".to_owned(),
        "--ioengine=libaio".to_owned(),
        "--iodepth=64".to_owned(),
        "--norandommap".to_owned(),
        "--refill_buffers".to_owned(),
        format!("--randseed={seed}"),
        format!("--io_size={}", writes * 4096),
    ];
    group.spawn("fio", &args)
}

/// Writes, follows the marks meanwhile, then compares.
fn race(tracker: &mut Tracker, disk: &Disk, group: &Group, writes: u64, seed: u64) -> Outcome {
    tracker
        .add(&disk.name, disk.number, CHUNK)
        .expect("a loop device can be tracked");
    let mut copy = Copy::of(disk);
    let mut load = load(disk, group, writes, seed);
    let mut harvests = 0;
    let status = loop {
        let harvest = tracker.harvest(disk.number).expect("the disk is tracked");
        copy.follow(&harvest.changed);
        harvests += 1;
        if let Some(status) = load.try_wait().expect("the load can be waited for") {
            break status;
        }
    };
    assert!(status.success(), "fio: {status}");
    settle(tracker, disk, &mut copy);
    Outcome {
        stale: copy.stale().len(),
        harvests,
        verdict: tracker.verdict(disk.number).expect("the disk is tracked"),
        unseen: tracker.counters(disk.number).expect("the disk is tracked").unseen,
    }
}

#[test]
fn a_copy_that_follows_the_marks_is_never_stale() {
    let test = "a_copy_that_follows_the_marks_is_never_stale";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &["fio"]) else {
        return;
    };
    let Some(group) = Group::new() else {
        return skip(test, "no control group for block I/O can be made");
    };
    let disk = Disk::new(DISK, &[]);
    for run in 0..RUNS {
        let outcome = race(&mut tracker, &disk, &group, WRITES, run);
        println!("run {run}: {outcome:?}");
        assert_eq!(outcome.stale, 0, "run {run}: {outcome:?}");
        assert_eq!(outcome.verdict, Verdict::Complete, "run {run}");
    }
}

/// Disks are busy when they are added, and when they are asked about.
#[test]
fn a_disk_under_load_is_added_and_believed() {
    let test = "a_disk_under_load_is_added_and_believed";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &["fio"]) else {
        return;
    };
    let Some(group) = Group::new() else {
        return skip(test, "no control group for block I/O can be made");
    };
    let disk = Disk::new(DISK, &[]);
    let mut complete = 0;
    for round in 0..3 {
        let mut load = load(&disk, &group, 4 * WRITES, round);
        // Until the load has begun, which shows in the kernel's counts.
        let folder = DiskFolder::new("/sys".as_ref(), &disk.name);
        let idle = folder.counts().unwrap().write;
        while folder.counts().unwrap().write == idle && load.try_wait().unwrap().is_none() {}
        tracker.add(&disk.name, disk.number, CHUNK).unwrap();
        let mut copy = Copy::of(&disk);
        let mut asked = 0;
        while load.try_wait().unwrap().is_none() {
            copy.follow(&tracker.harvest(disk.number).unwrap().changed);
            asked += 1;
            match tracker.verdict(disk.number).unwrap() {
                Verdict::Complete => complete += 1,
                // No loss: no exact moment was found within the time for it.
                Verdict::Doubt(Doubt::NeverSettled(_)) => {}
                other => panic!("round {round}: {other:?}"),
            }
        }
        settle(&mut tracker, &disk, &mut copy);
        assert_eq!(copy.stale(), [0_usize; 0], "round {round}");
        assert_eq!(
            tracker.verdict(disk.number).unwrap(),
            Verdict::Complete,
            "round {round}"
        );
        println!("round {round}: asked {asked} times under load, {complete} times complete so far");
    }
    assert!(complete > 0, "no answer under load");
}

fn caught(test: &str, planted: Planted) {
    let options = Options {
        planted,
        ..Options::default()
    };
    let Some(mut tracker) = tracker_or_skip(test, &options, &["fio"]) else {
        return;
    };
    let Some(group) = Group::new() else {
        return skip(test, "no control group for block I/O can be made");
    };
    let disk = Disk::new(DISK, &[]);
    for run in 0..60 {
        let outcome = race(&mut tracker, &disk, &group, WRITES, run);
        println!("run {run}: {outcome:?}");
        if outcome.stale > 0 {
            return;
        }
    }
    panic!("the rig did not catch {planted:?} in 60 runs");
}

/// A reader takes the mark of the issue before the write arrives, and nothing marks it again.
#[test]
fn a_tracker_that_marks_at_issue_only_is_caught() {
    let planted = Planted {
        no_completion_marks: true,
        no_inflight: true,
        ..Planted::default()
    };
    caught("a_tracker_that_marks_at_issue_only_is_caught", planted);
}

/// The note of a write under way is what is left of it when its completion is not seen.
#[test]
fn a_tracker_that_marks_at_completion_only_is_caught() {
    let planted = Planted {
        no_issue_marks: true,
        no_inflight: true,
        skip_completion_each: 1000,
        ..Planted::default()
    };
    caught("a_tracker_that_marks_at_completion_only_is_caught", planted);
}

/// With both marks a lost completion is still a stale block where the reader was early; the notes make up for it.
#[test]
fn lost_completions_are_made_up_for_under_load() {
    let test = "lost_completions_are_made_up_for_under_load";
    let options = Options {
        planted: Planted {
            skip_completion_each: 20,
            ..Planted::default()
        },
        ..Options::default()
    };
    let Some(mut tracker) = tracker_or_skip(test, &options, &["fio"]) else {
        return;
    };
    let Some(group) = Group::new() else {
        return skip(test, "no control group for block I/O can be made");
    };
    let disk = Disk::new(DISK, &[]);
    let outcome = race(&mut tracker, &disk, &group, WRITES, 1);
    println!("{outcome:?}");
    assert_eq!(outcome.stale, 0, "{outcome:?}");
    assert_eq!(outcome.verdict, Verdict::Complete);
    assert!(outcome.unseen > 100, "{outcome:?}");
}
