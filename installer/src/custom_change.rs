// SPDX-License-Identifier: MIT OR Apache-2.0
//! The custom-change step, run exactly once: makes a Debian or EL system a master target.
//!
//! It works on a root directory: of the running system, of a disk that is being installed, of an image in the making.
//! Everything takes effect at the next start, so the running system is not touched half-way.
//!
//! 1. The lock is taken. A stamp means that the step was done: refused, with its date.
//! 2. What a killed run left in its journal is undone.
//! 3. All changes are decided (`changes`, pure). One that would lose what somebody wrote refuses the whole; so does a
//!    system that needs itself what is about to be closed.
//! 4. Each change: what stands there is noted in the journal, then it is made, then it is read again.
//! 5. The operator's own steps run, each once in its life.
//! 6. The stamp is written: from here on the step is done. The journal goes.
//!
//! An error in 4 or 5 undoes all changes in reverse order; a kill is undone by the next run (2). What an operator's step
//! did cannot be undone by anybody but its author: the message says which ones ran.

use std::fs;
use std::path::{Path, PathBuf};

use mt_blockdev::scsi::ScsiId;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result, printable, shown};

pub mod changes;
mod initramfs;
pub mod journal;
pub mod node;
pub mod operator;
pub mod own;

use changes::{Change, Facts, Outcome};
use journal::{Stamp, Store, hex};
use node::Node;

/// Version of the stamp.
const SCHEMA: u32 = 1;

/// What the step is given.
#[derive(Debug, Clone)]
pub struct Request {
    /// Root directory of the system to be changed.
    pub root: PathBuf,
    /// Folder of the unpacked tarball: programs to be put in place, and `custom.d`. `None` where the system has the
    /// programs already.
    pub tarball: Option<PathBuf>,
    /// When it is done, RFC 3339 in UTC.
    pub date: String,
    /// Where the operator's steps run.
    pub steps: operator::Ground,
    /// Whether the root is that of the running system, which has disks and an initramfs of its own. Not so during an
    /// installation, which makes the initramfs later.
    pub running: bool,
}

/// A moment at which a run can be killed; for tests, which stop there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The change is decided, and not noted yet.
    BeforeNote(usize),
    /// It is noted, and not made.
    BeforeChange(usize),
    /// It is made, and not verified.
    AfterChange(usize),
    /// All is done but the stamp.
    BeforeStamp,
    /// The stamp is there, and so is the journal.
    AfterStamp,
}

/// What the step would do under one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// What it closes or sets.
    pub what: &'static str,
    /// Path on the system.
    pub path: String,
    /// `change`, `so already`, `skipped: ...` or `refused: ...`.
    pub outcome: String,
}

/// Does the step.
///
/// # Errors
/// It was done before, is refused, or failed and was undone; the message says which.
pub fn apply(request: &Request, say: &mut dyn FnMut(&str)) -> Result<Stamp> {
    run(request, say, &mut |_| true)
}

/// Does the step, and stops without a trace, as a kill would, where `go_on` says no.
///
/// # Errors
/// As [`apply`].
pub fn run(
    request: &Request,
    say: &mut dyn FnMut(&str),
    go_on: &mut dyn FnMut(Moment) -> bool,
) -> Result<Stamp> {
    let root = checked_root(&request.root)?;
    let store = Store::of(&root);
    if let Some(stamp) = store.stamp()? {
        return Err(done_before(&store, &stamp, say));
    }
    let steps = operator::list(&operator::folder(&root, request.tarball.as_deref()))?;
    // Nothing at all is written where a link leads out of the root, the notes of this step included.
    stays_within(&root, &store.folder().join("lock"))?;
    store.create()?;
    let _lock = lock(&store)?;
    // Again, under the lock.
    if let Some(stamp) = store.stamp()? {
        return Err(done_before(&store, &stamp, say));
    }
    if store.has_journal() {
        say("an earlier run was cut: undoing what it did");
        undo(&root, &store, say)?;
    }
    operator::refuse_begun(&store, &steps)?;
    let changes = changes::all(&facts(&root, request)?);
    let decided = decide(&root, &changes)?;
    let mut stamp = Stamp {
        schema: SCHEMA,
        date: request.date.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        digest: String::new(),
        changed: Vec::new(),
        satisfied: Vec::new(),
        skipped: Vec::new(),
        steps: Vec::new(),
    };
    let mut work = Work {
        root: &root,
        store: &store,
        number: 0,
        go_on,
    };
    let mut made = Ok(());
    for (change, outcome) in changes.iter().zip(decided) {
        let path = format!("/{}", change.path);
        match outcome {
            Outcome::Satisfied => stamp.satisfied.push(path),
            Outcome::Skipped(why) => stamp.skipped.push(format!("{path}: {why}")),
            Outcome::Refused(found) => made = Err(refused(&[(change, found)])),
            Outcome::Put(after) => match work.change(change.path, &after) {
                Ok(()) => {
                    say(&format!("{}: {path}", change.what));
                    stamp.changed.push(path);
                }
                Err(error) => made = Err(error),
            },
        }
        if made.is_err() {
            break;
        }
    }
    if made.is_ok() {
        made = initramfs::renew(&root, request.running, say);
    }
    let mut ran = Vec::new();
    if made.is_ok() {
        let runner = operator::Runner {
            root: &root,
            store: &store,
            ground: request.steps,
            date: &request.date,
        };
        made = runner.run(&steps, &mut ran, say);
    }
    if let Err(error) = made {
        if !work.killed(&error) {
            say("undoing what was changed");
            undo(&root, &store, say)?;
        }
        return Err(operator::mention(error, &ran));
    }
    stamp.digest = digest(&changes, &steps);
    stamp.steps = ran;
    work.moment(Moment::BeforeStamp)?;
    store.write_stamp(&stamp)?;
    work.moment(Moment::AfterStamp)?;
    store.forget_journal()?;
    Ok(stamp)
}

