// SPDX-License-Identifier: MIT OR Apache-2.0
//! The unattended installation from the medium: answers in, nothing asked, the outcome on every console.
//!
//! Every console runs the same program. The first one installs and tells all consoles; the others wait for it. The
//! outcome is kept until the machine restarts, so that a console that starts anew never installs a second time.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::answers::{Answers, End};
use crate::command::Program;
use crate::error::{Error, Kind, Result, shown};
use crate::execute::{Event, Job, execute};
use crate::facts;
use crate::first_boot::source;
use crate::identity::Names;
use crate::medium::{Answers as Found, Facts};
use crate::payload::Payload;
use crate::plan::{Consent, Place, plan, size_text};
use crate::state::StateFile;
use crate::{kickstart, ovf_answers};

/// Where the answers are found.
const ANSWERS: &str = "/run/mt/answers/ks.cfg";
const MEDIUM: &str = "/run/mt/medium/mt";
const RUN: &str = "/run/mt-installer";

/// How it went.
#[derive(Debug)]
pub enum Outcome {
    /// Installed; this is what the answers want next.
    Installed(End),
    /// Not installed; what was said is on every console.
    Failed,
}

/// Installs, or waits until another console has done so.
///
/// # Errors
/// The folder for the outcome cannot be used.
pub fn run(facts: &mut Facts, header: &dyn Fn(&Facts) -> String) -> Result<Outcome> {
    let folder = Path::new(RUN);
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let path = folder.join("lock");
    let file = File::create(&path).map_err(|error| Error::io("create", &path, error))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| Error::io("lock", &path, error.into()))?;
    let outcome = folder.join("outcome");
    match fs::read_to_string(&outcome) {
        Ok(text) => {
            return Ok(match text.trim() {
                "reboot" => Outcome::Installed(End::Reboot),
                "poweroff" => Outcome::Installed(End::PowerOff),
                "halt" => Outcome::Installed(End::Halt),
                _ => Outcome::Failed,
            });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", &outcome, error)),
    }
    let mut consoles = Consoles::open(&folder.join("log"));
    // One console at a time asks: the CD is mounted for it.
    let asked = ask_environment(facts);
    consoles.say(&header(facts));
    let (word, done) = match asked.and_then(|()| install(facts, &mut consoles)) {
        Ok(end) => {
            consoles.say("The master target is installed.\n");
            let word = match end {
                End::Reboot => "reboot",
                End::PowerOff => "poweroff",
                End::Halt => "halt",
            };
            (word, Outcome::Installed(end))
        }
        Err(error) => {
            consoles.say(&failure(&error));
            ("failed", Outcome::Failed)
        }
    };
    fs::write(&outcome, word).map_err(|error| Error::io("write", &outcome, error))?;
    Ok(done)
}

/// Leaves answers where the installation reads them.
///
/// # Errors
/// They cannot be written.
pub fn keep(answers: &Answers) -> Result<()> {
    let file = Path::new(ANSWERS);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    kickstart::save(answers, file)
}

/// What a console is told of a failure.
#[must_use]
pub fn failure(error: &Error) -> String {
    let hint = error
        .next_step()
        .map(|hint| format!("hint: {hint}\n"))
        .unwrap_or_default();
    format!("\nThe installation failed: {error}\n{hint}")
}

/// Takes the answers from the OVF environment, where nobody else gave any.
fn ask_environment(facts: &mut Facts) -> Result<()> {
    if facts.answers != Found::None {
        return Ok(());
    }
    let given = source::ask()?;
    let Some(answers) = ovf_answers::answers(&given.properties, Path::new("/"))? else {
        return Ok(());
    };
    keep(&answers)?;
    facts.answers = Found::Found {
        source: format!("the OVF environment ({})", given.sources.join(", ")),
        lines: kickstart::render(&answers).lines().count(),
    };
    Ok(())
}

