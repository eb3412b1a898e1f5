//! Errors as people and scripts meet them: a message, a hint, and an exit code.

use std::fmt;

/// Exit codes of every command. They are part of the interface: scripts decide by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// Something that should not happen did.
    Unexpected = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration is wrong.
    Config = 3,
    /// A disk is missing, or it is in doubt which one is meant.
    DiskMissing = 4,
    /// Refused for safety.
    Refused = 5,
    /// The peer refused, cannot be reached, or broke the protocol.
    Peer = 6,
    /// The retention store is damaged.
    Retention = 7,
    /// Partly done: running the command again goes on.
    PartlyDone = 8,
    /// A verification found differences.
    Differences = 9,
}

impl ExitCode {
    /// The code of a number that another process named; `Unexpected` for one that is not ours.
    pub fn from_number(number: u8) -> Self {
        let all = [
            Self::Done,
            Self::Usage,
            Self::Config,
            Self::DiskMissing,
            Self::Refused,
            Self::Peer,
            Self::Retention,
            Self::PartlyDone,
            Self::Differences,
        ];
        all.into_iter()
            .find(|code| *code as u8 == number)
            .unwrap_or(Self::Unexpected)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// What an error can say beyond its message.
pub trait Explain: fmt::Display {
    /// What to do next, where something can be done.
    fn hint(&self) -> Option<String>;
    /// How a command that fails with it exits.
    fn exit_code(&self) -> ExitCode;
}

/// An error on its way to the user of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// What was attempted, on what, and what was found.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// How the command exits.
    pub exit_code: ExitCode,
}

impl CliError {
    /// An error without a hint.
    pub fn new(exit_code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            exit_code,
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error as a JSON document of one line.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "schema": 1,
            "event": "error",
            "error": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code as u8,
        })
        .to_string()
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", printable(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", printable(hint)),
            None => Ok(()),
        }
    }
}

/// A message may repeat what somebody typed or a peer sent: what could move the cursor is escaped, lines stay.
fn printable(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, character| {
            if character.is_control() && character != '\n' {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
            out
        })
}

impl<E: Explain> From<E> for CliError {
    fn from(error: E) -> Self {
        Self {
            message: error.to_string(),
            hint: error.hint(),
            exit_code: error.exit_code(),
        }
    }
}
