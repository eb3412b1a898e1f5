// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers in kickstart syntax, as the CentOS family's installer reads them.
//!
//! A subset, read strictly: what is not supported is refused with its line and the reason, never skipped. Every file
//! that is accepted here is valid for pykickstart as well (`ksvalidator --version RHEL9`).
//!
//! | lines | mean |
//! |---|---|
//! | `lang` `keyboard` `selinux` `text` `cmdline` `cdrom` `skipx` `firstboot` `eula` | accepted where they say what is so anyway |
//! | `timezone` `timesource` `rootpw` `sshkey` `network` `firewall` `services` | as known |
//! | `zerombr` `clearpart` `ignoredisk` `autopart` `part` `bootloader` | one disk, no LVM, no RAID |
//! | `reboot` `poweroff` `shutdown` `halt` | what happens at the end |
//! | `%pre` `%post` | scripts |
//! | `%addon master_target` | TOML: `retention_disk = "naa...."`, and the tables of the agent's configuration |

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::answers::Answers;
use crate::custom_change::node::Node;
use crate::error::{Error, Kind, Result, shown};

mod commands;
pub(crate) use commands::check_hash;
mod network;
mod options;
mod render;
mod sections;
mod storage;
#[cfg(test)]
mod tests;
mod words;

pub use render::render;

/// Largest file.
const BYTES_MAX: u64 = 1 << 20;

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, and what is expected.
    pub text: String,
}

/// Outcome for one line.
type Checked<T> = std::result::Result<T, String>;

/// Reads a file.
///
/// # Errors
/// It cannot be read, or lines of it are wrong: all of them are named.
pub fn read(path: &Path) -> Result<Answers> {
    let text = load(path)?;
    parse(&text).map_err(|faults| {
        let lines: String = faults
            .iter()
            .map(|fault| format!("\n  line {}: {}", fault.line, fault.text))
            .collect();
        Error::new(
            Kind::Config,
            format!(
                "{} has {} {}; nothing was written:{lines}",
                shown(path),
                faults.len(),
                if faults.len() == 1 { "error" } else { "errors" }
            ),
        )
        .hint("correct the file and check it with \"mt-installer ks check\"")
    })
}

/// Reads the text of a file.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn load(path: &Path) -> Result<String> {
    let cannot = |error| {
        Error::io("read the answers", path, error)
            .hint("name a kickstart file that is there; paths are taken from the current folder")
    };
    let metadata = fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err(Error::new(
            Kind::Config,
            format!("cannot read the answers {}: it is no file", shown(path)),
        )
        .hint("name the kickstart file itself"));
    }
    let size = metadata.len();
    if size > BYTES_MAX {
        return Err(Error::new(
            Kind::Config,
            format!("{} has {size} bytes, at most 1 MiB is read", shown(path)),
        )
        .hint("is it a kickstart file?"));
    }
    let bytes = fs::read(path).map_err(cannot)?;
    String::from_utf8(bytes).map_err(|error| {
        Error::new(
            Kind::Config,
            format!(
                "{} is no text: byte {} is not UTF-8",
                shown(path),
                error.utf8_error().valid_up_to()
            ),
        )
        .hint("is it a kickstart file?")
    })
}

/// Writes answers as a file that only root may read: it holds the hash of a password.
///
/// # Errors
/// It cannot be written.
pub fn save(answers: &Answers, path: &Path) -> Result<()> {
    Node::File {
        bytes: render(answers).into_bytes(),
        mode: 0o600,
        owner: None,
    }
    .put(path)
}

/// Parses answers.
///
/// # Errors
/// All faults, in the order of their lines.
pub fn parse(text: &str) -> std::result::Result<Answers, Vec<Fault>> {
    let mut reader = commands::Reader::default();
    if text.starts_with('\u{feff}') {
        let text = "the file begins with a byte order mark, by which nobody finds its first command: save it without";
        reader.fault(1, text.to_owned());
    }
    let mut lines = text
        .trim_start_matches('\u{feff}')
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if !trimmed.starts_with('%') {
            reader.command(number, line);
            continue;
        }
        if trimmed.starts_with("%include") || trimmed.starts_with("%ksappend") {
            reader.fault(
                number,
                "other files are not read; put their lines here".to_owned(),
            );
            continue;
        }
        let mut body = String::new();
        let mut ended = false;
        for (_, inner) in lines.by_ref() {
            if inner.trim_end() == "%end" {
                ended = true;
                break;
            }
            body += inner;
            body.push('\n');
        }
        if !ended {
            reader.fault(
                number,
                format!(
                    "section {} has no %end",
                    trimmed.split(' ').next().unwrap_or(trimmed)
                ),
            );
            break;
        }
        reader.section(number, trimmed, &body);
    }
    reader.finish()
}

/// Entry of the fuzzer: any text gives answers or faults, and answers survive being written and read again.
pub fn fuzz(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(answers) = parse(text)
    {
        assert_eq!(
            parse(&render(&answers)).as_ref().map(|again| &again.networks),
            Ok(&answers.networks)
        );
    }
}
