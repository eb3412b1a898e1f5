//! Gate and exclusive open on real loop devices and image files. Needs root; says so when it is not.

use std::path::Path;

use mt_agent::disks::access::DiskAccess;
use mt_agent::disks::facts::{DiskKind, LabDisk};
use mt_agent::disks::gate::{PairedDisk, Purpose, RefusalKind};
use mt_agent::disks::inventory::{DiskScope, gather};
use mt_agent::disks::open::{OpenError, open_paired};
use mt_agent::error::{ExitCode, Explain as _};
use mt_blockdev::scsi::ScsiId;

#[path = "../blockdev/tests/support/mod.rs"]
mod support;
use support::{Loop, Mount, image, program_or_skip, root_or_skip, run, scratch};

const SIZE: u64 = 16 << 20;

fn id(last: u8) -> ScsiId {
    ScsiId::parse(&format!("naa.6000c29a71e02b4c9d118e55037fab{last:02x}")).expect("a valid ID")
}

fn scope(lab: &[LabDisk]) -> DiskScope {
    DiskScope::new(lab, &[])
}

fn lab(path: &Path, last: u8) -> LabDisk {
    LabDisk {
        scsi_id: id(last),
        path: path.to_owned(),
        block_size: None,
    }
}

fn paired(last: u8) -> PairedDisk {
    PairedDisk {
        scsi_id: id(last),
        size: SIZE,
        logical_block_size: 512,
        may_overwrite: false,
    }
}

