// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors as the operator sees them, and the exit codes they lead to.

use std::path::Path;

/// Who has to act, and so which exit code follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something outside the program's reach failed: I/O, a tool, the build host.
    Unexpected,
    /// The command line asks for what cannot be.
    Usage,
    /// A spec or another input file of the operator is wrong.
    Config,
    /// Refused so that nothing is lost.
    Refused,
    /// A mirror or another peer did not do its part.
    Peer,
    /// A file was examined and found wanting.
    Faults,
}

impl Kind {
    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::Config => 3,
            Self::Refused => 5,
            Self::Peer => 6,
            Self::Faults => 9,
        }
    }
}

/// An error with what was attempted, on what and what was found, and a hint for what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Who has to act.
    pub kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<std::io::Error>,
}

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error of a kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// Adds what the operator should do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Makes the error of a failed system call on a path.
    pub fn io(attempt: &str, path: &Path, source: std::io::Error) -> Self {
        let message = format!("cannot {attempt} {}: {source}", shown(path));
        use std::io::ErrorKind as Found;
        let hint = match source.kind() {
            Found::StorageFull | Found::QuotaExceeded => {
                "free space there, or name another folder with --out or --work"
            }
            Found::NotFound => "check the path; is the folder above it there?",
            Found::PermissionDenied => "run this as a user who may do that, or as root",
            Found::NotADirectory => "a part of the path is a file: check the path",
            Found::IsADirectory => "name a file in that folder",
            Found::AlreadyExists => "remove it, choose another name, or give --force",
            Found::ReadOnlyFilesystem => "name a folder on a file system that can be written",
            Found::CrossesDevices => "name folders on one file system",
            _ => "the kernel's log (dmesg) may say more of the disk or the file system below that path",
        };
        Self {
            kind: Kind::Unexpected,
            message,
            hint: Some(hint.to_owned()),
            source: Some(source),
        }
    }

    /// Makes the error of a file that was named on the command line and cannot be read: [`Kind::Usage`] where another
    /// name or another user would mend it.
    pub fn input(attempt: &str, path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Found;
        let kind = match source.kind() {
            Found::NotFound
            | Found::PermissionDenied
            | Found::NotADirectory
            | Found::IsADirectory
            | Found::InvalidFilename
            | Found::InvalidInput => Kind::Usage,
            _ => Kind::Unexpected,
        };
        Self {
            kind,
            ..Self::io(attempt, path, source)
        }
    }

    /// The operator's next step, where one is known.
    #[must_use]
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether the cause is a full file system.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        self.source
            .as_ref()
            .is_some_and(|source| source.kind() == std::io::ErrorKind::StorageFull)
    }
}

/// A path as it is safe to show on a terminal: control characters escaped.
#[must_use]
pub fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().any(acts_on_terminal) {
        format!("{text:?}")
    } else {
        text.into_owned()
    }
}

/// Whether a terminal does something on this character other than showing it: control characters, and the marks that turn
/// the direction of writing, with which a text can be made to read as another.
fn acts_on_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, kept: &[char]) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if acts_on_terminal(c) && !kept.contains(&c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A text of one line, as it is safe to show on a terminal.
#[must_use]
pub fn line_shown(text: &str) -> String {
    escaped(text, &[])
}

/// A text of several lines, as it is safe to show on a terminal.
#[must_use]
pub fn lines_shown(text: &str) -> String {
    escaped(text, &['\n', '\t'])
}

/// A fault found in a file that was examined.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// Short, stable name of the kind of fault.
    pub code: &'static str,
    /// Offset in the file in bytes, where that helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What was found against what was expected, and what an import would make of it.
    pub text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text may quote the file, which is anybody's.
        let text = line_shown(&self.text);
        match self.offset {
            Some(offset) => write!(formatter, "{}: at offset {offset:#x}: {text}", self.code),
            None => write!(formatter, "{}: {text}", self.code),
        }
    }
}