/// What the step would do, without doing it.
///
/// # Errors
/// The root cannot be read.
pub fn plan(request: &Request) -> Result<Vec<Planned>> {
    let root = checked_root(&request.root)?;
    let changes = changes::all(&facts(&root, request)?);
    let mut planned = Vec::new();
    for change in &changes {
        let outcome = match change.outcome(&Node::read(&root.join(change.path))?) {
            Outcome::Satisfied => "so already".to_owned(),
            Outcome::Put(_) => "change".to_owned(),
            Outcome::Skipped(why) => format!("skipped: {why}"),
            Outcome::Refused(found) => format!("refused: there is {found}"),
        };
        planned.push(Planned {
            what: change.what,
            path: format!("/{}", change.path),
            outcome,
        });
    }
    Ok(planned)
}

/// Where the step stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Never done.
    NotDone,
    /// A run was killed; the next one undoes what it did.
    Cut,
    /// Done, and these paths are not any more as it left them.
    Done {
        /// When and what.
        stamp: Stamp,
        /// Paths that differ now.
        differing: Vec<String>,
    },
}

/// Says where the step stands, and whether what it set is still so.
///
/// # Errors
/// The root cannot be read.
pub fn status(root: &Path) -> Result<Status> {
    let root = checked_root(root)?;
    let store = Store::of(&root);
    let Some(stamp) = store.stamp()? else {
        return Ok(if store.has_journal() {
            Status::Cut
        } else {
            Status::NotDone
        });
    };
    let mut differing = Vec::new();
    // Programs are renewed by updates, and ports opened and closed by the operator: neither is looked at.
    let facts = Facts {
        firewall: told(&root)?.firewall.enabled,
        ..Facts::default()
    };
    for change in changes::all(&facts) {
        let now = change.outcome(&Node::read(&root.join(change.path))?);
        if matches!(now, Outcome::Put(_) | Outcome::Refused(_)) {
            differing.push(format!("/{}", change.path));
        }
    }
    Ok(Status::Done { stamp, differing })
}

/// The root as an absolute path without links.
fn checked_root(root: &Path) -> Result<PathBuf> {
    let path = root
        .canonicalize()
        .map_err(|error| Error::io("find the root directory", root, error))?;
    if path.join("etc").is_dir() {
        return Ok(path);
    }
    Err(Error::new(
        Kind::Usage,
        format!(
            "{} is no root directory of a system: it has no folder etc",
            shown(&path)
        ),
    ))
}

fn done_before(store: &Store, stamp: &Stamp, say: &mut dyn FnMut(&str)) -> Error {
    // Left by a run that was killed between its last two steps.
    if store.has_journal() && store.forget_journal().is_err() {
        say("the journal of the run that was done cannot be removed");
    }
    Error::new(
        Kind::Refused,
        format!(
            "the custom changes were made on {} by version {}; the step runs once, and nothing was changed now",
            printable(&stamp.date),
            printable(&stamp.version)
        ),
    )
    .hint("\"mt-installer custom-change status\" shows what was changed and whether it is still so")
}