fn refusal(result: Result<mt_agent::disks::open::OpenDisk, OpenError>) -> RefusalKind {
    match result {
        Err(OpenError::Refused(refusal)) => refusal.kind(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn root_a_loop_device_is_opened_once_written_and_rechecked() {
    if !root_or_skip("root_a_loop_device_is_opened_once_written_and_rechecked") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", SIZE);
    let device = Loop::attach(&file, &[]);
    let lab = [lab(&device.path, 1)];
    let inventory = gather(&scope(&lab)).unwrap();
    let facts = inventory
        .disks
        .iter()
        .find(|disk| disk.kind == DiskKind::Lab)
        .unwrap();
    assert!(facts.may_be_target, "{:?}", facts.objections);
    assert_eq!((facts.size, facts.content.summary().as_str()), (SIZE, "empty"));

    let open = open_paired(&paired(1), &scope(&lab), Purpose::Write).unwrap();
    assert!(open.device.is_direct());
    open.recheck().unwrap();
    assert_eq!(
        refusal(open_paired(&paired(1), &scope(&lab), Purpose::Write)),
        RefusalKind::Busy,
        "held by ourselves"
    );
    assert_eq!(
        refusal(open_paired(&paired(1), &scope(&lab), Purpose::Verify)),
        RefusalKind::Busy
    );
    let mut block = mt_blockdev::buffer::AlignedBuf::zeroed(4096);
    block.fill(0x5a);
    open.device.write_all_at(&block, 8192).unwrap();
    open.device.flush().unwrap();
    assert!(
        std::fs::read(&file).unwrap()[8192..12288]
            .iter()
            .all(|byte| *byte == 0x5a)
    );

    // The disk grows under the open descriptor: doubt.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(2 * SIZE)
        .unwrap();
    run("losetup", &["--set-capacity", device.text()]);
    let err = open.recheck().unwrap_err();
    assert_eq!(err.kind(), RefusalKind::Changed);
    assert!(err.to_string().ends_with("; nothing more is written"), "{err}");
    drop(open);
    assert_eq!(
        refusal(open_paired(&paired(1), &scope(&lab), Purpose::Write)),
        RefusalKind::Size
    );
}

#[test]
fn root_a_mounted_or_filled_loop_device_is_refused() {
    let test = "root_a_mounted_or_filled_loop_device_is_refused";
    if !root_or_skip(test) || !program_or_skip(test, "mkfs.ext4") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", SIZE);
    let device = Loop::attach(&file, &[]);
    let lab = [lab(&device.path, 2)];
    run("mkfs.ext4", &["-q", "-L", "precious", device.text()]);
    let before = std::fs::read(&file).unwrap();

    let err = open_paired(&paired(2), &scope(&lab), Purpose::Write).unwrap_err();
    assert!(
        err.to_string()
            .contains("is not empty: it holds ext4; nothing was written"),
        "{err}"
    );
    assert!(
        err.hint().unwrap().contains(&format!("--overwrite {}", id(2))),
        "{err}"
    );
    assert_eq!(err.exit_code(), ExitCode::Refused);
    open_paired(&paired(2), &scope(&lab), Purpose::Verify).expect("reading harms nothing");

    let named = PairedDisk {
        may_overwrite: true,
        ..paired(2)
    };
    let mount = Mount::new(device.text(), &dir.path().join("mnt"), &["-o", "ro,noload"]);
    let err = open_paired(&named, &scope(&lab), Purpose::Write).unwrap_err();
    assert!(err.to_string().contains("is mounted on "), "{err}");
    drop(mount);
    assert!(std::fs::read(&file).unwrap() == before, "no refusal wrote a byte");
    open_paired(&named, &scope(&lab), Purpose::Write).expect("named for overwriting and not in use");
    assert!(std::fs::read(&file).unwrap() == before, "opening writes nothing");
}

#[test]
fn root_a_mount_in_another_namespace_is_seen() {
    let test = "root_a_mount_in_another_namespace_is_seen";
    if !root_or_skip(test) || !program_or_skip(test, "mkfs.ext4") || !program_or_skip(test, "unshare") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", SIZE);
    let device = Loop::attach(&file, &[]);
    run("mkfs.ext4", &["-q", device.text()]);
    let mount_point = dir.path().join("mnt");
    std::fs::create_dir(&mount_point).unwrap();
    // The child mounts in a namespace of its own, says so, and lives until its input ends.
    let script = format!(
        "mount -o ro {} {} && echo mounted && cat",
        device.text(),
        mount_point.display()
    );
    let mut child = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.as_mut().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line.trim(), "mounted");
    let named = PairedDisk {
        may_overwrite: true,
        ..paired(3)
    };
    let err = open_paired(&named, &scope(&[lab(&device.path, 3)]), Purpose::Write).unwrap_err();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(err.to_string().contains("in another mount namespace"), "{err}");
}

#[test]
fn root_an_image_file_behind_a_loop_device_is_in_use() {
    if !root_or_skip("root_an_image_file_behind_a_loop_device_is_in_use") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", SIZE);
    let first = Loop::attach(&file, &[]);
    assert_eq!(
        refusal(open_paired(&paired(4), &scope(&[lab(&file, 4)]), Purpose::Write)),
        RefusalKind::LoopAttached
    );
    // The same storage by two names, and by two loop devices.
    let both = [lab(&file, 4), lab(&first.path, 5)];
    assert_eq!(
        refusal(open_paired(&paired(5), &scope(&both), Purpose::Write)),
        RefusalKind::LabDisk
    );
    let second = Loop::attach(&file, &[]);
    assert_eq!(
        refusal(open_paired(
            &paired(5),
            &scope(&[lab(&first.path, 5)]),
            Purpose::Write
        )),
        RefusalKind::LoopAttached
    );
    let both = [lab(&first.path, 4), lab(&second.path, 5)];
    assert_eq!(
        refusal(open_paired(&paired(5), &scope(&both), Purpose::Write)),
        RefusalKind::LabDisk
    );
    drop((first, second));
    open_paired(&paired(4), &scope(&[lab(&file, 4)]), Purpose::Write).expect("free again");
}

#[test]
fn root_a_loop_device_on_a_loop_device_is_a_use_of_the_lower_one() {
    if !root_or_skip("root_a_loop_device_on_a_loop_device_is_a_use_of_the_lower_one") {
        return;
    }
    let dir = scratch();
    let lower = Loop::attach(&image(dir.path(), "disk.img", SIZE), &[]);
    let upper = Loop::attach(&lower.path, &[]);
    assert_eq!(
        refusal(open_paired(
            &paired(6),
            &scope(&[lab(&lower.path, 6)]),
            Purpose::Write
        )),
        RefusalKind::LoopAttached
    );
    drop(upper);
}

#[test]
fn root_a_disk_of_this_machine_is_no_lab_disk() {
    if !root_or_skip("root_a_disk_of_this_machine_is_no_lab_disk") {
        return;
    }
    let Some(disk) = gather(&scope(&[]))
        .unwrap()
        .disks
        .into_iter()
        .find(|disk| disk.number.is_some())
    else {
        println!("root_a_disk_of_this_machine_is_no_lab_disk: skipped, this machine has no disk");
        return;
    };
    let lab = [lab(&disk.devnode, 7)];
    let named = PairedDisk {
        size: disk.size,
        logical_block_size: disk.logical_block_size,
        may_overwrite: true,
        ..paired(7)
    };
    assert_eq!(
        refusal(open_paired(&named, &scope(&lab), Purpose::Write)),
        RefusalKind::LabDisk
    );
}

#[test]
fn an_image_file_is_opened_once_and_rechecked() {
    let dir = scratch();
    let file = image(dir.path(), "disk.img", SIZE);
    let lab = [lab(&file, 8)];
    let open = open_paired(&paired(8), &scope(&lab), Purpose::Write).unwrap();
    open.recheck().unwrap();
    assert_eq!(
        refusal(open_paired(&paired(8), &scope(&lab), Purpose::Write)),
        RefusalKind::Busy
    );
    // Another file takes its name: writes would go to a file nobody finds again.
    let other = image(dir.path(), "other.img", SIZE);
    std::fs::rename(&other, &file).unwrap();
    assert_eq!(open.recheck().unwrap_err().kind(), RefusalKind::Changed);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(open.recheck().unwrap_err().kind(), RefusalKind::Changed);
}

#[tokio::test]
async fn root_a_mount_is_told_and_its_end() {
    use mt_agent::disks::watch::{Watch, WatchTimes};
    use std::time::Duration;
    const NAME: &str = "root_a_mount_is_told_and_its_end";
    if !root_or_skip(NAME) || !program_or_skip(NAME, "mkfs.ext4") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", SIZE);
    let device = Loop::attach(&file, &[]);
    run("mkfs.ext4", &["-q", device.text()]);
    // The slow look is far away: only the table of mounts can tell in time.
    let times = WatchTimes {
        poll: Duration::from_secs(3600),
        ..WatchTimes::default()
    };
    let mut watch = Watch::start(DiskAccess::Own(scope(&[lab(&device.path, 9)])), times)
        .await
        .unwrap();
    let mut mount = None;
    for mounted in [true, false] {
        mount = mounted.then(|| Mount::new(device.text(), &dir.path().join("mnt"), &[]));
        let told = async {
            loop {
                watch.changed().await.unwrap();
                let disks = &watch.inventory().disks;
                let disk = disks.iter().find(|disk| disk.kind == DiskKind::Lab).unwrap();
                if disk.may_be_target != mounted {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told)
            .await
            .unwrap_or_else(|_| panic!("not told that mounted is {mounted}"));
    }
    drop(mount);
}

#[tokio::test]
async fn root_a_disk_that_changes_is_told() {
    use mt_agent::disks::watch::{Watch, WatchTimes};
    use std::time::Duration;
    if !root_or_skip("root_a_disk_that_changes_is_told") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", SIZE);
    let device = Loop::attach(&file, &[]);
    // The slow look is far away: only an event can tell in time.
    let times = WatchTimes {
        poll: Duration::from_secs(3600),
        ..WatchTimes::default()
    };
    let mut watch = Watch::start(DiskAccess::Own(scope(&[lab(&device.path, 9)])), times)
        .await
        .unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(2 * SIZE)
        .unwrap();
    run("losetup", &["--set-capacity", device.text()]);
    let change = tokio::time::timeout(Duration::from_secs(60), watch.changed())
        .await
        .expect("told")
        .unwrap();
    let (before, after) = change
        .diff
        .changed
        .iter()
        .find(|(disk, _)| disk.kind == DiskKind::Lab)
        .unwrap();
    assert_eq!((before.size, after.size), (SIZE, 2 * SIZE));
}
