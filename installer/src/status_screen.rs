// SPDX-License-Identifier: MIT OR Apache-2.0
//! The screen of the installed appliance: what it is, where it is, whether all is well, and a few keys. Pure: facts and
//! keys in, a screen and a wish out.
//!
//! Whoever sits here has not logged in. Without a password of root he may set one and the network, since nobody else
//! could; with one, everything but a look and a restart asks for it. What it opened is closed again when nobody types.

use crate::error::printable;
use crate::first_boot::settings::Settings;
use crate::terminal::{Key, ROWS, cut};

mod network;

pub use network::Form;

/// Shortest password.
const PASSWORD_MIN: usize = 8;

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Version of the appliance.
    pub version: String,
    /// Host name.
    pub host: String,
    /// Addresses, with the name of their card.
    pub addresses: Vec<String>,
    /// One line of the SCSI ID check.
    pub scsi_ids: String,
    /// State of the agent: its word, or why there is none.
    pub agent: Result<Agent, String>,
    /// Settings given at deployment that cannot be used.
    pub faults: Vec<String>,
    /// Whether root has no password yet.
    pub root_locked: bool,
    /// The network's settings as they are.
    pub network: Form,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Number of pairs.
    pub pairs: usize,
    /// Number of jobs that run.
    pub jobs: usize,
    /// Texts of its alarms, worst first.
    pub alarms: Vec<String>,
}

/// What whoever presses a key wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Nothing but the next screen.
    None,
    /// The log.
    Log,
    /// To log in.
    Login,
    /// A restart.
    Reboot,
    /// To be let in with this password of root; [`Screen::unlock`] has the answer.
    Unlock(String),
    /// This password for root.
    Password(String),
    /// These settings for the network.
    Network(Settings),
    /// What machines register with.
    Identity,
}

/// What root's password opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opens {
    Password,
    Network,
    Identity,
}

/// Where the screen is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Status,
    Log(Vec<String>),
    Reboot,
    Unlock(Opens, String),
    Password(String),
    Again(String, String),
    Network(Form),
    Identity(Vec<String>),
}

/// The screen.
#[derive(Debug, Clone, Default)]
pub struct Screen {
    mode: Mode,
    notice: String,
}

impl Screen {
    /// Shows the last lines of the log.
    pub fn show_log(&mut self, lines: Vec<String>) {
        self.mode = Mode::Log(lines);
    }

    /// Shows what machines register with.
    pub fn show_identity(&mut self, lines: Vec<String>) {
        self.mode = Mode::Identity(lines);
    }

    /// Tells something below the status.
    pub fn tell(&mut self, text: &str) {
        self.notice = printable(text);
    }

    /// Whether root's password was right; answers what is wanted then.
    pub fn unlock(&mut self, good: bool, view: &View) -> Wish {
        let mode = std::mem::take(&mut self.mode);
        match mode {
            Mode::Unlock(opens, _) if good => {
                let (mode, wish) = Self::open(opens, view);
                self.mode = mode;
                wish
            }
            _ => {
                self.tell("that is not root's password");
                Wish::None
            }
        }
    }

    /// Nobody has typed for a while: what was opened is closed.
    pub fn idle(&mut self) {
        if !matches!(self.mode, Mode::Log(_)) {
            self.mode = Mode::Status;
        }
        self.notice.clear();
    }

    fn open(opens: Opens, view: &View) -> (Mode, Wish) {
        match opens {
            Opens::Password => (Mode::Password(String::new()), Wish::None),
            Opens::Network => (Mode::Network(view.network.clone()), Wish::None),
            Opens::Identity => (Mode::Status, Wish::Identity),
        }
    }

    /// Takes a key.
    pub fn key(&mut self, key: Key, view: &View) -> Wish {
        self.notice.clear();
        let mode = std::mem::take(&mut self.mode);
        let ask = |opens| match view.root_locked {
            true => Self::open(opens, view),
            false => (Mode::Unlock(opens, String::new()), Wish::None),
        };
        let (mode, wish) = match (mode, key) {
            (Mode::Status, Key::Char('l')) => (Mode::Status, Wish::Log),
            (Mode::Status, Key::Char('r')) => (Mode::Reboot, Wish::None),
            (Mode::Status, Key::Char('p')) => ask(Opens::Password),
            (Mode::Status, Key::Char('n')) => ask(Opens::Network),
            // Without a password nobody knows whose hands these are.
            (Mode::Status, Key::Char('i')) if !view.root_locked => ask(Opens::Identity),
            (Mode::Status, Key::Enter) if !view.root_locked => (Mode::Status, Wish::Login),
            (Mode::Reboot, Key::Char('y')) => (Mode::Status, Wish::Reboot),
            (Mode::Unlock(opens, typed), Key::Enter) => {
                (Mode::Unlock(opens, String::new()), Wish::Unlock(typed))
            }
            (Mode::Unlock(opens, typed), key) => match typing(typed, key) {
                Some(typed) => (Mode::Unlock(opens, typed), Wish::None),
                None => (Mode::Status, Wish::None),
            },
            (Mode::Password(typed), Key::Enter) if typed.len() >= PASSWORD_MIN => {
                (Mode::Again(typed, String::new()), Wish::None)
            }
            (Mode::Again(first, typed), Key::Enter) if first == typed => {
                (Mode::Status, Wish::Password(typed))
            }
            (Mode::Password(typed), key) => match typing(typed, key) {
                Some(typed) => (Mode::Password(typed), Wish::None),
                None => (Mode::Status, Wish::None),
            },
            (Mode::Again(first, typed), key) => match typing(typed, key) {
                Some(typed) => (Mode::Again(first, typed), Wish::None),
                None => (Mode::Password(String::new()), Wish::None),
            },
            (Mode::Network(form), key) => match form.key(key) {
                network::Next::Form(form) => (Mode::Network(form), Wish::None),
                network::Next::Leave => (Mode::Status, Wish::None),
                network::Next::Apply(settings) => (Mode::Status, Wish::Network(settings)),
            },
            _ => (Mode::Status, Wish::None),
        };
        self.mode = mode;
        wish
    }

