// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operator's own steps: executable files in `custom.d`, run in the order of their names, after our own changes.
//!
//! Each runs once in its life, however often the whole is tried: a mark is made before it and another one after it has
//! ended well. A step that was begun and has no second mark may have done half of its work; it is not run again, and
//! neither is anything else, until somebody has looked.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::journal::Store;
use super::node::Node;
use crate::error::{Error, Kind, Result, shown};

/// Longest that one step may take.
pub const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Where the steps run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// In the root directory, by `chroot` where it is not this system's.
    Root,
    /// In this system, whatever the root directory; `MT_ROOT` names that.
    Here,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Name of its file.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Folder of the steps: beside the programs of the tarball, or the one on the system.
#[must_use]
pub fn folder(root: &Path, tarball: Option<&Path>) -> PathBuf {
    match tarball {
        Some(tarball) => tarball.join("custom.d"),
        None => root.join("etc/master-target/custom.d"),
    }
}

/// The steps in a folder, in the order of their names; none when there is no folder.
///
/// # Errors
/// A file cannot be read, is not executable or has a name that cannot be a log's.
pub fn list(folder: &Path) -> Result<Vec<Step>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder, error)),
    };
    let mut steps = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io("list", folder, error))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name == "README" {
            continue;
        }
        let wrong = |text: String| {
            Error::new(Kind::Config, text).hint("steps are executable files named like 10-users")
        };
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(wrong(format!(
                "step {}: a name has letters, digits, dots, dashes and underscores; nothing was changed",
                shown(&path)
            )));
        }
        let metadata = fs::metadata(&path).map_err(|error| Error::io("examine", &path, error))?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o100 == 0 {
            return Err(wrong(format!(
                "step {} is no executable file; nothing was changed",
                shown(&path)
            )));
        }
        let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        steps.push(Step { name, bytes });
    }
    steps.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(steps)
}

/// Refuses when a step was begun once and is not known to have ended well.
///
/// # Errors
/// See there.
pub fn refuse_begun(store: &Store, steps: &[Step]) -> Result<()> {
    for step in steps {
        let begun = store.step(&step.name, "begun");
        if !begun.exists() || store.step(&step.name, "done").exists() {
            continue;
        }
        let date = fs::read_to_string(&begun).unwrap_or_default();
        return Err(Error::new(
            Kind::Partly,
            format!(
                "step {} was begun on {} and has not ended well; it runs once, so nothing was changed now",
                step.name,
                date.trim()
            ),
        )
        .hint(format!(
            "read {}, mend what it left, then take the step out of custom.d, or give it a new name to run it again",
            shown(&store.step(&step.name, "log"))
        )));
    }
    Ok(())
}

/// Adds to an error which steps have run, since what they did is not undone.
#[must_use]
pub fn mention(error: Error, ran: &[String]) -> Error {
    if ran.is_empty() {
        return error;
    }
    let mut mentioned = Error::new(
        error.kind,
        format!(
            "{error}; not undone, since only their author can: {}",
            ran.join(", ")
        ),
    );
    if let Some(hint) = error.next_step() {
        mentioned = mentioned.hint(hint);
    }
    mentioned
}

/// Runs steps.
#[derive(Debug)]
pub struct Runner<'a> {
    /// The root directory.
    pub root: &'a Path,
    /// Where marks and logs go.
    pub store: &'a Store,
    /// Where the steps run.
    pub ground: Ground,
    /// What the mark says of when a step was begun.
    pub date: &'a str,
}

impl Runner<'_> {
    /// Runs the steps that have not run yet; `ran` gets the name of each that was begun.
    ///
    /// # Errors
    /// One ended with another exit code than 0, or was killed at the time limit.
    pub fn run(&self, steps: &[Step], ran: &mut Vec<String>, say: &mut dyn FnMut(&str)) -> Result<()> {
        for step in steps {
            if self.store.step(&step.name, "done").exists() {
                say(&format!("step {}: has run before", step.name));
                ran.push(step.name.clone());
                continue;
            }
            say(&format!("step {}: running", step.name));
            let program = self.store.step(&step.name, "run");
            let mark = |kind: &str, bytes: &[u8], mode| {
                let node = Node::File {
                    bytes: bytes.to_vec(),
                    mode,
                    owner: None,
                };
                node.put(&self.store.step(&step.name, kind))
            };
            mark("run", &step.bytes, 0o700)?;
            mark("begun", format!("{}\n", self.date).as_bytes(), 0o600)?;
            ran.push(step.name.clone());
            self.one(step, &program)?;
            mark("done", format!("{}\n", self.date).as_bytes(), 0o600)?;
            Node::Absent.put(&program)?;
        }
        Ok(())
    }

    fn one(&self, step: &Step, program: &Path) -> Result<()> {
        let log = self.store.step(&step.name, "log");
        let sink = File::create(&log).map_err(|error| Error::io("create", &log, error))?;
        let errors = sink.try_clone().map_err(|error| Error::io("open", &log, error))?;
        let inside = Path::new("/").join(program.strip_prefix(self.root).unwrap_or(program));
        let mut command = if self.ground == Ground::Here || self.root == Path::new("/") {
            Command::new(program)
        } else {
            let mut command = Command::new("chroot");
            command.arg(self.root).arg(inside);
            command
        };
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root")
            .env(
                "MT_ROOT",
                if self.ground == Ground::Here {
                    self.root
                } else {
                    Path::new("/")
                },
            )
            .stdin(Stdio::null())
            .stdout(sink)
            .stderr(errors)
            .process_group(0);
        let failed = |text: String| {
            Error::new(Kind::Unexpected, format!("step {} {text}", step.name))
                .hint(format!("what it said is in {}", shown(&log)))
        };
        let mut child = command
            .spawn()
            .map_err(|error| failed(format!("cannot be started: {error}")))?;
        let group = i32::try_from(child.id()).map(Pid::from_raw);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait()));
        match receiver.recv_timeout(time_limit()) {
            Ok(Ok(ended)) if ended.success() => Ok(()),
            Ok(Ok(ended)) => Err(failed(format!("failed ({ended})"))),
            Ok(Err(error)) => Err(failed(format!("cannot be awaited: {error}"))),
            Err(_) => {
                if let Ok(group) = group {
                    // All it has started goes with it. It may have ended this very moment.
                    let _ = killpg(group, Signal::SIGKILL);
                }
                Err(failed(format!(
                    "was still running after {} s and was killed",
                    time_limit().as_secs()
                )))
            }
        }
    }
}

/// The limit, which tests cannot wait for.
fn time_limit() -> Duration {
    if cfg!(test) {
        Duration::from_secs(1)
    } else {
        TIME_LIMIT
    }
}
