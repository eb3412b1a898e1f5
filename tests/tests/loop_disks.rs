//! Block devices that are in use, read-only, full, failing or pulled out: refused before a byte is written, or stopped at
//! the first error without a false word of durability.

use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, MIB, assert_same, digest, fill};
use mt_tests::disks::{Canaries, Loop, Mount, run, text};
use mt_tests::faulty::FaultyDisk;
use mt_tests::lab::{Lab, LabDisk, PAIR, scsi_id};
use mt_tests::needs;
use mt_tests::proxy::{Fault, Proxy};

const SIZE: u64 = 16 * MIB;

struct Scene {
    lab: Lab,
    source: std::path::PathBuf,
    canaries: Canaries,
    // Loop devices of the canaries; detached at the end.
    _canary_loops: Vec<Loop>,
}

fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::Random, 51);
    let canaries = Canaries::new(&lab.scratch, 2);
    let loops: Vec<Loop> = canaries.paths().map(|path| Loop::attach(path, &[])).collect();
    for device in &loops {
        lab.add_disk(device.path());
    }
    Scene {
        lab,
        source,
        canaries,
        _canary_loops: loops,
    }
}

impl Scene {
    #[track_caller]
    fn pair_refused(&self, id: &str, code: i32, words: &[&str]) {
        self.lab
            .verb(&["pair", "add", PAIR, id, "--overwrite", id])
            .expect_error(code, words)
            .expect_error(code, &["hint:"]);
        self.canaries.assert_untouched();
    }

    /// Sends over the target's disk; the run must fail with one of the codes and words, and not call it a copy.
    #[track_caller]
    fn send_fails(&self, codes: &[i32], words: &[&str]) -> Said {
        let said = self.lab.send(PAIR, &self.source, &["--retry-for", "0"]);
        assert!(said.code().is_some_and(|code| codes.contains(&code)), "{said}");
        let error = said.event("error");
        let message = format!("{} {}", error["error"], error["hint"]);
        for word in words {
            assert!(message.contains(word), "\"{word}\" is not in {message}");
        }
        assert!(
            !said.stdout.contains("\"event\":\"result\""),
            "it was called a copy: {said}"
        );
        self.canaries.assert_untouched();
        said
    }
}

