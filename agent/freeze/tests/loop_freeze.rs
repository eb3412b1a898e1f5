//! Freezes file systems on loop devices, and kills whoever is to thaw them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use mt_blockdev::ioctl;
use mt_blockdev::mounts::Proc;
use mt_blockdev::sysfs::Sysfs;
use mt_freeze::agent::{FileSystem, FreezeError, Frozen, freeze};
use mt_freeze::select::select;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(30);
/// What a hanging test waits for.
const FOR_EVER: Duration = Duration::from_secs(60);

fn skip(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("MT_SKIP_LOG") {
        let log = File::options().create(true).append(true).open(path);
        log.and_then(|mut log| log.write_all(format!("{test}: {reason}\n").as_bytes()))
            .unwrap();
    }
    assert!(
        std::env::var_os("MT_PROMISED").is_none_or(|value| value != "1"),
        "{test} was promised here and cannot run: {reason}"
    );
}

fn can(test: &str) -> bool {
    let can = nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !can {
        skip(test, "needs root and loop devices");
    }
    can
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

/// A file system in a file of its own, mounted by way of a loop device, and gone when dropped.
struct Mounted {
    at: PathBuf,
    folder: Option<tempfile::TempDir>,
}

impl Mounted {
    fn new(kind: &str) -> Self {
        let parent = std::env::var_os("MT_SCRATCH").unwrap_or_else(|| "/var/tmp".into());
        let folder = tempfile::Builder::new()
            .prefix("mt-freeze-")
            .tempdir_in(parent)
            .unwrap();
        let path = folder.path().to_owned();
        let mut mounted = Self::within(kind, &path);
        mounted.folder = Some(folder);
        mounted
    }

    /// With its file in this folder.
    fn within(kind: &str, folder: &Path) -> Self {
        let (image, at) = (folder.join("image"), folder.join("mnt"));
        File::create(&image)
            .and_then(|file| file.set_len(if kind == "xfs" { 320 << 20 } else { 450 << 20 }))
            .unwrap();
        run(&format!("mkfs.{kind}"), &["-q", image.to_str().unwrap()]);
        std::fs::create_dir(&at).unwrap();
        run(
            "mount",
            &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()],
        );
        Self { at, folder: None }
    }

    fn level(&self, level: usize) -> FileSystem {
        FileSystem {
            mount_point: self.at.clone(),
            level,
        }
    }

    fn is_frozen(&self) -> bool {
        let file = File::open(&self.at).unwrap();
        match ioctl::freeze(&file) {
            Err(Errno::EBUSY) => true,
            Ok(()) => {
                ioctl::thaw(&file).unwrap();
                false
            }
            Err(errno) => panic!("{}: {errno}", self.at.display()),
        }
    }

    /// Writes in another thread, which ends when it can be written.
    fn write(&self) -> Receiver<()> {
        let (tell, told) = channel();
        let path = self.at.join("written");
        std::thread::spawn(move || {
            std::fs::write(&path, b"x").unwrap();
            let _ = tell.send(());
        });
        told
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test that has failed may have left it frozen, and that would hang here.
        if let Ok(file) = File::open(&self.at) {
            let _ = ioctl::thaw(&file);
        }
        let _ = Command::new("/usr/bin/umount").arg(&self.at).status();
    }
}

/// The example beside the tests: `target/debug/examples/freeze_guard`.
fn guard() -> Command {
    let tests = std::env::current_exe().unwrap();
    let program = tests
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples/freeze_guard");
    assert!(
        program.exists(),
        "build the example freeze_guard: {} is not there",
        program.display()
    );
    Command::new(program)
}

fn frozen(file_systems: &[FileSystem], limit: Duration) -> Frozen {
    freeze(guard(), file_systems, limit).unwrap()
}

#[test]
fn several_are_frozen_together_and_thawed() {
    if !can("several_are_frozen_together_and_thawed") {
        return;
    }
    let (ext4, xfs) = (Mounted::new("ext4"), Mounted::new("xfs"));
    let hold = frozen(&[ext4.level(0), xfs.level(0)], LONG);
    assert!(ext4.is_frozen() && xfs.is_frozen());
    let (first, second) = (ext4.write(), xfs.write());
    // Reading goes on.
    assert!(std::fs::read_dir(&ext4.at).unwrap().next().is_some());
    assert!(first.try_recv().is_err() && second.try_recv().is_err());
    hold.thaw().unwrap();
    first.recv_timeout(FOR_EVER).unwrap();
    second.recv_timeout(FOR_EVER).unwrap();
    assert!(!ext4.is_frozen() && !xfs.is_frozen());
}

