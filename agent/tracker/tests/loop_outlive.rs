//! The agent is killed, and another goes on with what the kernel went on marking.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mt_blockdev::buffer::AlignedBuf;
use mt_blockdev::sysfs::Sysfs;
use mt_tracker::chunks::ChunkSet;
use mt_tracker::preflight::Layout;
use mt_tracker::proof::Verdict;
use mt_tracker::tracker::{Options, StartError, Tracker};
use support::{Copy, Disk, MIB, run, settle, tracker_or_skip};

const DISK: u64 = 32 * MIB;
const CHUNK: u32 = 4096;
const FOLDER: &str = "MT_TRACKER_FOLDER";
const NAME: &str = "MT_TRACKER_DISK";
const BYTES: &str = "MT_TRACKER_BYTES";

/// A BPF file system of its own, unmounted when dropped, which ends all that is kept in it.
struct Kept(tempfile::TempDir);

impl Kept {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("mt-tracker-")
            .tempdir_in("/var/tmp")
            .unwrap();
        run("mount", &["-t", "bpf", "bpf", folder.path().to_str().unwrap()]);
        Self(folder)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("tracker")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = Command::new("/usr/bin/umount").arg(self.0.path()).status();
    }
}

/// Not a test by itself: an agent that takes marks, never acknowledges them, and waits to be killed.
#[test]
fn inside() {
    let (Some(folder), Ok(name)) = (std::env::var_os(FOLDER), std::env::var(NAME)) else {
        return;
    };
    let layout = std::env::var_os(BYTES).map_or(Layout::Bits, |_| Layout::Bytes);
    let options = Options {
        layout: Some(layout),
        outlive: Some(folder.into()),
        ..Options::default()
    };
    let mut tracker = Tracker::start(&options).unwrap();
    let disk = Sysfs::default().disk(&name).unwrap();
    tracker.add(&name, disk.number, CHUNK).unwrap();
    println!("SAID ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let harvest = tracker.harvest(disk.number).unwrap();
    println!("SAID {}", harvest.changed.len());
    std::thread::sleep(std::time::Duration::from_secs(600));
}

fn agent(kept: &Kept, disk: &Disk, layout: Layout) -> (Child, impl FnMut() -> String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "inside", "--nocapture"])
        .env(FOLDER, kept.folder())
        .env(NAME, &disk.name);
    if layout == Layout::Bytes {
        command.env(BYTES, "1");
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = move || {
        let line = lines
            .by_ref()
            .map_while(Result::ok)
            .find(|line| line.contains("SAID "))
            .unwrap();
        line.split_once("SAID ").unwrap().1.to_owned()
    };
    (child, said)
}

fn write(disk: &Disk, blocks: std::ops::Range<u64>, value: u8) {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(&disk.path)
        .unwrap();
    let mut buffer = AlignedBuf::zeroed(4096);
    buffer.fill(value);
    for block in blocks {
        file.write_all_at(&buffer, block * 3 * 4096).unwrap();
    }
}

fn killed(test: &str, layout: Layout) {
    if tracker_or_skip(test, &Options::default(), &["mount"]).is_none() {
        return;
    }
    let kept = Kept::new();
    let disk = Disk::new(DISK, &[]);
    let (mut child, mut said) = agent(&kept, &disk, layout);
    assert_eq!(said(), "ready");
    let mut copy = Copy::of(&disk);
    write(&disk, 0..100, 1);
    child.stdin.take().unwrap().write_all(b"take\n").unwrap();
    assert_eq!(said(), "100", "{layout:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    // Nobody is there.
    write(&disk, 50..150, 2);
    let mut heir = Tracker::adopt(&kept.folder()).unwrap().unwrap();
    assert_eq!(
        heir.disks().map(|(_, name)| name).collect::<Vec<_>>(),
        [disk.name.as_str()]
    );
    // One at a time, and none beside it in the same place.
    assert!(matches!(
        Tracker::adopt(&kept.folder()),
        Err(StartError::InUse(_))
    ));
    let beside = Options {
        layout: Some(layout),
        outlive: Some(kept.folder()),
        ..Options::default()
    };
    assert!(matches!(Tracker::start(&beside), Err(StartError::Keep { .. })));
    write(&disk, 200..250, 3);
    settle(&mut heir, &disk, &mut copy);
    assert_eq!(copy.stale(), [0_usize; 0], "{layout:?}");
    assert_eq!(heir.verdict(disk.number).unwrap(), Verdict::Complete);

    // What is acknowledged does not come again, and what is not does.
    let size = heir.size(disk.number).unwrap();
    let mut pending = ChunkSet::new(size);
    pending.insert(9..11);
    heir.acknowledge(disk.number, &pending).unwrap();
    drop(heir);
    let mut next = Tracker::adopt(&kept.folder()).unwrap().unwrap();
    let left = next.harvest(disk.number).unwrap();
    // A completion that was not seen stands as under way, and its chunks come too.
    assert!(
        left.changed.len() <= 2 + left.under_way && left.changed.contains(9) && left.changed.contains(10)
    );
    next.acknowledge(disk.number, &ChunkSet::new(size)).unwrap();
    next.remove(disk.number).unwrap();
    drop(next);
    let none = Tracker::adopt(&kept.folder()).unwrap().unwrap();
    assert_eq!(none.disks().count(), 0);
    drop(none);
    Tracker::discard(&kept.folder()).unwrap();
    Tracker::discard(&kept.folder()).unwrap();
    assert!(Tracker::adopt(&kept.folder()).unwrap().is_none());
}

#[test]
fn an_agent_that_is_killed_has_an_heir_with_bits() {
    killed("an_agent_that_is_killed_has_an_heir_with_bits", Layout::Bits);
}

#[test]
fn an_agent_that_is_killed_has_an_heir_with_bytes() {
    killed("an_agent_that_is_killed_has_an_heir_with_bytes", Layout::Bytes);
}

#[test]
fn a_folder_that_is_not_the_kernels_is_refused() {
    let test = "a_folder_that_is_not_the_kernels_is_refused";
    if tracker_or_skip(test, &Options::default(), &[]).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        outlive: Some(folder.path().join("tracker")),
        ..Options::default()
    };
    let refused = Tracker::start(&options).err().unwrap();
    assert!(
        matches!(refused, StartError::Keep { .. }) && refused.hint().contains("mount -t bpf"),
        "{refused}"
    );
    assert!(!folder.path().join("tracker/tracker-1/bits").exists());
    assert!(Tracker::adopt(folder.path()).unwrap().is_none());
    assert!(Tracker::adopt(Path::new("/nonexistent")).unwrap().is_none());
}