#[test]
fn loop_a_copy_onto_a_block_device_is_whole_and_synced() {
    needs!(loop);
    let mut scene = scene();
    let image = scene.lab.scratch.sparse("target.img", SIZE);
    let device = Loop::attach(&image, &[]);
    let id = scene.lab.add_disk(device.path());
    scene.lab.start();
    scene.lab.pair(PAIR, &id);
    scene.lab.send(PAIR, &scene.source, &[]).expect_done();
    assert_same(&scene.source, device.path(), SIZE);
    assert_same(&scene.source, &image, SIZE);
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

#[test]
fn loop_disks_in_use_are_refused_by_name_of_their_user() {
    needs!(loop, "mkfs.ext4", "mkswap", "swapon");
    let mut scene = scene();
    let scratch = &scene.lab.scratch;
    let mounted_image = scratch.sparse("mounted.img", SIZE);
    let mounted = Loop::attach(&mounted_image, &[]);
    run("mkfs.ext4", &["-q", mounted.text()]);
    let mount = Mount::new(scratch.join("mnt"), &[mounted.text()]);
    let read_only = Loop::attach(&scratch.sparse("read-only.img", SIZE), &["--read-only"]);
    let under = Loop::attach(&scratch.sparse("under.img", SIZE), &[]);
    let over = Loop::attach(under.path(), &[]);
    let other_blocks = Loop::attach(&scratch.sparse("4k.img", SIZE), &["--sector-size", "4096"]);

    let ids: Vec<String> = [&mounted, &read_only, &under, &other_blocks]
        .iter()
        .map(|device| scene.lab.add_disk(device.path()))
        .collect();
    scene.lab.start();
    scene.pair_refused(&ids[0], 5, &[&ids[0], text(mount.path()), "unmount"]);
    scene.pair_refused(&ids[1], 5, &[&ids[1], "read-only"]);
    scene.pair_refused(&ids[2], 5, &[&ids[2], "losetup"]);
    // It may be paired: that its blocks are others than the protected disk's shows when that is sent.
    scene.lab.pair(PAIR, &ids[3]);
    let before = digest(other_blocks.path(), SIZE);
    scene.send_fails(&[5], &["4096", "512", "block size"]);
    assert!(digest(other_blocks.path(), SIZE) == before);
    drop(over);
    let table = scene
        .lab
        .verb(&["disks", "list", "--config", text(&scene.lab.config_path())])
        .expect_done();
    assert!(table.stdout.contains("unmount it"), "{table}");
    scene.lab.stop();
}

/// A disk that is mounted after it was paired is refused at the next send, and one that is being sent cannot be mounted.
#[test]
fn loop_mounting_and_sending_keep_each_other_out() {
    needs!(loop, "mkfs.ext4");
    let mut scene = scene();
    let image = scene.lab.scratch.sparse("target.img", SIZE);
    let device = Loop::attach(&image, &[]);
    run("mkfs.ext4", &["-q", device.text()]);
    let id = scene.lab.add_disk(device.path());
    scene.lab.start();
    scene
        .lab
        .verb(&["pair", "add", PAIR, &id])
        .expect_error(5, &["ext4", "--overwrite"]);
    scene.lab.pair_over(PAIR, &id);
    let mount = Mount::new(scene.lab.scratch.join("mnt"), &[device.text()]);
    scene.send_fails(&[5], &[&id, "mounted", "unmount"]);
    drop(mount);
    // In every namespace: one that was made while the disk was mounted has the mount until it ends.
    wait_until("the end of the mount", || {
        let processes = std::fs::read_dir("/proc").expect("there are processes");
        !processes.flatten().any(|process| {
            std::fs::read_to_string(process.path().join("mounts"))
                .is_ok_and(|mounts| mounts.contains(&format!("{} ", device.text())))
        })
    });

    let proxy = Proxy::start(scene.lab.address);
    proxy.set_fault(Fault::HoldAt(MIB));
    let mut send = scene.lab.start_send(proxy.address(), PAIR, &scene.source, &[]);
    assert!(proxy.wait_held(|| !send.is_running()), "{}", send.stdout_so_far());
    let mounting = std::process::Command::new("mount")
        .args([device.text(), text(&scene.lab.scratch.join("mnt"))])
        .output()
        .expect("mount starts");
    assert!(
        !mounting.status.success(),
        "a disk that is being written could be mounted"
    );
    proxy.release();
    send.wait().expect_done();
    assert_same(&scene.source, device.path(), SIZE);
    scene.canaries.assert_untouched();
}

#[test]
fn loop_the_appliances_own_disk_is_refused() {
    needs!(loop, "findmnt");
    let mut scene = scene();
    let root = run(
        "findmnt",
        &[
            "--noheadings",
            "--nofsroot",
            "--output",
            "SOURCE",
            "--target",
            "/",
        ],
    );
    if !root.starts_with("/dev/") {
        let reason = format!("/ is on {root}, which is no block device");
        mt_tests::skip::skip(mt_tests::test_name!(), &reason);
        return;
    }
    let id = scene.lab.add(LabDisk {
        scsi_id: scsi_id(77),
        path: root.into(),
        block_size: None,
    });
    scene.lab.start();
    // Lab disks are loop devices and images, so that no lab setting can point at a real disk.
    scene.pair_refused(&id, 5, &[&id, "no loop device"]);
    let table = scene.lab.verb(&["disks", "list"]).expect_done();
    assert!(table.stdout.contains("is the appliance's own"), "{table}");
}

/// A partition is no disk: its neighbours would not be protected by holding it.
#[test]
fn loop_a_partition_is_refused() {
    needs!(loop, "addpart", "delpart");
    let mut scene = scene();
    let image = scene.lab.scratch.sparse("parted.img", 2 * SIZE);
    let device = Loop::attach(&image, &["--partscan"]);
    run("addpart", &[device.text(), "1", "2048", "32768"]);
    let partition = format!("{}p1", device.text());
    wait_until("the node of the partition", || {
        std::path::Path::new(&partition).exists()
    });
    let id = scene.lab.add(LabDisk {
        scsi_id: scsi_id(78),
        path: partition.into(),
        block_size: None,
    });
    scene.lab.start();
    scene.pair_refused(&id, 5, &["partition"]);
    run("delpart", &[device.text(), "1"]);
}

/// EIO and ENOSPC in the middle: the pair stops at once, says so with disk and offset, and acknowledges nothing of it.
/// When the disk works again the next run goes on and the copy is whole.
#[test]
fn loop_a_disk_that_fails_in_the_middle_stops_the_pair_and_later_goes_on() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    for (errno, words) in [("EIO", ["Input/output error"].as_slice()), ("ENOSPC", &[])] {
        let mut scene = scene();
        let disk = FaultyDisk::new(&scene.lab.scratch, SIZE, errno, &["error-pwrite"]);
        let id = scene.lab.add_disk(disk.path());
        scene.lab.start();
        scene.lab.pair(PAIR, &id);
        let proxy = Proxy::start(scene.lab.address);
        proxy.set_fault(Fault::HoldAt(SIZE / 2));
        let mut send = scene
            .lab
            .start_send(proxy.address(), PAIR, &scene.source, &["--retry-for", "0"]);
        assert!(proxy.wait_held(|| !send.is_running()), "{}", send.stdout_so_far());
        disk.fail();
        proxy.release();
        let said = send.wait();
        assert_eq!(said.code(), Some(8), "{errno}: {said}");
        let error = said.event("error")["error"].to_string();
        for word in words {
            assert!(error.contains(word), "\"{word}\" is not in {error}");
        }
        assert!(error.contains("0x"), "the offset is named: {error}");
        let jobs = scene.lab.verb(&["jobs", "list", "--json"]).expect_done().json();
        let job = &jobs["jobs"][0];
        assert_eq!(job["state"], "failed", "{job:#}");
        assert!(
            job["bytes_durable"]
                .as_u64()
                .is_some_and(|durable| durable < SIZE),
            "{job:#}"
        );
        scene.canaries.assert_untouched();

        disk.work();
        // The session that failed may still be about to let go of the pair.
        scene
            .lab
            .send(PAIR, &scene.source, &["--retry-for", "10"])
            .expect_done();
        let copy = scene.lab.scratch.join("copy.img");
        disk.read_all(&copy);
        assert_same(&scene.source, &copy, SIZE);
        scene.lab.stop();
    }
}

