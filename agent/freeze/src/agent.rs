//! The agent's side: starts the guard, waits until everything is frozen, and asks for the thaw.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use mt_blockdev::ioctl;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest time that the flush before a freeze may take; nothing is frozen meanwhile.
const SYNC_MAX: Duration = Duration::from_secs(60);
/// How much longer than the limit a guard may take to say that it has thawed, before its agent does it.
const GRACE: Duration = Duration::from_secs(1);

/// A file system that is to be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Its level: 0 is frozen first. One in a file of another has a lower level than the other.
    pub level: usize,
}

/// Why nothing is frozen, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The guard could not be started.
    #[error("the guard of the freeze ({program}) cannot be started: {source}; nothing was frozen")]
    Start {
        /// What was started.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// One file system could not be frozen.
    #[error("the file system at {mount_point} cannot be frozen: {source}; all others were thawed")]
    Refused {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It took too long.
    #[error("the limit of the freeze was reached; everything was thawed after {} ms", .0.as_millis())]
    Late(Duration),
    /// The guard is gone, or says what it never says.
    #[error("the guard of the freeze is gone; everything was thawed without it")]
    Lost,
}

/// Everything is frozen. Dropped, it is thawed.
#[derive(Debug)]
pub struct Frozen {
    guard: Guard,
}

#[derive(Debug)]
struct Guard {
    /// Until it has ended and was waited for.
    child: Option<Child>,
    pid: u32,
    /// Longest time to wait for a word of it.
    patience: Duration,
    ask: Option<ChildStdin>,
    hear: BufReader<ChildStdout>,
    file_systems: Vec<FileSystem>,
}

/// The arguments with which a guard is started ([`crate::guard::run`]), after those that make the program one.
#[must_use]
pub fn arguments(file_systems: &[FileSystem], limit: Duration) -> Vec<OsString> {
    let mut arguments = vec![limit.as_millis().to_string().into()];
    for file_system in file_systems {
        arguments.push(file_system.level.to_string().into());
        arguments.push(file_system.mount_point.clone().into());
    }
    arguments
}

/// Freezes all of these file systems, or none.
///
/// `guard` is a program that calls [`crate::guard::run`] with the arguments given to it; what it needs before them is set
/// already. Returns when everything is frozen. From the first freeze on `limit` runs; when it ends everything is thawed.
///
/// # Errors
/// Then nothing is frozen any more.
pub fn freeze(
    mut guard: Command,
    file_systems: &[FileSystem],
    limit: Duration,
) -> Result<Frozen, FreezeError> {
    let program = guard.get_program().to_string_lossy().into_owned();
    let start = |source| FreezeError::Start {
        program: program.clone(),
        source,
    };
    let mut child = guard
        .args(arguments(file_systems, limit))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let ask = child.stdin.take();
    let hear = child
        .stdout
        .take()
        .ok_or_else(|| start(io::ErrorKind::BrokenPipe.into()))?;
    let mut guard = Guard {
        pid: child.id(),
        child: Some(child),
        // It syncs before it freezes, and that takes what it takes; but no longer than a disk that is overloaded.
        patience: SYNC_MAX + limit,
        ask,
        hear: BufReader::new(hear),
        file_systems: file_systems.to_vec(),
    };
    let line = guard.line();
    if line == "frozen" {
        guard.patience = limit + GRACE;
        return Ok(Frozen { guard });
    }
    match guard.ended(&line) {
        Ok(paused) => Err(FreezeError::Late(paused)),
        Err(error) => Err(error),
    }
}

impl Frozen {
    /// Thaws, and tells how long nothing could be written. Everything that was read before was read frozen.
    ///
    /// # Errors
    /// [`FreezeError::Late`] when it had been thawed before: what was read belongs to no instant.
    pub fn thaw(mut self) -> Result<Duration, FreezeError> {
        if let Some(mut ask) = self.guard.ask.take() {
            // One that is gone says so below.
            let _ = ask.write_all(b"thaw\n");
        }
        let line = self.guard.line();
        self.guard.ended(&line)
    }

    /// Number of the guard's process.
    #[must_use]
    pub fn guard_pid(&self) -> u32 {
        self.guard.pid
    }
}

impl Guard {
    /// What it says next; nothing when it is gone or says nothing for too long.
    fn line(&mut self) -> String {
        let mut line = String::new();
        if self.hear.buffer().is_empty() {
            let timeout = PollTimeout::try_from(self.patience).unwrap_or(PollTimeout::MAX);
            let mut wait = [PollFd::new(self.hear.get_ref().as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut wait, timeout), Ok(1)) {
                return line;
            }
        }
        let _ = self.hear.read_line(&mut line);
        line.trim_end().to_owned()
    }

    /// What the last line of the guard means.
    fn ended(&mut self, line: &str) -> Result<Duration, FreezeError> {
        let words: Vec<&str> = line.split(' ').collect();
        let micros = |word: &str| word.parse().map(Duration::from_micros).ok();
        let meant = match words.as_slice() {
            ["ended", "asked", paused] => micros(paused).map(Ok),
            ["ended", "late", paused] => micros(paused).map(|paused| Err(FreezeError::Late(paused))),
            ["ended", "refused", index, errno, _] => {
                let index: Option<usize> = index.parse().ok();
                index
                    .and_then(|index| self.file_systems.get(index))
                    .zip(errno.parse().ok())
                    .map(|(file_system, errno)| {
                        Err(FreezeError::Refused {
                            mount_point: file_system.mount_point.clone(),
                            source: io::Error::from_raw_os_error(errno),
                        })
                    })
            }
            _ => None,
        };
        let Some(meant) = meant else {
            return Err(FreezeError::Lost);
        };
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        meant
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Its end of the pipe is closed: a guard that lives thaws now.
        drop(self.ask.take());
        let ended = (0..2).any(|_| self.line().starts_with("ended"));
        if ended {
            let _ = child.wait();
            return;
        }
        // It was killed, or was stopped. Thawing what is thawed already does nothing. A freeze of it that still waits in the
        // kernel cannot be taken back; when the process has ended there is none any more, and then nothing may be left.
        let mount_points: Vec<PathBuf> = self
            .file_systems
            .iter()
            .map(|file_system| file_system.mount_point.clone())
            .collect();
        thaw_all(mount_points.iter().map(PathBuf::as_path));
        std::thread::spawn(move || {
            let _ = child.wait();
            thaw_all(mount_points.iter().map(PathBuf::as_path));
        });
    }
}

/// Thaws whatever is frozen of these, the last first, and goes on after errors: the last resort.
pub fn thaw_all<'a>(mount_points: impl DoubleEndedIterator<Item = &'a Path>) {
    for mount_point in mount_points.rev() {
        if let Ok(file) = File::open(mount_point) {
            let _ = ioctl::thaw(&file);
        }
    }
}