fn lock(store: &Store) -> Result<Flock<fs::File>> {
    let path = store.folder().join("lock");
    let file = fs::File::create(&path).map_err(|error| Error::io("create", &path, error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        Error::new(
            Kind::Refused,
            format!("another run holds {}: {errno}; nothing was changed", shown(&path)),
        )
        .hint("wait for its end")
    })
}

/// What the installation was told, as far as it decides about changes; other fields are for others.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    ssh: bool,
    firewall: ToldFirewall,
    retention_disk: Option<ScsiId>,
}

/// What may come in.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct ToldFirewall {
    enabled: bool,
    ssh: bool,
    ports: Vec<changes::Port>,
}

impl Default for ToldFirewall {
    fn default() -> Self {
        Self {
            enabled: true,
            ssh: false,
            ports: Vec::new(),
        }
    }
}

/// Where the installer leaves what it was told.
const SETTINGS: &str = "etc/master-target/settings.json";

fn told(root: &Path) -> Result<Told> {
    let path = root.join(SETTINGS);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(
                Kind::Config,
                format!(
                    "{} cannot be understood: {error}; nothing was changed",
                    shown(&path)
                ),
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Told::default()),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// What of the system decides about the changes.
fn facts(root: &Path, request: &Request) -> Result<Facts> {
    let told = told(root)?;
    let wants = [
        "etc/systemd/system/multi-user.target.wants/ssh.service",
        "etc/systemd/system/multi-user.target.wants/sshd.service",
        "etc/systemd/system/sockets.target.wants/ssh.socket",
        "etc/systemd/system/sockets.target.wants/sshd.socket",
    ];
    let masked = ["ssh.service", "sshd.service"].iter().any(|unit| {
        fs::read_link(root.join("etc/systemd/system").join(unit))
            .is_ok_and(|target| target == Path::new("/dev/null"))
    });
    let enabled = wants
        .iter()
        .any(|name| root.join(name).symlink_metadata().is_ok());
    let ssh_enabled = told.ssh || told.firewall.ssh || (!masked && enabled);
    let mut own_disks = if request.running {
        own::further_disks()?
    } else {
        Vec::new()
    };
    own_disks.extend(told.retention_disk.map(|id| id.to_string()));
    let mut programs = Vec::new();
    if let Some(tarball) = &request.tarball {
        for (name, path) in [
            ("mt-agent", "usr/bin/mt-agent"),
            ("mt-installer", "usr/sbin/mt-installer"),
        ] {
            programs.push((path, program(tarball, name)?));
        }
    }
    // Where there is none, or it is no text, the change of the group file says so.
    let groups = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
    Ok(Facts {
        group: changes::group_number(&groups).unwrap_or(Facts::default().group),
        own_disks,
        ssh_enabled,
        firewall: told.firewall.enabled,
        ports: told.firewall.ports,
        programs,
    })
}

/// Reads a program of the unpacked tarball, and holds it against the list of digests there.
fn program(tarball: &Path, name: &str) -> Result<Vec<u8>> {
    let from = tarball.join(name);
    let whole = "unpack the whole tarball and run the step from its folder";
    let read = |path: &Path| {
        let plain = path.symlink_metadata().and_then(|found| {
            if found.is_file() {
                fs::read(path)
            } else {
                Err(std::io::Error::other("it is no plain file"))
            }
        });
        plain.map_err(|error| Error::io("read", path, error).hint(whole))
    };
    let bytes = read(&from)?;
    let sums = tarball.join("SHA256SUMS");
    let list = String::from_utf8_lossy(&read(&sums)?).into_owned();
    let found = hex(&Sha256::digest(&bytes));
    let listed = list.lines().find_map(|line| {
        let (digest, file) = line.split_once("  ")?;
        (file.trim_start_matches("./") == name).then_some(digest)
    });
    if listed == Some(found.as_str()) {
        return Ok(bytes);
    }
    Err(Error::new(
        Kind::Faults,
        format!(
            "{} is not as it was made: it has SHA-256 {found}, {} says {}; nothing was changed",
            shown(&from),
            shown(&sums),
            listed.map_or_else(|| "nothing of it".to_owned(), printable)
        ),
    )
    .hint("unpack the tarball again and compare its SHA-256 with the one that was published"))
}

/// Decides every change; all that are refused are named in one error.
fn decide(root: &Path, changes: &[Change]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut refusals = Vec::new();
    for change in changes {
        let path = root.join(change.path);
        stays_within(root, &path)?;
        let outcome = change.outcome(&Node::read(&path)?);
        if let Outcome::Refused(found) = &outcome {
            refusals.push((change, found.clone()));
        }
        outcomes.push(outcome);
    }
    if refusals.is_empty() {
        Ok(outcomes)
    } else {
        Err(refused(&refusals))
    }
}

fn refused(refusals: &[(&Change, String)]) -> Error {
    let list: Vec<String> = refusals
        .iter()
        .map(|(change, found)| format!("/{} ({}) is {found}", change.path, change.what))
        .collect();
    Error::new(
        Kind::Refused,
        format!(
            "will not replace what somebody else has made: {}; nothing was changed",
            list.join("; ")
        ),
    )
    .hint("move it away, or take its content over into a file of another name, then run the step again")
}

/// Refuses a path that a link leads out of the root: on a build host it would be the host's own.
fn stays_within(root: &Path, path: &Path) -> Result<()> {
    let existing = path
        .ancestors()
        .skip(1)
        .find(|folder| folder.symlink_metadata().is_ok());
    let Some(existing) = existing else {
        return Ok(());
    };
    let real = existing
        .canonicalize()
        .map_err(|error| Error::io("find", existing, error))?;
    if real.starts_with(root) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!(
            "{} leads out of the root directory to {}; nothing was changed",
            shown(existing),
            shown(&real)
        ),
    ))
}

