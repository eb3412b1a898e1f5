//! The retention volume as a disk of its own: formatted and mounted by `retention init`, refused where it must be, gone, read-only,
//! full, or another one in its place.

use std::path::{Path, PathBuf};

use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, MIB, digest, fill, write_at};
use mt_tests::disks::{Canaries, Loop, Mount, run, text};
use mt_tests::lab::Lab;
use mt_tests::needs;

const SIZE: u64 = 16 * MIB;
const VOLUME: u64 = 1100 * MIB;
const MACHINE: &str = "db01";

struct Scene {
    lab: Lab,
    source: PathBuf,
    target: Loop,
    target_id: String,
    canaries: Canaries,
}

fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::HalfZero, 1);
    let target = Loop::attach(&lab.scratch.sparse("target.img", SIZE), &[]);
    let target_id = lab.add_disk(target.path());
    let canaries = Canaries::new(&lab.scratch, 2);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    Scene {
        lab,
        source,
        target,
        target_id,
        canaries,
    }
}

impl Scene {
    fn pair(&self) {
        self.lab.pair(&format!("{MACHINE}/scsi0:0"), &self.target_id);
    }

    fn epoch(&self, number: u8) -> Said {
        write_at(&self.source, 4096 * u64::from(number), &[number; 4096]);
        self.lab.epoch(MACHINE, &[("scsi0:0", &self.source)], &[])
    }

    fn volume(&self) -> PathBuf {
        self.lab.scratch.join("retention")
    }

    /// Acknowledged epochs come to the disk a moment later.
    fn wait_in_step(&self) {
        wait_until("the disk to be what the source is", || {
            digest(self.target.path(), SIZE) == digest(&self.source, SIZE)
        });
    }
}

/// Unmounts whatever `retention init` mounted, when the test ends in whatever way.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .output();
    }
}

