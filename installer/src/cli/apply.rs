// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer plan` and `mt-installer apply`.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{say, say_json};
use crate::answers::{Answers, same_disk};
use crate::command::require_root;
use crate::error::{Error, Kind, Result, shown};
use crate::execute::{Event, Job, execute};
use crate::facts;
use crate::identity::Names;
use crate::payload::Payload;
use crate::plan::{Consent, MIB, Place, Plan, plan, size_text};
use crate::state::StateFile;

/// Largest virtual disk of vSphere (configuration maximums: 62 TB, counted in units of 1024).
const IMAGE_BYTES_MAX: u64 = 62 << 40;
/// Seconds between two lines of progress where the output is no terminal.
const LINE_SECONDS: u64 = 5;

#[derive(Debug, Args)]
pub struct What {
    /// Kickstart file with the answers; without it the defaults
    #[arg(long)]
    answers: Option<PathBuf>,
    /// Disk to install on: SCSI ID, kernel name or path
    #[arg(long, conflicts_with = "image")]
    disk: Option<String>,
    /// Disk whose content may be lost; must be the one to install on
    #[arg(long, value_name = "DISK", conflicts_with = "image")]
    wipe: Option<String>,
    /// Take --disk as it is, whatever kind of block device it is
    #[arg(long, requires = "disk", hide = true)]
    any_device: bool,
    /// New image file to install into
    #[arg(long, requires = "size")]
    image: Option<PathBuf>,
    /// Size of the image in bytes, whole MiB
    #[arg(long, requires = "image")]
    size: Option<u64>,
    /// Replace the image if it exists
    #[arg(long, requires = "image")]
    force: bool,
    /// Memory to plan for in MiB; without it this machine's
    #[arg(long)]
    memory: Option<u64>,
    /// The agent's files, as mt-image agent-tarball makes them
    #[arg(long)]
    agent_tarball: Option<PathBuf>,
    /// Print JSON; apply prints a document a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ApplyArguments {
    #[command(flatten)]
    what: What,
    /// Root file system as squashfs
    #[arg(long)]
    payload: PathBuf,
    /// Its SHA-256; without it the file beside it that ends in .sha256
    #[arg(long, value_name = "HEX")]
    payload_sha256: Option<String>,
    /// Time of everything in an image, in seconds since 1970: the same inputs
    /// then give the same bytes
    #[arg(long, value_name = "SECONDS", requires = "image")]
    source_date: Option<u64>,
    /// Folder for what is temporary
    #[arg(long, default_value = "/var/tmp")]
    work: PathBuf,
    /// File that tells how far the installation came
    #[arg(long, default_value = "/run/mt-installer/state.json")]
    state: PathBuf,
}

fn answers(what: &What) -> Result<Answers> {
    let mut answers = match &what.answers {
        Some(path) => crate::kickstart::read(path)?,
        None => Answers::default(),
    };
    if let Some(disk) = &what.disk {
        let named = answers.storage.disk.as_ref();
        if named.is_some_and(|named| !same_disk(named, disk)) {
            return Err(Error::new(
                Kind::Config,
                format!("--disk names {disk}, the answers name another disk; nothing was written"),
            )
            .hint("name the same disk in both places, or only in one"));
        }
        answers.storage.disk = Some(disk.clone());
    }
    Ok(answers)
}

fn make_plan(what: &What, answers: &mut Answers) -> Result<Plan> {
    let place = match what.size {
        Some(size) => Place::Image(size),
        None => Place::Disk,
    };
    let mut facts = match (&what.disk, place) {
        (Some(disk), Place::Disk) if what.any_device => {
            let facts = facts::MachineFacts {
                disks: vec![facts::of_device(Path::new(disk))?],
                ..facts::MachineFacts::default()
            };
            answers.storage.disk = facts.disks.first().map(|disk| disk.kernel_name.clone());
            facts
        }
        (_, Place::Disk) => facts::gather()?,
        (_, Place::Image(_)) => facts::MachineFacts::default(),
    };
    if let (Some(image), Some(size)) = (&what.image, what.size) {
        image_can_be_made(image, size, what.force)?;
    }
    if let Some(mib) = what.memory {
        facts.memory = mib.saturating_mul(MIB);
    }
    let wipe = match &what.wipe {
        Some(_) if what.any_device && what.wipe == what.disk => answers.storage.disk.clone(),
        other => other.clone(),
    };
    let consent = Consent {
        wipe,
        agent: what.agent_tarball.is_some(),
    };
    plan(answers, &facts, place, &consent)
}

