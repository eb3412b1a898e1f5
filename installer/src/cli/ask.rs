// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer ask`: the interview on a console, and what becomes of its answers.

use std::fs;
use std::path::{Path, PathBuf};

use sha_crypt::{PasswordHasher, ShaCrypt};

use super::say;
use crate::answers::Answers;
use crate::console::{Interview, Outcome};
use crate::custom_change::node::Node;
use crate::error::{Error, Kind, Result, shown};
use crate::terminal::{Input, Terminal};
use crate::{facts, kickstart};

/// Nobody at the keys is no reason to end; this only bounds one wait.
const WAIT_MS: u16 = 60_000;
/// Where the time zones are.
const ZONES: &str = "/usr/share/zoneinfo";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// File for the answers, in kickstart syntax
    #[arg(long, value_name = "FILE")]
    save: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut terminal = Terminal::open()?;
    let answers = ask(&mut terminal)?;
    terminal.clear()?;
    drop(terminal);
    match answers {
        Some(answers) => {
            save(&answers, &arguments.save)?;
            say(&format!("saved as {}", shown(&arguments.save)))
        }
        None => say("left without answers; nothing was saved"),
    }
}

/// Holds the interview; `None` when it was left.
///
/// # Errors
/// The console is gone, or the machine's disks cannot be looked at.
pub fn ask(terminal: &mut Terminal) -> Result<Option<Answers>> {
    let mut interview = Interview::new(&facts::gather()?, zones(Path::new(ZONES)));
    loop {
        terminal.show(&interview.screen(env!("CARGO_PKG_VERSION")))?;
        let key = match terminal.input(WAIT_MS)? {
            Input::Key(key) => key,
            Input::Nothing => continue,
            Input::Closed => {
                return Err(Error::new(
                    Kind::Unexpected,
                    "the console was closed during the questions",
                ));
            }
        };
        match interview.key(key) {
            Outcome::Go => {}
            Outcome::Leave => return Ok(None),
            Outcome::Install => return Ok(Some(interview.answers(hash(interview.password())?))),
            Outcome::Save(file) => {
                let answers = interview.answers(hash(interview.password())?);
                match save(&answers, Path::new(&file)) {
                    Ok(()) => interview.tell(&format!("saved as {file}")),
                    Err(error) => interview.tell(&format!("NOT saved: {error}")),
                }
            }
        }
    }
}

/// Writes answers as a kickstart file that only root may read: it holds the hash of a password.
///
/// # Errors
/// It cannot be written.
pub fn save(answers: &Answers, file: &Path) -> Result<()> {
    Node::File {
        bytes: kickstart::render(answers).into_bytes(),
        mode: 0o600,
        owner: None,
    }
    .put(file)
}

/// Hash of a password, as /etc/shadow has it.
///
/// # Errors
/// No salt can be had.
pub(super) fn hash(password: &str) -> Result<String> {
    ShaCrypt::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.as_str().to_owned())
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot hash the password: {error}")))
}

/// Names of all time zones of the system.
fn zones(folder: &Path) -> Vec<String> {
    let mut names = vec!["UTC".to_owned()];
    let mut pending = vec![folder.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(name) = path.strip_prefix(folder) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            // The same zones again, with and without leap seconds; and tables, whose names are in lower case.
            if name.starts_with(|first: char| first.is_ascii_lowercase()) || name.contains('.') {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else {
                names.push(name);
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_password_becomes_a_hash_that_the_system_reads() {
        let one = hash("secret pass").unwrap();
        assert!(one.starts_with("$6$"), "{one}");
        assert_ne!(one, hash("secret pass").unwrap(), "each with its own salt");
    }

    #[test]
    fn zones_are_listed_without_their_copies() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "Europe/Berlin",
            "America/Argentina/Ushuaia",
            "posix/Europe/Berlin",
            "UTC",
            "zone.tab",
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "TZif").unwrap();
        }
        assert_eq!(
            zones(folder.path()),
            ["America/Argentina/Ushuaia", "Europe/Berlin", "UTC"]
        );
    }
}