#[test]
fn loop_a_disk_becomes_the_retention_volume_and_no_other_is_touched() {
    needs!(loop, "mkfs.xfs", "systemd-analyze");
    let mut scene = scene();
    let disk = Loop::attach(&scene.lab.scratch.sparse("volume.img", VOLUME), &[]);
    let id = scene.lab.add_disk(disk.path());
    let small = Loop::attach(&scene.lab.scratch.sparse("small.img", 64 * MIB), &[]);
    let small_id = scene.lab.add_disk(small.path());
    let full = Loop::attach(&scene.lab.scratch.sparse("full.img", VOLUME), &[]);
    let full_id = scene.lab.add_disk(full.path());
    run("mkfs.ext4", &["-q", full.text()]);
    let units = scene.lab.scratch.join("units");
    std::fs::create_dir(&units).expect("it can be made");
    let config = scene.lab.config_path();
    scene.lab.start();
    scene.pair();
    let init = |lab: &Lab, more: &[&str]| {
        let mut args = vec![
            "retention",
            "init",
            "--units",
            text(&units),
            "--config",
            text(&config),
        ];
        args.extend_from_slice(more);
        lab.verb(&args)
    };
    init(&scene.lab, &["--disk", "sdb"]).expect_error(2, &["not a SCSI ID"]);
    init(&scene.lab, &["--disk", "naa.6000c290000000000000000000000099"]).expect_error(4, &["not attached"]);
    init(&scene.lab, &["--disk", &scene.target_id]).expect_error(5, &["target disk of pair db01/scsi0:0"]);
    init(&scene.lab, &["--disk", &full_id]).expect_error(5, &["ext4", "nothing was written"]);
    init(&scene.lab, &["--disk", &full_id, "--overwrite", &id])
        .expect_error(5, &["is named for overwriting"]);
    init(&scene.lab, &["--disk", &small_id]).expect_error(5, &["needs", "nothing was written"]);
    {
        let _mount = Mount::new(scene.lab.scratch.join("mounted"), &[full.text()]);
        init(&scene.lab, &["--disk", &full_id, "--overwrite", &full_id]).expect_error(5, &["mounted"]);
    }
    // The kernel is done with it; from here on nobody has anything to write there.
    wait_until("the disk to be unmounted", || {
        !std::fs::read_to_string("/proc/self/mounts")
            .expect("it can be read")
            .contains(&format!("{} ", full.text()))
    });
    run("blockdev", &["--flushbufs", full.text()]);
    scene
        .canaries
        .watch(&scene.lab.scratch.join("full.img"), 64 * MIB);
    std::fs::create_dir(scene.volume()).expect("it can be made");
    std::fs::write(scene.volume().join("file"), "precious").expect("there is room");
    init(&scene.lab, &["--disk", &id]).expect_error(5, &["not empty", "nothing was written"]);
    std::fs::remove_file(scene.volume().join("file")).expect("it is there");
    assert_eq!(std::fs::read_dir(&units).expect("a folder").count(), 0);

    let _unmount = Unmount(scene.volume());
    let said = init(&scene.lab, &["--disk", &id]).expect_done();
    let audit = scene.lab.verb(&["audit", "--json"]).expect_done().json();
    for came in ["begun", "done"] {
        let noted = audit["entries"]
            .as_array()
            .expect("entries are a list")
            .iter()
            .any(|entry| {
                let what = entry["what"].as_str().unwrap_or_default();
                what.contains(&format!("format disk {id}"))
                    && what.contains(&format!("\"result\":\"{came}\""))
            });
        assert!(noted, "{came}: {audit:#}");
    }
    assert!(
        said.stdout.contains("is formatted") && said.stdout.contains("is set up"),
        "{said}"
    );
    assert_eq!(
        run("findmnt", &["-n", "-o", "FSTYPE,SOURCE", text(&scene.volume())])
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["xfs", disk.text()]
    );
    let unit = std::fs::read_dir(&units)
        .expect("a folder")
        .next()
        .expect("a unit")
        .expect("it can be read")
        .path();
    let words = std::fs::read_to_string(&unit).expect("it is text");
    assert!(words.contains(&id) && words.contains("Type=xfs"), "{words}");
    run("systemd-analyze", &["verify", "--man=no", text(&unit)]);
    // Once more is no harm, and no second disk takes its place.
    let said = init(&scene.lab, &["--disk", &id]).expect_done();
    assert!(said.stdout.contains("set up already"), "{said}");
    init(&scene.lab, &["--disk", &full_id, "--overwrite", &full_id])
        .expect_error(5, &["is the retention volume already"]);
    // Nor can it become a target disk.
    scene
        .lab
        .verb(&["pair", "add", "db01/scsi0:1", &id, "--overwrite", &id])
        .expect_error(5, &["mounted"]);
    scene.epoch(1).expect_done();
    scene.epoch(2).expect_done();
    scene.lab.verb(&["roll", MACHINE, "--to", "1"]).expect_done();
    scene.lab.verb(&["roll", MACHINE, "--to", "latest"]).expect_done();
    scene.wait_in_step();
    scene.lab.verb(&["retention", "check"]).expect_done();
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

fn mount(at: &Path, disk: &Loop) -> Mount {
    Mount::new(at.to_owned(), &[disk.text()])
}

#[test]
fn loop_a_volume_that_is_gone_read_only_or_another_is_refused() {
    needs!(loop, "mkfs.xfs", "xfs_io");
    let mut scene = scene();
    let volumes: Vec<Loop> = ["one", "two"]
        .iter()
        .map(|name| {
            let disk = Loop::attach(&scene.lab.scratch.sparse(&format!("{name}.img"), 320 * MIB), &[]);
            run("mkfs.xfs", &["-q", disk.text()]);
            disk
        })
        .collect();
    let at = scene.volume();
    let mounted = mount(&at, &volumes[0]);
    scene.lab.start();
    scene.lab.verb(&["retention", "init"]).expect_done();
    scene.pair();
    scene.epoch(1).expect_done();

    // Its file system shuts down while it is used, as after an error of its disk: nothing is acknowledged, and it is said.
    run("xfs_io", &["-x", "-c", "shutdown", text(&at)]);
    scene.epoch(2).expect_error(6, &["nput/output error"]);
    scene
        .lab
        .verb(&["retention", "init"])
        .expect_error(7, &["nput/output error"]);
    scene.lab.stop();
    drop(mounted);
    let mounted = mount(&at, &volumes[0]);
    scene.lab.start();
    scene.epoch(2).expect_done();
    scene.wait_in_step();
    scene.lab.stop();

    // Read-only when the agent starts.
    run("mount", &["-o", "remount,ro", text(&at)]);
    scene.lab.start();
    scene.epoch(3).expect_error(6, &["read-only"]);
    scene
        .lab
        .verb(&["points", "list", MACHINE])
        .expect_error(4, &["read-only"]);
    let status = scene.lab.verb(&["retention", "status"]).expect_done();
    assert!(status.stdout.contains("read-only"), "{status}");
    // Looking needs no writing.
    scene.lab.verb(&["retention", "check"]).expect_done();
    run("mount", &["-o", "remount,rw", text(&at)]);
    scene.epoch(3).expect_done();
    scene.wait_in_step();

    // Taken away while it is used, which only a lazy unmount can: what is promised stays on it, and later it is missed.
    drop(mounted);
    scene
        .lab
        .verb(&["retention", "check"])
        .expect_error(4, &["no mark"]);
    scene.epoch(4).expect_error(6, &["is not there"]);
    assert_eq!(
        std::fs::read_dir(&at).expect("a folder").count(),
        0,
        "nothing is written below it"
    );
    scene.lab.stop();
    // Gone at the start.
    scene.lab.start();
    scene.epoch(4).expect_error(6, &["is not there", "mount"]);
    scene
        .lab
        .verb(&["points", "list", MACHINE])
        .expect_error(4, &["is not there"]);

    // Another one in its place, empty, and then one of another appliance.
    let other = mount(&at, &volumes[1]);
    scene.epoch(4).expect_error(6, &["is not there"]);
    scene
        .lab
        .verb(&["retention", "init"])
        .expect_error(5, &["has the volume"]);
    std::fs::write(
        at.join("master-target-retention.json"),
        "{\"format\":1,\"id\":\"00112233445566778899aabbccddeeff\"}",
    )
    .expect("there is room");
    scene
        .epoch(4)
        .expect_error(6, &["00112233445566778899aabbccddeeff", "this appliance has"]);
    drop(other);
    // The right one again, and everything is as it was.
    let _mounted = mount(&at, &volumes[0]);
    scene.epoch(4).expect_done();
    scene.wait_in_step();
    scene.lab.verb(&["roll", MACHINE, "--to", "1"]).expect_done();
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

#[test]
fn loop_a_volume_without_room_is_not_set_up_by_half() {
    needs!(loop);
    let mut scene = scene();
    let at = scene.volume();
    let _mounted = Mount::new(at.clone(), &["-t", "tmpfs", "-o", "size=1m", "none"]);
    let filler = at.join("lost+found").join("filler");
    std::fs::create_dir(at.join("lost+found")).expect("there is room for a name");
    let mut file = std::fs::File::create(&filler).expect("there is room for a name");
    let full = std::io::copy(&mut std::io::repeat(1), &mut file).expect_err("it ends");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    scene.lab.start();
    scene.pair();
    scene
        .lab
        .verb(&["retention", "init"])
        .expect_error(7, &["No space"]);
    scene.epoch(1).expect_error(6, &["not been set up"]);
    drop(file);
    std::fs::remove_file(&filler).expect("it is there");
    scene.lab.verb(&["retention", "init"]).expect_done();
    // There is room for the mark, and none for a store: an error, and no half a store that is taken for one.
    scene.epoch(1).expect_error(6, &["full"]);
    scene.epoch(1).expect_error(6, &["full"]);
    scene.canaries.assert_untouched();
    scene.lab.stop();
}