/// A target disk that cannot be read any more is not compared by guess.
#[test]
fn loop_a_disk_that_cannot_be_read_is_not_guessed_at() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    let mut scene = scene();
    let disk = FaultyDisk::new(&scene.lab.scratch, SIZE, "EIO", &["error-pread"]);
    let id = scene.lab.add_disk(disk.path());
    scene.lab.start();
    scene.lab.pair_over(PAIR, &id);
    disk.fail();
    scene.send_fails(&[8], &["Input/output error"]);
    disk.work();
    scene
        .lab
        .send(PAIR, &scene.source, &["--retry-for", "10"])
        .expect_done();
    assert_same(&scene.source, disk.path(), SIZE);
    scene.lab.stop();
}

/// The disk is pulled out while it is written: as with any error, and other pairs go on.
#[test]
fn loop_a_disk_that_is_pulled_out_takes_nobody_with_it() {
    needs!(loop, "nbdkit", "nbdfuse", "fusermount3");
    let mut scene = scene();
    let mut disk = FaultyDisk::new(&scene.lab.scratch, SIZE, "EIO", &["error-pwrite"]);
    let id = scene.lab.add_disk(disk.path());
    let other_image = scene.lab.scratch.sparse("other.img", SIZE);
    let other_disk = Loop::attach(&other_image, &[]);
    let other_id = scene.lab.add_disk(other_disk.path());
    scene.lab.start();
    scene.lab.pair(PAIR, &id);
    scene.lab.pair("db02/scsi0:1", &other_id);
    let proxies = [Proxy::start(scene.lab.address), Proxy::start(scene.lab.address)];
    let mut sends: Vec<_> = proxies
        .iter()
        .zip([PAIR, "db02/scsi0:1"])
        .map(|(proxy, pair)| {
            proxy.set_fault(Fault::HoldAt(SIZE / 2));
            scene
                .lab
                .start_send(proxy.address(), pair, &scene.source, &["--retry-for", "0"])
        })
        .collect();
    for (proxy, send) in proxies.iter().zip(&mut sends) {
        assert!(proxy.wait_held(|| !send.is_running()), "{}", send.stdout_so_far());
    }
    disk.pull();
    proxies.iter().for_each(Proxy::release);
    let other = sends.pop().expect("two were started").wait();
    let pulled = sends.pop().expect("two were started").wait();
    assert!(matches!(pulled.code(), Some(5 | 8)), "{pulled}");
    other.expect_done();
    assert_same(&scene.source, other_disk.path(), SIZE);
    assert!(scene.lab.target().is_running());
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// A thin disk whose datastore is full: a sparse image on a small tmpfs.
#[test]
fn loop_a_full_datastore_is_called_full() {
    needs!(loop);
    let mut scene = scene();
    let store = Mount::new(
        scene.lab.scratch.join("datastore"),
        &["-t", "tmpfs", "-o", "size=6m", "tmpfs"],
    );
    let image = store.path().join("thin.img");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(SIZE))
        .expect("the image is all hole");
    let id = scene.lab.add_disk(&image);
    scene.lab.start();
    scene.lab.pair(PAIR, &id);
    let said = scene.send_fails(&[8], &[]);
    let error = said.event("error");
    let message = format!("{} {}", error["error"], error["hint"]);
    assert!(message.contains("space"), "{message}");
    let jobs = scene.lab.verb(&["jobs", "list", "--json"]).expect_done().json();
    assert_eq!(jobs["jobs"][0]["state"], "failed", "{jobs:#}");
    run("mount", &["-o", "remount,size=64m", text(store.path())]);
    scene
        .lab
        .send(PAIR, &scene.source, &["--retry-for", "0"])
        .expect_done();
    assert_same(&scene.source, &image, SIZE);
    scene.lab.stop();
}

