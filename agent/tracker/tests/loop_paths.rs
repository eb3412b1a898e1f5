//! Whether a change is marked whichever way it reaches the disk: more than 10,000 writes, discards and zeroings through
//! files, the page cache, mapped memory, asynchronous I/O, file systems and partitions, while the marks are taken all the
//! time. A copy that follows the marks must end equal to the disk, and every chunk that differs from before must have
//! been marked in that phase.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mt_blockdev::buffer::AlignedBuf;
use mt_blockdev::ioctl;
use mt_tracker::chunks::{CHUNK_BYTES_DEFAULT, ChunkSet, ChunkSize};
use mt_tracker::preflight::Layout;
use mt_tracker::proof::Verdict;
use mt_tracker::tracker::{Options, Tracker};
use nix::libc;
use support::{Copy, Disk, MIB, Mount, run, settle, tracker_or_skip};

/// Size of the disk that is written as it is.
const RAW: u64 = 64 * MIB;
/// mkfs.xfs makes nothing smaller than 300 MiB.
const FILE_SYSTEM: u64 = 320 * MIB;

/// A tracked disk, its copy, and how many operations were made.
struct Scene {
    tracker: Tracker,
    disk: Disk,
    copy: Copy,
    chunk: u32,
    operations: u64,
}

impl Scene {
    fn new(mut tracker: Tracker, bytes: u64, chunk: u32) -> Self {
        // With partitions, which the kernel refuses a loop device else.
        let disk = Disk::new(bytes, &["--partscan"]);
        tracker
            .add(&disk.name, disk.number, chunk)
            .expect("a loop device can be tracked");
        let copy = Copy::of(&disk);
        Self {
            tracker,
            disk,
            copy,
            chunk,
            operations: 0,
        }
    }

    /// Does something to the disk while another thread takes the marks, and checks the copy.
    fn phase(&mut self, name: &str, act: impl FnOnce(&Disk) -> u64) {
        let before = self.copy.bytes.clone();
        let size = ChunkSize::new(self.disk.bytes, self.chunk).expect("the disk has a size");
        let mut marked = ChunkSet::new(size);
        let ended = AtomicBool::new(false);
        let (tracker, copy, disk) = (&mut self.tracker, &mut self.copy, &self.disk);
        let mut harvests = 0;
        let done = std::thread::scope(|scope| {
            let follower = scope.spawn(|| {
                while !ended.load(Ordering::Acquire) {
                    let harvest = tracker.harvest(disk.number).expect("the disk is tracked");
                    marked.union(&harvest.changed);
                    copy.follow(&harvest.changed);
                    harvests += 1;
                }
            });
            let done = act(disk);
            ended.store(true, Ordering::Release);
            follower.join().expect("the follower ends");
            done
        });
        // Nothing of it may be waiting in the page cache.
        File::open(&disk.path)
            .and_then(|file| file.sync_all())
            .expect("the disk can be flushed");
        let last = tracker.harvest(disk.number).expect("the disk is tracked");
        marked.union(&last.changed);
        copy.follow(&last.changed);
        settle(tracker, disk, copy);
        assert_eq!(copy.stale(), [0_usize; 0], "{name}: blocks that the copy missed");
        let chunk = usize::try_from(self.chunk).unwrap();
        let mut changed = 0;
        for (index, (was, is)) in before
            .chunks(chunk)
            .zip(self.copy.bytes.chunks(chunk))
            .enumerate()
        {
            if was != is {
                changed += 1;
                assert!(
                    marked.contains(u64::try_from(index).unwrap()),
                    "{name}: chunk {index} changed without a mark"
                );
            }
        }
        assert!(changed > 0, "{name} changed nothing");
        let verdict = self.tracker.verdict(disk.number).expect("the disk is tracked");
        assert_eq!(verdict, Verdict::Complete, "{name}");
        println!(
            "{name}: {done} operations, {changed} chunks changed, {} marked, {harvests} harvests",
            marked.len()
        );
        self.operations += done;
    }

    fn fio(&mut self, name: &str, count: u64, options: &[&str]) {
        self.phase(name, |disk| {
            let file = format!("--filename={}", disk.text());
            fio(name, count, &file, options)
        });
    }
}