#[test]
fn one_that_is_dropped_is_thawed() {
    if !can("one_that_is_dropped_is_thawed") {
        return;
    }
    let ext4 = Mounted::new("ext4");
    drop(frozen(&[ext4.level(0)], LONG));
    assert!(!ext4.is_frozen());
}

#[test]
fn the_limit_thaws() {
    if !can("the_limit_thaws") {
        return;
    }
    let ext4 = Mounted::new("ext4");
    let hold = frozen(&[ext4.level(0)], Duration::from_millis(300));
    // Comes back when it is thawed, and nobody asked.
    ext4.write().recv_timeout(FOR_EVER).unwrap();
    assert!(matches!(hold.thaw(), Err(FreezeError::Late(_))));
}

/// Not a test by itself: freezes what it is told to and waits to be killed.
#[test]
fn inside() {
    let Some(mount_point) = std::env::var_os("MT_FREEZE_INSIDE") else {
        return;
    };
    let hold = frozen(
        &[FileSystem {
            mount_point: mount_point.into(),
            level: 0,
        }],
        LONG,
    );
    println!("HELD {}", hold.guard_pid());
    std::thread::sleep(FOR_EVER);
}

/// A process that holds this file system frozen, and its guard's number.
fn agent(mounted: &Mounted) -> (std::process::Child, i32) {
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--nocapture"])
        .env("MT_FREEZE_INSIDE", &mounted.at)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find(|line| line.contains("HELD "))
        .unwrap();
    let guard = line.split_once("HELD ").unwrap().1.trim().parse().unwrap();
    (agent, guard)
}

#[test]
fn an_agent_that_is_killed_leaves_nothing_frozen() {
    if !can("an_agent_that_is_killed_leaves_nothing_frozen") {
        return;
    }
    let ext4 = Mounted::new("ext4");
    let (mut agent, guard) = agent(&ext4);
    assert!(ext4.is_frozen());
    // What a terminal or a service manager sends first does not reach the guard.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(guard), signal).unwrap();
    }
    assert!(ext4.is_frozen());
    agent.kill().unwrap();
    agent.wait().unwrap();
    ext4.write().recv_timeout(FOR_EVER).unwrap();
    assert!(!ext4.is_frozen());
}

