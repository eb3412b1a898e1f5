// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer ask`: the interview on a console, and what becomes of its answers.

use std::fs;
use std::path::{Path, PathBuf};

use sha_crypt::{PasswordHasher, ShaCrypt};

use super::say;
use crate::answers::Answers;
use crate::console::{Interview, Outcome};
use crate::error::{Error, Kind, Result, shown};
use crate::terminal::{Input, Terminal};
use crate::{facts, kickstart};

/// Longest salt of SHA-crypt.
const SALT_CHARS: usize = 16;
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
            kickstart::save(&answers, &arguments.save)?;
            say(&format!("saved as {}", shown(&arguments.save)))
        }
        None => say("left without answers; nothing was saved"),
    }
}

/// Holds the interview; `None` when it was left.
///
/// # Errors
/// The console is gone, or the machine's disks cannot be looked at or told apart.
pub fn ask(terminal: &mut Terminal) -> Result<Option<Answers>> {
    let facts = facts::gather()?;
    // Nobody should answer ten questions to hear this at the end.
    facts.scsi_ids.require()?;
    let mut interview = Interview::new(&facts, zones(Path::new(ZONES)));
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
                match kickstart::save(&answers, Path::new(&file)) {
                    Ok(()) => interview.tell(&format!("saved as {file}")),
                    Err(error) => interview.tell(&format!("NOT saved: {error}")),
                }
            }
        }
    }
}

/// Hash of a password, as /etc/shadow has it.
///
/// # Errors
/// No salt can be had.
pub(super) fn hash(password: &str) -> Result<String> {
    let hash = ShaCrypt::default()
        .hash_password(password.as_bytes())
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot hash the password: {error}")))?;
    // crypt(3) takes and repeats 16 characters of the salt, so the system finds no longer one equal to its own.
    let fields: Vec<&str> = hash.as_str().split('$').collect();
    match fields.as_slice() {
        ["", kind, rounds, salt, digest] => {
            let salt: String = salt.chars().take(SALT_CHARS).collect();
            Ok(format!("${kind}${rounds}${salt}${digest}"))
        }
        _ => Err(Error::new(
            Kind::Unexpected,
            "cannot hash the password: the hash has another form than expected",
        )),
    }
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
        // Nobody could log in: the library's salt is longer than crypt(3) knows. Only crypt(3) itself can tell.
        let crypt = std::process::Command::new("perl")
            .args(["-e", "print crypt($ARGV[0], $ARGV[1])", "secret pass", &one])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&crypt.stdout), one);
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
