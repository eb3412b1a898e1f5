// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors as the operator sees them, and the exit codes they lead to.

use std::path::Path;

/// Who has to act, and so which exit code follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something outside the program's reach failed: I/O, a tool, the machine.
    Unexpected,
    /// The command line asks for what cannot be.
    Usage,
    /// The answers or another input file of the operator are wrong.
    Config,
    /// A disk is missing, or it is in doubt which one is meant.
    Disk,
    /// Refused so that nothing is lost.
    Refused,
    /// Something was begun and is not finished; the same command goes on or starts again.
    Partly,
    /// A file or a machine was examined and found wanting.
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
            Self::Disk => 4,
            Self::Refused => 5,
            Self::Partly => 8,
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
        Self {
            kind: Kind::Unexpected,
            message: format!("cannot {attempt} {}: {source}", shown(path)),
            hint: None,
            source: Some(source),
        }
    }

    /// Says that a disk was begun and is not finished.
    #[must_use]
    pub fn partly(mut self) -> Self {
        self.kind = Kind::Partly;
        self.message += "\nthe installation is not finished, and the disk does not start";
        self.hint
            .get_or_insert_with(|| "mend the cause and start again: it begins anew".to_owned());
        self
    }

    /// The operator's next step, where one is known.
    #[must_use]
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The system's error behind it, where there is one.
    #[must_use]
    pub fn io_kind(&self) -> Option<std::io::ErrorKind> {
        self.source.as_ref().map(std::io::Error::kind)
    }
}

/// A path as it is safe to show on a terminal.
#[must_use]
pub fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// Text of others (answers, volumes, disks) as it is safe to show on a terminal: control characters escaped.
#[must_use]
pub fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars().flat_map(|letter| letter.escape_default()).collect()
    } else {
        text.to_owned()
    }
}
