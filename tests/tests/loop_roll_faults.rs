//! A target disk fails, goes, or is another one, while the disks of its machine are rolled: the roll stops and says which disk it
//! was, no other disk is written, and when the right one is there again everything goes on, bit for bit.

use std::path::{Path, PathBuf};

use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, digest, fill};
use mt_tests::disks::{Canaries, Loop};
use mt_tests::faulty::FaultyDisk;
use mt_tests::lab::Lab;
use mt_tests::needs;

const SIZE: u64 = 16 * MIB;
const MACHINE: &str = "db01";
const DISKS: [&str; 2] = ["scsi0:0", "scsi0:1"];

/// A machine of two disks; the second target disk is what the test is about. It has three points: before-failback, "first", and
/// "second" with much between them.
struct Scene {
    lab: Lab,
    sources: Vec<PathBuf>,
    /// The first target disk.
    sound: PathBuf,
    /// Where the configuration finds the second one.
    place: PathBuf,
    ids: Vec<String>,
    canaries: Canaries,
    first: [blake3::Hash; 2],
    second: [blake3::Hash; 2],
}

fn scene(attach: impl FnOnce(&Lab, &Path)) -> Scene {
    let mut lab = Lab::new();
    let sources: Vec<PathBuf> = (0..2)
        .map(|number| {
            let source = lab.scratch.sparse(&format!("source-{number}.img"), SIZE);
            fill(&source, SIZE, Fill::HalfZero, number);
            source
        })
        .collect();
    let sound = lab.scratch.sparse("sound.img", SIZE);
    let place = lab.scratch.join("second-disk");
    attach(&lab, &place);
    let ids = vec![lab.add_disk(&sound), lab.add_disk(&place)];
    let canaries = Canaries::new(&lab.scratch, 2);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    for (disk, id) in DISKS.iter().zip(&ids) {
        lab.pair(&format!("{MACHINE}/{disk}"), id);
    }
    let mut scene = Scene {
        first: [digest(&sources[0], SIZE), digest(&sources[1], SIZE)],
        second: [blake3::hash(b""); 2],
        lab,
        sources,
        sound,
        place,
        ids,
        canaries,
    };
    scene.send(&["--point-name", "first"]).expect_done();
    for (source, seed) in scene.sources.iter().zip(70..) {
        change_blocks(source, SIZE, 4096, 1500, seed);
    }
    scene.send(&["--point-name", "second"]).expect_done();
    scene.second = [digest(&scene.sources[0], SIZE), digest(&scene.sources[1], SIZE)];
    wait_until("the second epoch to be on the disks", || {
        scene.disks() == scene.second
    });
    scene
}

impl Scene {
    fn send(&self, more: &[&str]) -> Said {
        let disks: Vec<(&str, &Path)> = DISKS
            .iter()
            .copied()
            .zip(self.sources.iter().map(PathBuf::as_path))
            .collect();
        self.lab.epoch(MACHINE, &disks, more)
    }

    fn disks(&self) -> [blake3::Hash; 2] {
        [digest(&self.sound, SIZE), digest(&self.place, SIZE)]
    }

    fn roll(&self, to: &str) -> Said {
        self.lab.verb(&["roll", MACHINE, "--to", to])
    }

    fn is_alarmed(&self) -> bool {
        let status = self.lab.status();
        let alarms = status["alarms"].as_array().expect("alarms are a list");
        alarms
            .iter()
            .any(|alarm| alarm["id"] == "pair-needs-resync" && alarm["subject"] == MACHINE)
    }

    /// Everything is as if nothing had happened: both points can be reached, the source can send, and no other disk changed.
    fn all_is_well(&self) {
        self.roll("first").expect_done();
        assert_eq!(self.disks(), self.first);
        self.roll("latest").expect_done();
        assert_eq!(self.disks(), self.second);
        assert!(!self.is_alarmed(), "the alarm is over");
        self.send(&["--point-name", "third"]).expect_done();
        self.lab.verb(&["retention", "check"]).expect_done();
        self.canaries.assert_untouched();
    }
}