/// Makes changes, each noted before.
struct Work<'a> {
    root: &'a Path,
    store: &'a Store,
    number: usize,
    go_on: &'a mut dyn FnMut(Moment) -> bool,
}

/// What a stopped run's error says; only tests stop one.
const STOPPED: &str = "stopped";

impl Work<'_> {
    fn moment(&mut self, moment: Moment) -> Result<()> {
        if (self.go_on)(moment) {
            Ok(())
        } else {
            Err(Error::new(Kind::Unexpected, STOPPED))
        }
    }

    fn killed(&self, error: &Error) -> bool {
        error.to_string() == STOPPED
    }

    /// Makes the folders above, then the change itself.
    fn change(&mut self, path: &str, after: &Node) -> Result<()> {
        let missing: Vec<&Path> = Path::new(path)
            .ancestors()
            .skip(1)
            .take_while(|folder| !self.root.join(folder).exists())
            .collect();
        for folder in missing.into_iter().rev() {
            let folder = folder.to_string_lossy().into_owned();
            self.one(&folder, &Node::Folder { mode: 0o755 })?;
        }
        self.one(path, after)
    }

    fn one(&mut self, path: &str, after: &Node) -> Result<()> {
        let place = self.root.join(path);
        let number = self.number;
        self.number += 1;
        self.moment(Moment::BeforeNote(number))?;
        self.store.note(number, path, &Node::read(&place)?, after)?;
        self.moment(Moment::BeforeChange(number))?;
        after.put(&place)?;
        self.moment(Moment::AfterChange(number))?;
        if Node::read(&place)?.same(after) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unexpected,
            format!("{} is not what was just put there", shown(&place)),
        )
        .hint("does another program write it at the same time?"))
    }
}

/// Undoes what the journal says, from its end, and removes it.
fn undo(root: &Path, store: &Store, say: &mut dyn FnMut(&str)) -> Result<()> {
    for entry in store.entries()?.iter().rev() {
        let path = root.join(&entry.path);
        let (now, before) = (Node::read(&path)?, store.before(entry)?);
        if now.same(&before) {
            continue;
        }
        if journal::digest(&now) != entry.after {
            // Neither what stood there nor what we put there: somebody else's, and left to them.
            say(&format!(
                "{} was changed by somebody else meanwhile: left as it is",
                shown(&path)
            ));
            continue;
        }
        before.put(&path)?;
    }
    store.forget_journal()
}

/// Digest over all that was to be put in place and all steps.
fn digest(changes: &[Change], steps: &[operator::Step]) -> String {
    let mut hasher = Sha256::new();
    for change in changes {
        hasher.update(format!("{}\n", change.path));
        match &change.action {
            changes::Action::File { bytes, mode, .. } => {
                hasher.update(format!("{mode:o} {}\n", bytes.len()));
                hasher.update(bytes);
            }
            other => hasher.update(format!("{other:?}\n")),
        }
    }
    for step in steps {
        hasher.update(format!("{}\n", step.name));
        hasher.update(&step.bytes);
    }
    journal::hex(&hasher.finalize())
}

#[cfg(test)]
mod tests;