/// LVM on a loop device has no device-mapper here; what lies on the disk is enough to refuse it without a word of
/// the operator.
#[test]
fn loop_what_others_left_on_a_disk_needs_a_word() {
    needs!(loop, "mkfs.xfs", "mkfs.ext4", "mkswap", "sfdisk");
    let mut scene = scene();
    type Make = fn(&str);
    let fixtures: [(&str, Make, &str); 5] = [
        ("ext4", |path| drop(run("mkfs.ext4", &["-q", path])), "ext4"),
        ("xfs", |path| drop(run("mkfs.xfs", &["-q", path])), "xfs"),
        ("swap", |path| drop(run("mkswap", &[path])), "swap"),
        (
            "gpt",
            |path| {
                drop(run(
                    "sh",
                    &["-c", &format!("echo 'label: gpt' | sfdisk -q {path}")],
                ))
            },
            "gpt",
        ),
        ("lvm", lvm_label, "LVM"),
    ];
    let mut disks = Vec::new();
    for (name, make, word) in fixtures {
        let image = scene.lab.scratch.sparse(
            &format!("{name}.img"),
            if name == "xfs" { 512 * MIB } else { SIZE },
        );
        make(text(&image));
        let before = digest(&image, SIZE);
        let device = Loop::attach(&image, &[]);
        let id = scene.lab.add_disk(device.path());
        disks.push((id, image, before, word, device));
    }
    scene.lab.start();
    for (id, image, before, word, _) in &disks {
        let said = scene
            .lab
            .verb(&["pair", "add", PAIR, id])
            .expect_error(5, &[id, "--overwrite"]);
        assert!(
            said.stderr.to_lowercase().contains(&word.to_lowercase()),
            "{word}: {said}"
        );
        assert!(
            digest(image, SIZE) == *before,
            "{word}: a refused disk was written to"
        );
    }
    scene.canaries.assert_untouched();
    scene.lab.stop();
}

/// A physical volume's label, written by hand: pvcreate wants device-mapper, which not every kernel has.
fn lvm_label(path: &str) {
    let mut sector = vec![0_u8; 512];
    sector[..8].copy_from_slice(b"LABELONE");
    sector[8..16].copy_from_slice(&1_u64.to_le_bytes());
    sector[20..24].copy_from_slice(&32_u32.to_le_bytes());
    sector[24..32].copy_from_slice(b"LVM2 001");
    sector[32..64].copy_from_slice(b"AbCdEfGhIjKlMnOpQrStUvWxYz012345");
    let crc = sector[20..].iter().fold(0xf597_a6cf_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    sector[16..20].copy_from_slice(&crc.to_le_bytes());
    mt_tests::data::write_at(std::path::Path::new(path), 512, &sector);
}