/// Refuses an image that apply could not make, so that a plan of it is never shown.
fn image_can_be_made(path: &Path, size: u64, force: bool) -> Result<()> {
    let refuse = |kind, what: String, hint: &str| {
        Err(Error::new(
            kind,
            format!(
                "will not make the image {}: {what}; nothing was written",
                shown(path)
            ),
        )
        .hint(hint))
    };
    let absolute = std::path::absolute(path).map_err(|error| Error::io("find", path, error))?;
    let Some(folder) = absolute.parent().filter(|_| absolute.file_name().is_some()) else {
        return refuse(
            Kind::Usage,
            "it is no name of a file".to_owned(),
            "name a new file",
        );
    };
    if !folder.is_dir() {
        let what = format!("there is no folder {}", shown(folder));
        return refuse(Kind::Usage, what, "create the folder first, or correct the path");
    }
    match absolute.symlink_metadata() {
        Ok(found) if !found.is_file() => {
            let hint = "name a new file; a disk is named with --disk";
            return refuse(Kind::Usage, "it is there and no plain file".to_owned(), hint);
        }
        Ok(_) if !force => {
            return refuse(
                Kind::Refused,
                "it exists and is kept".to_owned(),
                "give --force to replace it",
            );
        }
        _ => {}
    }
    if !size.is_multiple_of(MIB) || size > IMAGE_BYTES_MAX {
        return refuse(
            Kind::Usage,
            format!("{size} bytes are no whole MiB up to 62 TiB, the largest disk of VMware's"),
            "for 16 GiB give --size 17179869184",
        );
    }
    Ok(())
}

/// Prints what would be done.
pub fn show(what: &What) -> Result<()> {
    let plan = make_plan(what, &mut answers(what)?)?;
    if what.json {
        say_json(&plan)
    } else {
        say(plan.text().trim_end())
    }
}

/// Does it.
pub fn run(arguments: &ApplyArguments) -> Result<()> {
    let what = &arguments.what;
    let mut answers = answers(what)?;
    let plan = make_plan(what, &mut answers)?;
    let payload = Payload::new(&arguments.payload, arguments.payload_sha256.as_deref())?;
    require_root("installing")?;
    if let Some(tarball) = &what.agent_tarball
        && !tarball.is_file()
    {
        return Err(Error::new(Kind::Usage, format!("{} is no file", shown(tarball))));
    }
    let image = match &what.image {
        Some(path) => {
            let inputs = [
                Some(arguments.payload.as_path()),
                what.answers.as_deref(),
                what.agent_tarball.as_deref(),
            ];
            refuse_inputs(path, inputs.into_iter().flatten())?;
            Some(NewImage::create(path, plan.size, what.force)?)
        }
        None => None,
    };
    let (target, names) = match (&image, &plan.disk) {
        (Some(image), _) => (
            image.part.clone(),
            match arguments.source_date {
                Some(date) => Names::seeded(&format!("{} {} {date}", payload.sha256, plan.size)),
                None => Names::fresh(),
            },
        ),
        (None, Some(disk)) => (disk.devnode.clone(), Names::fresh()),
        (None, None) => return Err(Error::new(Kind::Unexpected, "the plan names no disk")),
    };
    let state = match &image {
        Some(image) => image.state.clone(),
        None => arguments.state.clone(),
    };
    let job = Job {
        plan: &plan,
        answers: &answers,
        payload: &payload,
        agent_tarball: what.agent_tarball.as_deref(),
        target: &target,
        names,
        time: arguments.source_date,
        work: &arguments.work,
        state: &StateFile::new(&state),
    };
    let mut screen = Screen::new(what.json);
    if !what.json {
        crate::tell!("{}", plan.text());
    }
    execute(&job, &mut |event| screen.show(event))?;
    if let Some(image) = image {
        image.publish()?;
    }
    let place = plan.disk.as_ref().map_or_else(
        || what.image.as_deref().map(shown).unwrap_or_default(),
        |disk| disk.shown(),
    );
    if what.json {
        Ok(())
    } else {
        say(&format!("installed on {place}"))
    }
}

/// Refuses to put the image in the place of what it is made from, `--force` or not.
fn refuse_inputs<'a>(image: &Path, inputs: impl Iterator<Item = &'a Path>) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let identity = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).ok();
    let Some(own) = identity(image) else { return Ok(()) };
    for input in inputs {
        let digest = input.with_extension("sha256");
        if [input, &digest].iter().any(|path| identity(path) == Some(own)) {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "will not make the image {}: it is to be read itself; nothing was written",
                    shown(image)
                ),
            )
            .hint("choose another name for the image"));
        }
    }
    Ok(())
}