fn install(facts: &Facts, consoles: &mut Consoles) -> Result<End> {
    match &facts.answers {
        Found::Found { .. } => {}
        Found::None => {
            return Err(Error::new(
                Kind::Config,
                "no answers were found, and an unattended installation asks nothing; nothing was written",
            )
            .hint(
                "give inst.ks=, put answers on the medium with \"mt-image iso embed-ks\", attach a volume labelled \
                 OEMDRV, or deploy the machine with properties (OVF environment)",
            ));
        }
        Found::Failed(why) => {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "the answers cannot be had: {}; nothing was written",
                    crate::error::printable(why)
                ),
            )
            .hint("correct inst.ks= or what it points to, then start again"));
        }
    }
    let answers = kickstart::read(Path::new(ANSWERS))?;
    let medium = Path::new(MEDIUM);
    let payload = Payload::new(&medium.join("payload.squashfs"), None)?;
    let tarball = agent_tarball(medium)?;
    let machine = facts::gather()?;
    let consent = Consent {
        wipe: None,
        agent: tarball.is_some(),
    };
    let plan = plan(&answers, &machine, Place::Disk, &consent)?;
    consoles.say(&plan.text());
    let disk = plan
        .disk
        .as_ref()
        .ok_or_else(|| Error::new(Kind::Unexpected, "the plan names no disk"))?;
    let state = StateFile::new(&Path::new(RUN).join("state.json"));
    let job = Job {
        plan: &plan,
        answers: &answers,
        payload: &payload,
        agent_tarball: tarball.as_deref(),
        target: &disk.devnode,
        names: Names::fresh(),
        time: None,
        work: Path::new("/var/tmp"),
        state: &state,
    };
    let mut said = 0;
    execute(&job, &mut |event| match event {
        Event::Begin { number, count, step } => {
            said = 0;
            consoles.say(&format!("[{number:>2}/{count}] {}\n", step.title()));
        }
        // A serial line is slow and cannot go back: a line each quarter.
        Event::Bytes { done, total } => {
            let quarter = done.saturating_mul(4).checked_div(total).unwrap_or(0);
            if quarter > said && quarter < 4 {
                said = quarter;
                consoles.say(&format!("        {} of {}\n", size_text(done), size_text(total)));
            }
        }
        Event::Note(text) => consoles.say(&format!("note: {text}\n")),
        Event::Done => {}
    })?;
    Ok(answers.end)
}

/// The agent's files on the medium; a medium made without an agent has none.
fn agent_tarball(medium: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(medium).map_err(|error| Error::io("list", medium, error))? {
        let path = entry.map_err(|error| Error::io("list", medium, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("master-target-agent-") && name.ends_with(".tar.gz") {
            found.push(path);
        }
    }
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => Err(Error::new(
            Kind::Faults,
            format!("{} holds {} tarballs of the agent", shown(medium), found.len()),
        )),
    }
}

/// Restarts or switches off the machine, and does not come back.
///
/// # Errors
/// None; the signature is that of the other ways to end.
pub fn end_machine(end: End) -> Result<()> {
    let verb = match end {
        // The unit's end means a restart.
        End::Reboot => return Ok(()),
        End::PowerOff => "poweroff",
        End::Halt => "halt",
    };
    // Each console comes here; all but the first hear that the machine is ending already.
    let _ = Program::new("systemctl").arg(verb).run();
    loop {
        nix::unistd::pause();
    }
}

/// All consoles of the machine, and a log.
struct Consoles {
    files: Vec<File>,
}

impl Consoles {
    fn open(log: &Path) -> Self {
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let terminals = active
            .split_ascii_whitespace()
            .map(|name| Path::new("/dev").join(if name == "tty0" { "tty1" } else { name }));
        let files = terminals
            .filter_map(|path| OpenOptions::new().write(true).open(path).ok())
            .chain(File::create(log).ok())
            .collect();
        Self { files }
    }

    /// A console that takes nothing must not stop the installation.
    fn say(&mut self, text: &str) {
        for file in &mut self.files {
            let _ = file.write_all(text.as_bytes());
        }
    }
}
