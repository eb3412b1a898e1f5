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
                "free space on the file system of that path, or name a path on another one"
            }
            Found::NotFound => "check the path; is the folder above it there?",
            Found::PermissionDenied => "run this as a user who may do that, or as root",
            Found::NotADirectory => "a part of the path is a file: check the path",
            Found::IsADirectory => "name a file in that folder",
            Found::AlreadyExists => "remove it, or choose another name",
            Found::InvalidFilename => {
                "choose a shorter name: file systems take 255 bytes for a name, 4095 for a path"
            }
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

    /// Marks the cause as a full file system, where a program told it in words.
    #[must_use]
    pub fn no_space_left(mut self) -> Self {
        self.source = Some(std::io::ErrorKind::StorageFull.into());
        self.hint("free space, or name other folders on a file system that has more")
    }

    /// Makes one error of several, of the kind and with the hint of the first; `what` is what they were found in.
    /// `None` when there are none.
    #[must_use]
    pub fn of_all(what: &str, mut errors: Vec<Self>) -> Option<Self> {
        let lines: String = errors.iter().map(|error| format!("\n  {error}")).collect();
        let count = errors.len();
        let first = (count > 0).then(|| errors.swap_remove(0))?;
        if count == 1 {
            return Some(first);
        }
        Some(Self {
            message: format!("{what} has {}:{lines}", counted(count as u64, "fault")),
            ..first
        })
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

/// A number of things: "1 fault", "2 faults".
#[must_use]
pub fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hint_is_one_that_any_verb_can_follow() {
        for errno in 1..134 {
            let error = std::io::Error::from_raw_os_error(errno);
            let hint = Error::io("write", Path::new("x"), error);
            let hint = hint.next_step().expect("a failed call has a hint");
            assert!(!hint.contains("--"), "errno {errno} names an option: {hint}");
        }
    }

    #[test]
    fn a_name_of_too_many_bytes_is_told_as_that() {
        let found = Path::new(&"x".repeat(300)).metadata().unwrap_err();
        let error = Error::input("open", Path::new("x"), found);
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.next_step().expect("a hint").contains("255 bytes"));
    }

    #[test]
    fn several_errors_become_one_that_names_them_all() {
        let one = |text: &str| Error::new(Kind::Usage, text).hint("do");
        assert!(Error::of_all("x", Vec::new()).is_none());
        let alone = Error::of_all("x", vec![one("a")]).expect("one");
        assert_eq!(alone.to_string(), "a");
        let both = Error::of_all("x", vec![one("a"), Error::new(Kind::Config, "b")]).expect("two");
        assert_eq!(both.to_string(), "x has 2 faults:\n  a\n  b");
        assert_eq!((both.kind, both.next_step()), (Kind::Usage, Some("do")));
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            [0, 1, 2].map(|count| counted(count, "grain")),
            ["0 grains", "1 grain", "2 grains"]
        );
    }
}