/// EIO among the writes of a roll. It ends at once and names disk and place; nothing of the source is taken meanwhile, and no
/// point is lost. When the disk works again the roll, which was decided, comes to its end by itself, and can be taken back.
#[test]
fn loop_a_disk_that_fails_in_the_middle_of_a_roll_is_rolled_when_it_works_again() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    let mut disk = None;
    let mut scene = scene(|lab, place| {
        let file = lab.scratch.sparse("faulty.img", SIZE);
        let made = FaultyDisk::now_and_then(&lab.scratch, &file, "EIO", &["error-pwrite", "error-zero"]);
        std::os::unix::fs::symlink(made.path(), place).expect("scratch has room");
        disk = Some(made);
    });
    let disk = disk.expect("it was attached");
    disk.fail();
    let said = scene.roll("first").expect_error(
        4,
        &[&scene.ids[1], "0x", "nput/output error", "attach target disk"],
    );
    assert!(
        !said.stderr.contains("reset"),
        "no point has to go for that: {said}"
    );
    wait_until("the alarm", || scene.is_alarmed());
    scene
        .send(&["--retry-for", "0"])
        .expect_error(8, &["disk-failed", &scene.ids[1]]);
    assert_eq!(
        scene.lab.points(MACHINE).len(),
        4,
        "with the one that the roll made"
    );
    assert_ne!(scene.disks(), scene.second, "something was written");
    // Whoever tries again while it still fails is told the same, and another way does not exist either.
    scene.roll("second").expect_error(4, &[&scene.ids[1]]);
    scene.canaries.assert_untouched();

    disk.work();
    wait_until("the roll to end by itself", || scene.disks() == scene.first);
    wait_until("the end of the alarm", || !scene.is_alarmed());
    scene.all_is_well();

    // The same for an epoch: it is acknowledged, since it is in the log, and comes to the disks when they take it.
    for (source, seed) in scene.sources.iter().zip(80..) {
        change_blocks(source, SIZE, 4096, 1500, seed);
    }
    disk.fail();
    scene.send(&["--point-name", "fourth"]).expect_done();
    wait_until("the alarm", || scene.is_alarmed());
    disk.work();
    let fourth = [digest(&scene.sources[0], SIZE), digest(&scene.sources[1], SIZE)];
    wait_until("the epoch to be on the disks", || scene.disks() == fourth);
    scene.roll("second").expect_done();
    assert_eq!(scene.disks(), scene.second);
    scene.roll("fourth").expect_done();
    assert_eq!(scene.disks(), fourth);
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// A failover whose disk fails is repeated by its operator, or taken back. The same with an agent that dies before the disk works
/// again.
#[test]
fn loop_a_disk_that_fails_in_a_roll_and_an_agent_that_dies_lose_nothing() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    let mut disk = None;
    let mut scene = scene(|lab, place| {
        let file = lab.scratch.sparse("faulty.img", SIZE);
        let made = FaultyDisk::now_and_then(&lab.scratch, &file, "EIO", &["error-pwrite", "error-zero"]);
        std::os::unix::fs::symlink(made.path(), place).expect("scratch has room");
        disk = Some(made);
    });
    let disk = disk.expect("it was attached");
    let failover = |scene: &Scene| scene.lab.verb(&["failover", MACHINE, "--to", "first"]);
    for repeated in [true, false] {
        disk.fail();
        failover(&scene).expect_error(8, &[&scene.ids[1], "attach target disk"]);
        let document = scene.lab.verb(&["groups", "--json"]).expect_done().json();
        assert_eq!(document["machines"][0]["failover"], "failover-failed");
        disk.work();
        if repeated {
            failover(&scene).expect_done();
            assert_eq!(scene.disks(), scene.first);
        }
        scene.lab.verb(&["cancel", MACHINE]).expect_done();
        assert_eq!(scene.disks(), scene.second);
    }
    disk.fail();
    scene.roll("first").expect_error(4, &[&scene.ids[1]]);
    scene.lab.crash_and_restart();
    disk.work();
    scene.roll("second").expect_done();
    assert_eq!(scene.disks(), scene.second);
    scene.all_is_well();
    scene.lab.stop();
}

