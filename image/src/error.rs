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
        let hint = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Some("free space there, or name another folder with --out or --work".to_owned())
            }
            _ => None,
        };
        Self {
            kind: Kind::Unexpected,
            message,
            hint,
            source: Some(source),
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
    if text.chars().any(char::is_control) {
        format!("{text:?}")
    } else {
        text.into_owned()
    }
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
        match self.offset {
            Some(offset) => write!(formatter, "{}: at offset {offset:#x}: {}", self.code, self.text),
            None => write!(formatter, "{}: {}", self.code, self.text),
        }
    }
}
