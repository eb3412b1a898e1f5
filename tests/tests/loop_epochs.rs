//! Epochs of a real workload: files written and removed in mounted ext4 and XFS, captured frozen, brought to loop devices.

use std::path::{Path, PathBuf};

use mt_tests::data::{MIB, Random, digest};
use mt_tests::disks::{Canaries, Loop, Mount, run, text};
use mt_tests::lab::Lab;
use mt_tests::needs;

const MACHINE: &str = "db01";
/// Name, size, and how it is formatted; XFS is never smaller than 300 MiB.
const DISKS: [(&str, u64, &[&str]); 3] = [
    ("scsi0:0", 64 * MIB, &["mkfs.ext4", "-q", "-F"]),
    ("scsi0:1", 320 * MIB, &["mkfs.xfs", "-q", "-f"]),
    ("scsi0:2", 64 * MIB, &["mkfs.ext4", "-q", "-F", "-b", "1024"]),
];

/// Writes, overwrites and removes files, as installing and removing packages does.
fn work(at: &Path, random: &mut Random) {
    for _ in 0..12 {
        let folder = at.join(format!("package-{}", random.below(6)));
        match random.below(4) {
            0 => {
                let _ = std::fs::remove_dir_all(&folder);
            }
            _ => {
                std::fs::create_dir_all(&folder).expect("there is room");
                let len = usize::try_from(random.below(200_000)).expect("small");
                let file = folder.join(format!("file-{}", random.below(20)));
                std::fs::write(file, random.bytes(len)).expect("there is room");
            }
        }
    }
}

#[test]
fn loop_every_point_of_a_machine_is_what_its_frozen_file_systems_were() {
    needs!(loop, "mkfs.ext4", "mkfs.xfs", "fsfreeze", "fsck.ext4");
    let epochs: u64 = std::env::var("MT_EPOCHS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10);
    let mut lab = Lab::new();
    let mut random = Random::new(7);
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
    let mut points = Vec::new();
    for epoch in 0..epochs {
        for mount in &mounts {
            work(mount.path(), &mut random);
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
        lab.epoch(
            MACHINE,
            &named,
            &["--consistency", "file-system", "--point-name", &name],
        )
        .expect_done();
        points.push((
            name,
            hashes(&snapshots.iter().map(PathBuf::as_path).collect::<Vec<_>>()),
        ));
    }
    let step = usize::try_from(epochs.div_ceil(5)).expect("few epochs");
    for (name, wanted) in points.iter().step_by(step) {
        lab.verb(&["roll", MACHINE, "--to", name]).expect_done();
        assert_eq!(&hashes(&disks), wanted, "{name}");
        for index in [0, 2] {
            run("fsck.ext4", &["-f", "-n", targets[index].text()]);
        }
        lab.verb(&["roll", MACHINE, "--to", "latest"]).expect_done();
        assert_eq!(hashes(&disks), points[points.len() - 1].1, "latest, after {name}");
    }
    canaries.assert_untouched();
    lab.stop();
}