#[test]
fn a_guard_that_is_killed_leaves_nothing_frozen() {
    if !can("a_guard_that_is_killed_leaves_nothing_frozen") {
        return;
    }
    let ext4 = Mounted::new("ext4");
    let hold = frozen(&[ext4.level(0)], LONG);
    kill(
        Pid::from_raw(hold.guard_pid().try_into().unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    assert!(matches!(hold.thaw(), Err(FreezeError::Lost)));
    assert!(!ext4.is_frozen());
}

#[test]
fn a_guard_that_is_stopped_leaves_nothing_frozen() {
    if !can("a_guard_that_is_stopped_leaves_nothing_frozen") {
        return;
    }
    let ext4 = Mounted::new("ext4");
    let hold = frozen(&[ext4.level(0)], Duration::from_millis(200));
    let guard = Pid::from_raw(hold.guard_pid().try_into().unwrap());
    kill(guard, Signal::SIGSTOP).unwrap();
    assert!(matches!(hold.thaw(), Err(FreezeError::Lost)));
    let thawed = ext4.write().recv_timeout(FOR_EVER);
    kill(guard, Signal::SIGCONT).unwrap();
    thawed.unwrap();
    // It holds the file system open until it has ended.
    while kill(guard, None).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A freeze writes what is dirty, into a file of the other file system.
#[test]
fn one_in_a_file_of_another_is_frozen_first() {
    if !can("one_in_a_file_of_another_is_frozen_first") {
        return;
    }
    let outer = Mounted::new("ext4");
    let inner = Mounted::within("xfs", &outer.at);
    std::fs::write(inner.at.join("dirty"), vec![1; 8 << 20]).unwrap();
    let hold = frozen(&[inner.level(0), outer.level(1)], LONG);
    assert!(inner.is_frozen() && outer.is_frozen());
    hold.thaw().unwrap();
    inner.write().recv_timeout(FOR_EVER).unwrap();
}

/// The other way round the second freeze waits for a write that the first has stopped. The kernel knows no way to take it
/// back, so it comes back when the limit has thawed the first, and is thawed then.
#[test]
fn a_freeze_that_hangs_is_given_up() {
    if !can("a_freeze_that_hangs_is_given_up") {
        return;
    }
    let outer = Mounted::new("ext4");
    let inner = Mounted::within("xfs", &outer.at);
    let hung = freeze(
        guard(),
        &[inner.level(1), outer.level(0)],
        Duration::from_millis(500),
    );
    assert!(matches!(hung, Err(FreezeError::Late(_))), "{hung:?}");
    assert!(!inner.is_frozen() && !outer.is_frozen());
    inner.write().recv_timeout(FOR_EVER).unwrap();
}

#[test]
fn what_cannot_be_frozen_is_told_and_nothing_else_stays_frozen() {
    if !can("what_cannot_be_frozen_is_told_and_nothing_else_stays_frozen") {
        return;
    }
    let ext4 = Mounted::new("ext4");
    let other = FileSystem {
        mount_point: "/proc".into(),
        level: 0,
    };
    let refused = freeze(guard(), &[ext4.level(0), other], LONG);
    match refused {
        Err(FreezeError::Refused { mount_point, source }) => {
            assert_eq!(mount_point, Path::new("/proc"));
            assert_eq!(source.raw_os_error(), Some(nix::libc::EOPNOTSUPP), "{source}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!ext4.is_frozen());
}

#[test]
fn what_somebody_else_has_frozen_stays_so() {
    if !can("what_somebody_else_has_frozen_stays_so") {
        return;
    }
    let (ours, theirs) = (Mounted::new("ext4"), Mounted::new("ext4"));
    let file = File::open(&theirs.at).unwrap();
    ioctl::freeze(&file).unwrap();
    // The guard flushes first, which on a frozen file system has nothing to do.
    let refused = freeze(guard(), &[ours.level(0), theirs.level(1)], LONG);
    let still = theirs.is_frozen();
    ioctl::thaw(&file).unwrap();
    assert!(
        matches!(&refused, Err(FreezeError::Refused { mount_point, .. }) if *mount_point == theirs.at),
        "{refused:?}"
    );
    assert!(still && !ours.is_frozen());
}

#[test]
fn a_guard_that_cannot_start_is_told() {
    let refused = freeze(Command::new("/nonexistent/guard"), &[], LONG);
    assert!(matches!(refused, Err(FreezeError::Start { .. })), "{refused:?}");
    if !can("a_guard_that_cannot_start_is_told") {
        return;
    }
    // Nothing to freeze, or what is not there.
    assert!(matches!(freeze(guard(), &[], LONG), Err(FreezeError::Lost)));
    let missing = FileSystem {
        mount_point: "/nonexistent".into(),
        level: 0,
    };
    let refused = freeze(guard(), &[missing], LONG);
    assert!(
        matches!(&refused, Err(FreezeError::Refused { source, .. }) if source.raw_os_error() == Some(nix::libc::ENOENT))
    );
}

/// What is mounted on a disk is found from what the kernel says, and frozen.
#[test]
fn what_is_on_a_disk_is_found_and_frozen() {
    if !can("what_is_on_a_disk_is_found_and_frozen") {
        return;
    }
    let outer = Mounted::new("ext4");
    let inner = Mounted::within("xfs", &outer.at);
    let mounts = Proc::default().mounts().unwrap().mounts;
    let nodes = Sysfs::default().nodes().unwrap();
    let number = mounts
        .iter()
        .find(|mount| mount.mount_point == outer.at)
        .unwrap()
        .number;
    let disk = nodes
        .iter()
        .find(|node| node.number == number)
        .unwrap()
        .name
        .clone();
    let selection = select(&mounts, &nodes, &[disk].into());
    assert_eq!(selection.file_systems, [inner.level(0), outer.level(1)]);
    let hold = frozen(&selection.file_systems, LONG);
    assert!(inner.is_frozen() && outer.is_frozen());
    hold.thaw().unwrap();
}