fn fio(name: &str, count: u64, file: &str, options: &[&str]) -> u64 {
    // fio's data and places depend on its seed alone, and twice the same change nothing.
    static SEED: AtomicU64 = AtomicU64::new(1);
    let seed = format!("--randseed={}", SEED.fetch_add(1, Ordering::Relaxed));
    let (name, number) = (format!("--name={name}"), format!("--number_ios={count}"));
    let mut args = vec![
        name.as_str(),
        file,
        &number,
        &seed,
        "--refill_buffers",
        "--allow_mounted_write=1",
        "--end_fsync=1",
    ];
    args.extend_from_slice(options);
    run("fio", &args);
    count
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX constants.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Writes, zeroings, discards, punched holes and odd lengths, one after the other.
fn calls(path: &Path, bytes: u64, count: u64, seed: u64) -> u64 {
    let cached = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let direct = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let mut numbers = Numbers(seed);
    let mut buffer = AlignedBuf::zeroed(1 << 17);
    for index in 0..count {
        let len = (1 + numbers.below(64)) * 512;
        let at = numbers.below((bytes - len) / 512) * 512;
        let part = usize::try_from(len).unwrap();
        buffer[..part].fill(u8::try_from(1 + index % 255).unwrap());
        match numbers.below(7) {
            0 => cached.write_all_at(&buffer[..part - 1], at).unwrap(),
            1 | 2 => direct.write_all_at(&buffer[..part], at).unwrap(),
            3 => ioctl::zero_out(&cached, at, len).unwrap(),
            4 => ioctl::discard(&cached, at, len).unwrap(),
            5 => fallocate(
                &cached,
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                at,
                len,
            ),
            _ => fallocate(
                &cached,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                at,
                len,
            ),
        }
    }
    cached.sync_all().unwrap();
    count
}

fn fallocate(file: &File, mode: i32, at: u64, len: u64) {
    let flags = nix::fcntl::FallocateFlags::from_bits_truncate(mode);
    let (at, len) = (i64::try_from(at).unwrap(), i64::try_from(len).unwrap());
    nix::fcntl::fallocate(file, flags, at, len).unwrap();
}

fn every_path(test: &str, layout: Layout, chunk: u32) {
    let options = Options {
        layout: Some(layout),
        ..Options::default()
    };
    let Some(tracker) = tracker_or_skip(test, &options, &["fio", "addpart"]) else {
        return;
    };
    let mut scene = Scene::new(tracker, RAW, chunk);
    let random = ["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0"];
    let with = |more: &[&'static str]| -> Vec<&'static str> { [&random[..], more].concat() };

    scene.phase("calls", |disk| calls(&disk.path, disk.bytes, 2000, 1));
    scene.fio("direct", 1000, &with(&["--direct=1", "--ioengine=psync"]));
    scene.fio("cached", 1000, &with(&["--ioengine=psync", "--fsync=50"]));
    scene.fio("vectors", 500, &with(&["--ioengine=pvsync2", "--sync=dsync"]));
    scene.fio(
        "mapped",
        1000,
        &["--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--fsync=100"],
    );
    scene.fio(
        "aio",
        1500,
        &with(&["--direct=1", "--ioengine=libaio", "--iodepth=32"]),
    );
    scene.fio(
        "uring",
        1500,
        &with(&["--direct=1", "--ioengine=io_uring", "--iodepth=32"]),
    );
    scene.fio(
        "uring-cached",
        500,
        &with(&["--ioengine=io_uring", "--iodepth=32"]),
    );
    let merges = merges_of(&scene.disk);
    scene.fio(
        "merged",
        1000,
        &[
            "--rw=write",
            "--bs=4k",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=64",
            "--iodepth_batch_submit=32",
        ],
    );
    assert!(merges_of(&scene.disk) > merges, "nothing was merged");
    scene.fio(
        "discards",
        500,
        &["--rw=randtrim", "--bs=64k", "--direct=1", "--ioengine=psync"],
    );
    scene.fio(
        "trim-and-write",
        500,
        &["--rw=trimwrite", "--bs=32k", "--direct=1", "--ioengine=psync"],
    );
    scene.phase("all of it discarded", |disk| {
        run("blkdiscard", &[disk.text()]);
        1
    });
    partitions(&mut scene);
    let counters = scene.tracker.counters(scene.disk.number).unwrap();
    println!("{} operations; {counters:?}", scene.operations);
    assert!(scene.operations >= 10_000, "{} operations", scene.operations);
    assert!(counters.completed_discard > 0 && counters.completed_write > 0);
    assert_eq!(
        (
            counters.beyond,
            counters.unmarked,
            counters.unmatched,
            counters.wide
        ),
        (0, 0, 0, 0)
    );
}

/// Writes that the kernel has merged with others before they were issued (`Documentation/block/stat.rst`).
fn merges_of(disk: &Disk) -> u64 {
    let text = std::fs::read_to_string(format!("/sys/block/{}/stat", disk.name)).unwrap();
    text.split_whitespace().nth(5).unwrap().parse().unwrap()
}

fn partitions(scene: &mut Scene) {
    let disk = scene.disk.text().to_owned();
    // BLKPG: the table in the kernel only. Sectors of 512 bytes.
    run("addpart", &[&disk, "1", "2048", "20480"]);
    run("addpart", &[&disk, "2", "22528", "81920"]);
    let second = Node::of(&scene.disk, 2);
    scene.phase("a partition", |_| calls(&second.0, 40 * MIB, 500, 2));
    let file = format!("--filename={}", second.0.display());
    scene.phase("a partition, asynchronously", |_| {
        fio(
            "partition",
            500,
            &file,
            &[
                "--rw=randwrite",
                "--bs=4k",
                "--direct=1",
                "--ioengine=io_uring",
                "--iodepth=16",
            ],
        )
    });
    drop(second);
    for number in ["1", "2"] {
        run("delpart", &[&disk, number]);
    }
}

/// A node for a partition, also where no udev and no devtmpfs make one.
struct Node(std::path::PathBuf);

impl Node {
    fn of(disk: &Disk, partition: u32) -> Self {
        let name = format!("{}p{partition}", disk.name);
        let number = std::fs::read_to_string(format!("/sys/class/block/{name}/dev"))
            .expect("the kernel has the partition");
        let (major, minor) = number.trim().split_once(':').expect("a device number");
        let path = disk.scratch().join(name);
        run("mknod", &[path.to_str().unwrap(), "b", major, minor]);
        Self(path)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file_system(scene: &mut Scene, kind: &str, force: &str) {
    let mkfs = format!("mkfs.{kind}");
    scene.phase(&mkfs, |disk| {
        run(&mkfs, &["-q", force, disk.text()]);
        1
    });
    scene.phase(&format!("{kind}, mounted"), |disk| {
        let mount = Mount::new(disk.text(), &disk.scratch().join("mnt"));
        let at = mount.0.to_str().unwrap().to_owned();
        let folder = format!("--directory={at}");
        let mut done = 0;
        for (engine, direct) in [
            ("psync", "--direct=0"),
            ("mmap", "--direct=0"),
            ("io_uring", "--direct=1"),
        ] {
            let engine = format!("--ioengine={engine}");
            done += fio(
                "file",
                500,
                &folder,
                &[
                    "--rw=randwrite",
                    "--bs=4k",
                    "--size=24M",
                    "--nrfiles=8",
                    "--fsync=40",
                    &engine,
                    direct,
                ],
            );
        }
        // Files that are written, truncated and removed; then what is free is discarded.
        for index in 0..50_u64 {
            let path = mount.0.join(format!("small-{index}"));
            std::fs::write(&path, vec![7; 3000 * usize::try_from(index + 1).unwrap()]).unwrap();
            if index % 3 == 0 {
                std::fs::remove_file(&path).unwrap();
            }
        }
        run("fstrim", &[&at]);
        done + 51
    });
}

#[test]
fn what_file_systems_write_is_seen() {
    let test = "what_file_systems_write_is_seen";
    let programs = ["fio", "mkfs.ext4", "mkfs.xfs", "fstrim"];
    let Some(tracker) = tracker_or_skip(test, &Options::default(), &programs) else {
        return;
    };
    let mut scene = Scene::new(tracker, FILE_SYSTEM, CHUNK_BYTES_DEFAULT);
    for (kind, force) in [("ext4", "-F"), ("xfs", "-f")] {
        file_system(&mut scene, kind, force);
    }
}

#[test]
fn every_way_to_the_disk_is_seen_with_bits() {
    every_path(
        "every_way_to_the_disk_is_seen_with_bits",
        Layout::Bits,
        CHUNK_BYTES_DEFAULT,
    );
}

/// As on kernels before 5.12.
#[test]
fn every_way_to_the_disk_is_seen_with_bytes() {
    every_path("every_way_to_the_disk_is_seen_with_bytes", Layout::Bytes, 4096);
}
