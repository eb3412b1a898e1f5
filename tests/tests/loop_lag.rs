//! Disks that cannot keep up: epochs are acknowledged from the log and the disks follow, as far behind as they may be and
//! no further.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mt_tests::agent::wait_until;
use mt_tests::data::{Fill, MIB, change_blocks, digest, fill};
use mt_tests::disks::Loop;
use mt_tests::faulty::FaultyDisk;
use mt_tests::lab::Lab;
use mt_tests::needs;

const MACHINE: &str = "db01";
const SIZE: u64 = 24 * MIB;

struct Scene {
    lab: Lab,
    source: PathBuf,
    other: PathBuf,
    slow: FaultyDisk,
    fast: Loop,
}

/// A machine of two disks, one of which takes its time over each write.
fn scene(lag: (u64, u64)) -> Scene {
    let mut lab = Lab::new();
    let slow = FaultyDisk::slow(&lab.scratch, SIZE, 20);
    let fast = Loop::attach(&lab.scratch.sparse("fast", SIZE), &[]);
    let source = lab.scratch.sparse("source", SIZE);
    let other = lab.scratch.sparse("other", SIZE);
    fill(&other, SIZE, Fill::HalfZero, 3);
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.limit_lag(lag.0, lag.1);
    let ids = [lab.add_disk(slow.path()), lab.add_disk(fast.path())];
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    for (disk, id) in ["slow", "fast"].iter().zip(&ids) {
        lab.pair(&format!("{MACHINE}/{disk}"), id);
    }
    Scene {
        lab,
        source,
        other,
        slow,
        fast,
    }
}

impl Scene {
    /// Changes both disks in `count` scattered blocks and sends an epoch; answers what they were.
    fn epoch(&self, seed: u64, count: u64) -> [blake3::Hash; 2] {
        change_blocks(&self.source, SIZE, 4096, count, seed);
        change_blocks(&self.other, SIZE, 4096, count, seed + 1000);
        let disks: [(&str, &Path); 2] = [("slow", &self.source), ("fast", &self.other)];
        self.lab
            .epoch(MACHINE, &disks, &["--point-name", &format!("at-{seed}")])
            .expect_done();
        [digest(&self.source, SIZE), digest(&self.other, SIZE)]
    }

    fn targets(&self) -> [blake3::Hash; 2] {
        let read = self.lab.scratch.join("read-back");
        self.slow.read_all(&read);
        [digest(&read, SIZE), digest(self.fast.path(), SIZE)]
    }

    /// Bytes and epochs by which the disks are behind.
    fn lag(&self) -> (u64, u64) {
        let status = self
            .lab
            .verb(&["retention", "status", "--json"])
            .expect_done()
            .json();
        let store = &status["machines"][0]["store"];
        let number = |key: &str| store[key].as_u64().expect("a number");
        (number("lag_bytes"), number("committed") - number("applied"))
    }

    fn wait_applied(&self) {
        wait_until("the disks to catch up", || self.lag().1 == 0);
    }
}

/// Epochs come in while those before them are on their way to the disk: each is compared with the one before it and not with what
/// the disk happens to hold. The target is killed while it is behind, and every point is what the source was.
#[test]
fn loop_epochs_come_in_while_the_disks_are_behind() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    let mut scene = scene((256 * MIB, 600));
    let mut points = Vec::new();
    let mut most = 0;
    for seed in 1..=4 {
        let sent = scene.epoch(seed, 150);
        points.push((format!("at-{seed}"), sent));
        most = most.max(scene.lag().1);
        if seed == 3 {
            scene.lab.crash_and_restart();
        }
    }
    println!("the disks were {most} epochs behind");
    assert!(most >= 2, "no epoch was begun while another was under way");
    scene.wait_applied();
    let newest = points.last().expect("four were sent").1;
    assert_eq!(scene.targets(), newest);
    for (name, wanted) in points.iter().rev() {
        scene.lab.verb(&["roll", MACHINE, "--to", name]).expect_done();
        assert_eq!(&scene.targets(), wanted, "{name}");
    }
    scene.lab.stop();
}

/// Ends a watcher when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What comes in waits when the disks are as far behind as they may be: no more than the limit, or one epoch.
#[test]
fn loop_what_comes_in_waits_for_disks_that_are_too_far_behind() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    const LIMIT: u64 = 4 * MIB;
    let mut scene = scene((LIMIT, 600));
    let blocks = 200;
    // Both disks change in as many blocks, of 4 KiB each.
    let of_an_epoch = 2 * blocks * 4096;
    // The first one has all that the disks hold: a single epoch may be larger than the limit.
    scene.epoch(1, blocks);
    scene.wait_applied();
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(scene.lag().0);
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        // Also when an epoch is not taken: else the watcher would go on for ever.
        let ends = Ends(&over);
        for seed in 2..=6 {
            scene.epoch(seed, blocks);
        }
        drop(ends);
        watcher.join().expect("the watcher ends")
    });
    println!("at most {most} bytes behind, limit {LIMIT}, an epoch has {of_an_epoch}");
    assert!(most > 0, "the disk was never behind");
    assert!(most <= LIMIT.max(of_an_epoch), "{most} bytes behind");
    scene.wait_applied();
    assert_eq!(
        scene.targets(),
        [digest(&scene.source, SIZE), digest(&scene.other, SIZE)]
    );
    scene.lab.stop();
}

/// A roll waits for a disk that takes its time. Status answers meanwhile, and the list of jobs says what is under way.
#[test]
fn loop_status_answers_while_a_roll_waits_for_its_disk() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    let mut scene = scene((256 * MIB, 600));
    let first = scene.epoch(1, 100);
    scene.epoch(2, 400);
    scene.wait_applied();
    scene
        .lab
        .verb(&["roll", MACHINE, "--to", "at-1", "--no-wait"])
        .expect_done();
    let mut answers = 0;
    wait_until("the end of the roll", || {
        let jobs = scene.lab.verb(&["jobs", "list", "--json"]).expect_done().json();
        let jobs = jobs["jobs"].as_array().expect("jobs are a list").clone();
        let roll = jobs
            .iter()
            .find(|job| job["kind"] == "roll")
            .expect("it was begun");
        if roll["state"] != "running" {
            assert_eq!(roll["state"], "done", "{roll:#}");
            return true;
        }
        assert_eq!(scene.lab.status()["pairs"].as_array().map(Vec::len), Some(2));
        answers += 1;
        false
    });
    println!("{answers} answers while the roll was under way");
    assert!(answers > 0, "nothing was told while the roll was under way");
    assert_eq!(scene.targets(), first);
    scene.lab.stop();
}