/// An image in the making, in a folder of its own beside the place where it is to be: nobody else's file is there, and no
/// link. It gets its name when it is whole.
struct NewImage {
    target: PathBuf,
    part: PathBuf,
    state: PathBuf,
    replaces: bool,
    /// Removed with what is in it.
    _folder: tempfile::TempDir,
}

impl NewImage {
    fn create(path: &Path, size: u64, replaces: bool) -> Result<Self> {
        let target = std::path::absolute(path).map_err(|error| Error::io("find", path, error))?;
        let beside = target.parent().unwrap_or(Path::new("/"));
        let folder = tempfile::Builder::new()
            .prefix(".mt-install-")
            .tempdir_in(beside)
            .map_err(|error| Error::io("create a folder in", beside, error))?;
        let part = folder.path().join("image");
        File::create_new(&part)
            .and_then(|file| file.set_len(size))
            .map_err(|error| Error::io("create", &part, error))?;
        Ok(Self {
            target,
            state: folder.path().join("state.json"),
            part,
            replaces,
            _folder: folder,
        })
    }

    fn publish(&self) -> Result<()> {
        let flags = if self.replaces {
            RenameFlags::empty()
        } else {
            RenameFlags::RENAME_NOREPLACE
        };
        match renameat2(AT_FDCWD, &self.part, AT_FDCWD, &self.target, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => Err(Error::new(
                Kind::Refused,
                format!("{} appeared meanwhile; it was left as it is", shown(&self.target)),
            )),
            Err(errno) => Err(Error::io("publish", &self.target, errno.into())),
        }
    }
}

/// Shows how far it is: one line redrawn on a terminal, plain lines elsewhere, JSON for programs.
struct Screen {
    json: bool,
    terminal: bool,
    step_began: Instant,
    said: Instant,
    title: String,
}

impl Screen {
    fn new(json: bool) -> Self {
        let now = Instant::now();
        Self {
            json,
            terminal: std::io::stderr().is_terminal(),
            step_began: now,
            said: now,
            title: String::new(),
        }
    }

    fn show(&mut self, event: Event<'_>) {
        if self.json {
            self.show_json(event);
            return;
        }
        match event {
            Event::Begin { number, count, step } => {
                self.title = format!("[{number:>2}/{count}] {}", step.title());
                self.step_began = Instant::now();
                self.said = Instant::now();
                crate::tell_line!("{}", self.title);
            }
            Event::Bytes { done, total } => {
                let due = if self.terminal {
                    Duration::from_millis(200)
                } else {
                    Duration::from_secs(LINE_SECONDS)
                };
                if self.said.elapsed() < due && done < total {
                    return;
                }
                self.said = Instant::now();
                let line = progress_line(done, total, self.step_began.elapsed());
                if !self.terminal {
                    crate::tell_line!("        {line}");
                } else if done < total {
                    crate::tell!("\r        {line}\x1b[K");
                } else {
                    crate::tell!("\r\x1b[K");
                }
            }
            Event::Note(text) => crate::tell_line!("note: {text}"),
            Event::Done => crate::tell_line!("done"),
        }
    }

    fn show_json(&mut self, event: Event<'_>) {
        let value = match event {
            Event::Begin { number, count, step } => {
                serde_json::json!({"event": "step", "number": number, "count": count, "step": step.name()})
            }
            Event::Bytes { done, total } => {
                if self.said.elapsed() < Duration::from_secs(1) && done < total {
                    return;
                }
                self.said = Instant::now();
                serde_json::json!({"event": "bytes", "done": done, "total": total})
            }
            Event::Note(text) => serde_json::json!({"event": "note", "text": text}),
            Event::Done => serde_json::json!({"event": "done"}),
        };
        let mut document = serde_json::json!({"schema": super::JSON_SCHEMA});
        if let (Some(all), Some(own)) = (document.as_object_mut(), value.as_object()) {
            all.extend(own.clone());
        }
        // Whoever reads may have gone; the installation has not.
        let _ = writeln!(std::io::stdout().lock(), "{document}");
    }
}

fn progress_line(done: u64, total: u64, took: Duration) -> String {
    let per_second = done.checked_div(took.as_secs().max(1)).unwrap_or(0);
    let left = total.saturating_sub(done).checked_div(per_second).unwrap_or(0);
    format!(
        "{} of {}, {}/s, {left} s left",
        size_text(done),
        size_text(total),
        size_text(per_second)
    )
}
