//! Epochs of a real workload: packages installed and removed in mounted ext4 and XFS, captured frozen, brought to loop
//! devices by a target that is killed again and again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mt_tests::agent::Running;
use mt_tests::data::{MIB, Random, digest};
use mt_tests::disks::{Canaries, Loop, Mount, run, text};
use mt_tests::lab::Lab;
use mt_tests::needs;
use mt_tests::packages::Packages;

const MACHINE: &str = "db01";
/// Name, size, and how it is formatted; XFS is never smaller than 300 MiB.
const DISKS: [(&str, u64, &[&str]); 3] = [
    ("scsi0:0", 96 * MIB, &["mkfs.ext4", "-q", "-F"]),
    ("scsi0:1", 320 * MIB, &["mkfs.xfs", "-q", "-f"]),
    ("scsi0:2", 96 * MIB, &["mkfs.ext4", "-q", "-F", "-b", "1024"]),
];

fn number_of(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

/// Kills the target where it stands at times that nobody chose, and starts it again.
struct Killer {
    random: Random,
    /// How often in all acts together, and how many acts there are: spread evenly over them.
    wanted: u64,
    acts: u64,
    /// Acts so far.
    act: u64,
    kills: u64,
}

impl Killer {
    /// How often it strikes in the next act.
    fn times(&mut self) -> u64 {
        self.act += 1;
        (self.wanted * self.act / self.acts).saturating_sub(self.kills)
    }

    fn strike(&mut self, lab: &mut Lab, within_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.below(within_ms)));
        lab.crash_and_restart();
        self.kills += 1;
    }

    /// Brings the disks to a point through any number of deaths.
    fn roll(&mut self, lab: &mut Lab, to: &str) {
        for _ in 0..self.times() {
            lab.verb(&["roll", MACHINE, "--to", to, "--no-wait"])
                .expect_done();
            self.strike(lab, 300);
        }
        lab.verb(&["roll", MACHINE, "--to", to]).expect_done();
    }
}

/// The disks, in the end, are what the file systems were when they were frozen, at every point, whoever died meanwhile.
#[test]
fn loop_every_point_of_a_machine_is_what_its_frozen_file_systems_were() {
    every_point_is_what_the_file_systems_were(number_of("MT_EPOCHS", 50), number_of("MT_KILLS", 30));
}

/// The same with a target that dies three times in each act and more.
#[test]
fn long_every_point_is_what_its_file_systems_were_whoever_died_two_hundred_times() {
    every_point_is_what_the_file_systems_were(number_of("MT_EPOCHS", 50), number_of("MT_KILLS", 200));
}

fn every_point_is_what_the_file_systems_were(epochs: u64, wanted_kills: u64) {
    needs!(
        loop,
        "mkfs.ext4",
        "mkfs.xfs",
        "fsfreeze",
        "fsck.ext4",
        "dpkg",
        "dpkg-deb"
    );
    let seed = number_of("MT_SEED", 7);
    println!("MT_SEED={seed} MT_KILLS={wanted_kills} MT_EPOCHS={epochs}");
    let step = usize::try_from(epochs.div_ceil(5)).expect("few epochs");
    let rolls = 2 * epochs.div_ceil(step as u64);
    let mut killer = Killer {
        random: Random::new(seed + 1),
        wanted: wanted_kills,
        acts: epochs + rolls,
        act: 0,
        kills: 0,
    };
    let mut lab = Lab::new();
    let mut random = Random::new(seed);
    let (mut backing, mut mounts, mut targets, mut ids) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (index, (_, size, format)) in DISKS.iter().enumerate() {
        let source = lab.scratch.sparse(&format!("source-{index}.img"), *size);
        run(format[0], &[&format[1..], &[text(&source)]].concat());
        mounts.push(Mount::new(
            lab.scratch.join(&format!("mount-{index}")),
            &["-o", "loop", text(&source)],
        ));
        backing.push(source);
        let target = Loop::attach(&lab.scratch.sparse(&format!("target-{index}.img"), *size), &[]);
        ids.push(lab.add_disk(target.path()));
        targets.push(target);
    }
    let canaries = Canaries::new(&lab.scratch, 2);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    for ((name, _, _), id) in DISKS.iter().zip(&ids) {
        lab.pair(&format!("{MACHINE}/{name}"), id);
    }
    let hashes = |paths: &[&Path]| -> Vec<blake3::Hash> {
        paths
            .iter()
            .zip(DISKS)
            .map(|(path, (_, size, _))| digest(path, size))
            .collect()
    };
    let disks: Vec<&Path> = targets.iter().map(Loop::path).collect();
    let packages = Packages::new(&lab.scratch);
    for mount in &mounts {
        packages.prepare(mount.path());
    }
    let mut points = Vec::new();
    for epoch in 0..epochs {
        for mount in &mounts {
            for _ in 0..2 {
                packages.change(mount.path(), &mut random);
            }
        }
        for mount in &mounts {
            run("fsfreeze", &["--freeze", text(mount.path())]);
        }
        let snapshots: Vec<PathBuf> = backing
            .iter()
            .enumerate()
            .map(|(index, source)| {
                let snapshot = lab.scratch.join(&format!("snapshot-{index}.img"));
                run(
                    "cp",
                    &["--sparse=always", "--reflink=auto", text(source), text(&snapshot)],
                );
                snapshot
            })
            .collect();
        for mount in &mounts {
            run("fsfreeze", &["--unfreeze", text(mount.path())]);
        }
        let named: Vec<(&str, &Path)> = DISKS
            .iter()
            .map(|(name, _, _)| *name)
            .zip(snapshots.iter().map(PathBuf::as_path))
            .collect();
        let name = format!("epoch-{epoch}");
        let more = ["--consistency", "file-system", "--point-name", &name];
        let command = lab.epoch_command(lab.address, MACHINE, &named, &more);
        let sending = Running::start(command, lab.scratch.path());
        for _ in 0..killer.times() {
            killer.strike(&mut lab, 1500);
        }
        // A source that no target has answered yet gives up at once; any other goes on by itself. The target may die while the
        // connection is made as well as behind that.
        let said = sending.wait();
        if said.code() != Some(0) {
            let said = said.expect_error(6, &[]);
            let text = said.to_string();
            assert!(
                ["during the hello", "cannot connect to the target"]
                    .iter()
                    .any(|early| text.contains(early)),
                "{text}"
            );
            lab.epoch(MACHINE, &named, &more).expect_done();
        }
        println!("epoch {} of {epochs}: {} kills", epoch + 1, killer.kills);
        points.push((
            name,
            hashes(&snapshots.iter().map(PathBuf::as_path).collect::<Vec<_>>()),
        ));
    }
    for (name, wanted) in points.iter().step_by(step) {
        killer.roll(&mut lab, name);
        assert_eq!(&hashes(&disks), wanted, "{name}");
        for index in [0, 2] {
            run("fsck.ext4", &["-f", "-n", targets[index].text()]);
        }
        killer.roll(&mut lab, "latest");
        assert_eq!(hashes(&disks), points[points.len() - 1].1, "latest, after {name}");
        println!("rolled to {name} and back: {} kills", killer.kills);
    }
    assert!(killer.kills >= wanted_kills, "{} kills", killer.kills);
    println!("{epochs} epochs, {rolls} rolls, {} kills", killer.kills);
    canaries.assert_untouched();
    lab.stop();
}