/// The disk is pulled out among the writes of an epoch that comes in, and later among those of a roll. Nothing stands in its place
/// then, and after that another disk does, which is not written. The right one, under another kernel name, is brought to where it
/// should be.
#[test]
fn loop_a_disk_that_is_pulled_out_in_a_roll_is_missed_and_another_one_is_left_alone() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    let mut disk = None;
    let mut scene = scene(|lab, place| {
        let file = lab.scratch.sparse("faulty.img", SIZE);
        let made = FaultyDisk::now_and_then(&lab.scratch, &file, "EIO", &["error-pwrite", "error-zero"]);
        std::os::unix::fs::symlink(made.path(), place).expect("scratch has room");
        disk = Some(made);
    });
    let mut disk = disk.expect("it was attached");
    let (content, place) = (scene.lab.scratch.join("faulty.img"), scene.place.clone());
    let put = |what: Option<&Path>| {
        let beside = place.with_extension("new");
        match what {
            Some(what) => std::os::unix::fs::symlink(what, &beside)
                .and_then(|()| std::fs::rename(&beside, &place))
                .expect("scratch has room"),
            None => std::fs::remove_file(&place).expect("it is there"),
        }
    };
    // Some of it is written, then the disk is gone.
    disk.fail();
    scene.roll("first").expect_error(4, &[&scene.ids[1], "0x"]);
    disk.pull();
    drop(disk);
    put(None);
    scene
        .roll("first")
        .expect_error(5, &["scsi0:1", &scene.ids[1], "cannot be looked at"]);
    scene
        .lab
        .verb(&["failover", MACHINE, "--to", "first"])
        .expect_error(5, &[&scene.ids[1]]);
    scene
        .send(&["--retry-for", "0"])
        .expect_error(5, &[&scene.ids[1]]);
    assert!(scene.is_alarmed(), "as long as it is missed");

    // Another disk under the same name, larger, with something on it.
    let other_file = scene.lab.scratch.sparse("other.img", 2 * SIZE);
    fill(&other_file, 2 * SIZE, Fill::Random, 99);
    scene.canaries.watch(&other_file, 2 * SIZE);
    let other = Loop::attach(&other_file, &[]);
    put(Some(other.path()));
    for _ in 0..2 {
        scene
            .roll("first")
            .expect_error(4, &[&scene.ids[1], &(2 * SIZE).to_string(), &SIZE.to_string()]);
    }
    scene.lab.crash_and_restart();
    scene.roll("first").expect_error(4, &[&scene.ids[1]]);
    scene.canaries.assert_untouched();

    let right = Loop::attach(&content, &[]);
    put(Some(right.path()));
    // The roll was decided before the disk went. The agent, which has missed it since its start, brings it to its end by itself.
    wait_until("the roll to end by itself", || scene.disks() == scene.first);
    scene.all_is_well();
    scene.lab.stop();
}

/// The disk under a machine that is open is exchanged before a roll: the second look sees it before anything is decided.
#[test]
fn a_disk_that_was_exchanged_is_seen_before_a_roll_writes() {
    let mut scene = scene(|lab, place| {
        lab.scratch.sparse("second-disk", SIZE);
        assert!(place.is_file());
    });
    let (place, kept) = (scene.place.clone(), scene.lab.scratch.join("kept.img"));
    std::fs::rename(&place, &kept).expect("it can be moved");
    let other = scene.lab.scratch.sparse("second-disk", SIZE);
    fill(&other, SIZE, Fill::Random, 99);
    let before = digest(&other, SIZE);
    scene.roll("first").expect_error(
        4,
        &[
            "scsi0:1",
            &scene.ids[1],
            "another file",
            "nothing more is written",
        ],
    );
    assert_eq!(digest(&other, SIZE), before);
    assert_eq!(digest(&kept, SIZE), scene.second[1]);
    assert_eq!(
        digest(&scene.sound, SIZE),
        scene.second[0],
        "nor was the other disk of it"
    );
    assert_eq!(scene.lab.points(MACHINE).len(), 3, "nothing was decided");
    std::fs::rename(&kept, &place).expect("it can be moved");
    scene.all_is_well();
    scene.lab.stop();
}