    /// The text for the console.
    #[must_use]
    pub fn text(&self, view: &View) -> String {
        let mut lines = vec![format!("Master target {}", view.version), String::new()];
        match &self.mode {
            Mode::Status => self.status(view, &mut lines),
            Mode::Log(log) => {
                let room = ROWS - 5;
                lines.extend(log[log.len().saturating_sub(room)..].iter().cloned());
                lines.push(String::new());
                lines.push("any key: back".to_owned());
            }
            Mode::Identity(identity) => {
                lines.extend(identity.iter().cloned());
                lines.push(String::new());
                lines.push("any key: back".to_owned());
            }
            Mode::Reboot => {
                lines.push("Restart this appliance? Sessions are cut and go on afterwards.".to_owned());
                lines.push(String::new());
                lines.push("y restart   any other key: back".to_owned());
            }
            Mode::Unlock(_, typed) => {
                lines.push("Root password of this appliance".to_owned());
                lines.push(String::new());
                lines.push(format!("  > {}_", "*".repeat(typed.len())));
                lines.push(String::new());
                lines.push("Enter on   Escape back".to_owned());
            }
            Mode::Network(form) => lines.extend(form.lines()),
            Mode::Password(typed) | Mode::Again(_, typed) => {
                let again = matches!(self.mode, Mode::Again(..));
                lines.push(
                    if again {
                        "Root password, once more"
                    } else {
                        "New root password"
                    }
                    .to_owned(),
                );
                lines.push(String::new());
                lines.push(format!("  > {}_", "*".repeat(typed.len())));
                lines.push(String::new());
                lines.push(match &self.mode {
                    Mode::Again(first, typed) if first == typed => "  the same".to_owned(),
                    Mode::Again(..) => "! not the same yet".to_owned(),
                    _ if typed.len() < PASSWORD_MIN => format!("! at least {PASSWORD_MIN} characters"),
                    _ => "  good".to_owned(),
                });
                lines.push(String::new());
                lines.push("Enter on   Escape back".to_owned());
            }
        }
        lines
            .iter()
            .take(ROWS)
            .map(|line| cut(&printable(line)) + "\n")
            .collect()
    }

    fn status(&self, view: &View, lines: &mut Vec<String>) {
        lines.push(format!("  name       {}", view.host));
        if view.addresses.is_empty() {
            lines.push("  address    none yet".to_owned());
        }
        for address in view.addresses.iter().take(4) {
            lines.push(format!("  address    {address}"));
        }
        lines.push(format!("  SCSI IDs   {}", view.scsi_ids));
        match &view.agent {
            Ok(agent) => {
                lines.push("  agent      running".to_owned());
                lines.push(format!(
                    "  pairs      {}, {} jobs running",
                    agent.pairs, agent.jobs
                ));
                for alarm in agent.alarms.iter().take(4) {
                    lines.push(format!("  ! {alarm}"));
                }
            }
            Err(why) => lines.push(format!("  agent      NOT RUNNING: {why}")),
        }
        if !view.faults.is_empty() {
            lines.push(String::new());
            lines.push("Settings given at deployment cannot be used; none was applied:".to_owned());
            lines.extend(view.faults.iter().take(3).map(|fault| format!("  ! {fault}")));
        }
        lines.push(String::new());
        if !self.notice.is_empty() {
            lines.push(format!("  {}", self.notice));
        }
        lines.push(
            if view.root_locked {
                "p set the root password   n network   l log   r restart"
            } else {
                "Enter log in   i identity   n network   p password   l log   r restart"
            }
            .to_owned(),
        );
    }
}

/// What was typed after one more key; `None` to go back.
fn typing(mut typed: String, key: Key) -> Option<String> {
    match key {
        Key::Char(letter) if typed.len() < 128 => typed.push(letter),
        Key::Backspace => {
            typed.pop();
        }
        Key::Clear => typed.clear(),
        Key::Escape => return None,
        _ => {}
    }
    Some(typed)
}

#[cfg(test)]
mod tests;
