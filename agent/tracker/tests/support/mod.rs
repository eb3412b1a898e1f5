//! Disks, loads and copiers of the tracker's tests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use mt_blockdev::buffer::AlignedBuf;
use mt_blockdev::sysfs::{DeviceNumber, Sysfs};
use mt_tracker::chunks::ChunkSet;
use mt_tracker::proof::{Doubt, Verdict};
use mt_tracker::tracker::{Options, Tracker};

pub const MIB: u64 = 1 << 20;

/// Notes that a test does not run here; fails where its tier was promised (`scripts/test`).
pub fn skip(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("MT_SKIP_LOG") {
        let line = format!("{test}: {reason}\n");
        let log = File::options().create(true).append(true).open(path);
        log.and_then(|mut log| log.write_all(line.as_bytes()))
            .expect("the log of skips can be written");
    }
    assert!(
        std::env::var_os("MT_PROMISED").is_none_or(|value| value != "1"),
        "{test} was promised here and cannot run: {reason}"
    );
}

/// A tracker, or a note that the test is skipped: without root, loop devices or BPF nothing can be tried here.
pub fn tracker_or_skip(test: &str, options: &Options, programs: &[&str]) -> Option<Tracker> {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        skip(test, "needs root and loop devices");
        return None;
    }
    if let Some(missing) = programs.iter().find(|program| find(program).is_none()) {
        skip(test, &format!("there is no {missing}"));
        return None;
    }
    match Tracker::start(options) {
        Ok(tracker) => Some(tracker),
        Err(error @ mt_tracker::tracker::StartError::Refused(_)) => {
            skip(test, &format!("{error}; {}", error.hint()));
            None
        }
        Err(error) => panic!("{error}; {}", error.hint()),
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Runs a program and returns what it printed; fails the test when it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let path = find(program).unwrap_or_else(|| panic!("there is no {program}"));
    let output = Command::new(path)
        .args(args)
        .output()
        .expect("programs can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}: {errors}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A loop device on a sparse file of its own, taken down when dropped.
pub struct Disk {
    pub path: PathBuf,
    pub name: String,
    pub number: DeviceNumber,
    pub bytes: u64,
    folder: tempfile::TempDir,
}

impl Disk {
    pub fn new(bytes: u64, options: &[&str]) -> Self {
        let parent = std::env::var_os("MT_SCRATCH").unwrap_or_else(|| "/var/tmp".into());
        let folder = tempfile::Builder::new()
            .prefix("mt-tracker-")
            .tempdir_in(parent)
            .expect("scratch");
        let image = folder.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .expect("scratch has room");
        let mut args = vec!["--find", "--show"];
        args.extend_from_slice(options);
        args.push(image.to_str().expect("test paths are text"));
        let path = PathBuf::from(run("losetup", &args));
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("loop devices have names")
            .to_owned();
        let number = Sysfs::default()
            .disk(&name)
            .expect("the loop device is in sysfs")
            .number;
        Self {
            path,
            name,
            number,
            bytes,
            folder,
        }
    }

    pub fn text(&self) -> &str {
        self.path.to_str().expect("test paths are text")
    }

    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The device, read past the page cache.
    pub fn open_direct(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_DIRECT)
            .open(&self.path)
            .expect("the loop device can be opened")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}

/// A mounted file system, unmounted when dropped.
pub struct Mount(pub PathBuf);

impl Mount {
    pub fn new(device: &str, at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("scratch has room");
        run(
            "mount",
            &["-o", "discard", device, at.to_str().expect("test paths are text")],
        );
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("/usr/bin/umount").arg(&self.0).status();
    }
}

/// A control group of its own for block I/O. The loop driver serves each from a worker of its own, so that reads of others
/// overtake the writes of those in it; served by one worker they never would, and the race that is looked for never shows.
pub struct Group(PathBuf);

impl Group {
    pub fn new() -> Option<Self> {
        // Tests of one process each have their own: one that ends takes its group away.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "mt-tracker-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        for parent in ["/sys/fs/cgroup/blkio", "/sys/fs/cgroup"] {
            let parent = Path::new(parent);
            if !parent.join("cgroup.procs").exists() {
                continue;
            }
            if parent.join("cgroup.controllers").exists() {
                let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+io");
            }
            let own = parent.join(&name);
            if std::fs::create_dir(&own).is_ok() {
                return Some(Self(own));
            }
        }
        None
    }

    /// Starts a program in it.
    pub fn spawn(&self, program: &str, args: &[String]) -> Child {
        let path = find(program).unwrap_or_else(|| panic!("there is no {program}"));
        Command::new("sh")
            .args(["-c", "echo $$ >\"$0\"/cgroup.procs && exec \"$@\""])
            .arg(&self.0)
            .arg(path)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("programs can be started")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A copy of a disk that follows the marks, as a replica does.
pub struct Copy {
    source: File,
    buffer: AlignedBuf,
    pub bytes: Vec<u8>,
}

impl Copy {
    /// Of a disk, as it is now.
    pub fn of(disk: &Disk) -> Self {
        let mut copy = Self {
            source: disk.open_direct(),
            buffer: AlignedBuf::zeroed(usize::try_from(MIB).unwrap()),
            bytes: vec![0; usize::try_from(disk.bytes).unwrap()],
        };
        let bytes = std::mem::take(&mut copy.bytes);
        copy.bytes = copy.read_all(bytes);
        copy
    }

    fn read_all(&mut self, mut into: Vec<u8>) -> Vec<u8> {
        for (index, part) in into.chunks_mut(self.buffer.len()).enumerate() {
            let at = u64::try_from(index).unwrap() * MIB;
            let buffer = &mut self.buffer[..part.len()];
            self.source
                .read_exact_at(buffer, at)
                .expect("the disk can be read");
            part.copy_from_slice(buffer);
        }
        into
    }

    /// Reads what has changed.
    pub fn follow(&mut self, changed: &ChunkSet) {
        for extent in changed.extents() {
            let mut at = extent.start;
            while at < extent.end {
                let len = usize::try_from((extent.end - at).min(MIB)).unwrap();
                let buffer = &mut self.buffer[..len];
                self.source
                    .read_exact_at(buffer, at)
                    .expect("the disk can be read");
                let start = usize::try_from(at).unwrap();
                self.bytes[start..start + len].copy_from_slice(buffer);
                at += u64::try_from(len).unwrap();
            }
        }
    }

    /// Blocks of 4096 bytes in which the copy differs from the disk.
    pub fn stale(&mut self) -> Vec<usize> {
        let now = self.read_all(vec![0; self.bytes.len()]);
        let blocks = now.chunks(4096).zip(self.bytes.chunks(4096)).enumerate();
        blocks
            .filter(|(_, (now, copy))| now != copy)
            .map(|(block, _)| block)
            .collect()
    }
}

/// Takes the marks and follows them until none are left.
pub fn settle(tracker: &mut Tracker, disk: &Disk, copy: &mut Copy) {
    for _ in 0..1000 {
        let harvest = tracker.harvest(disk.number).expect("the disk is tracked");
        copy.follow(&harvest.changed);
        if harvest.changed.is_empty() {
            return;
        }
        // A completion that was not seen stays noted, and its chunks come again with every harvest.
        if harvest.under_way > 0 && harvest.changed.len() <= harvest.under_way * 64 {
            let again = tracker.harvest(disk.number).expect("the disk is tracked");
            copy.follow(&again.changed);
            if again.changed == harvest.changed {
                return;
            }
        }
    }
    panic!("the marks of a disk that nobody writes do not end");
}

pub fn doubt(verdict: Verdict) -> Doubt {
    match verdict {
        Verdict::Doubt(doubt) => doubt,
        other => panic!("{other:?} is no doubt"),
    }
}
