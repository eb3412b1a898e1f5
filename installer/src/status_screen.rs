// SPDX-License-Identifier: MIT OR Apache-2.0
//! The screen of the installed appliance: what it is, where it is, whether all is well, and a few keys. Pure: facts and
//! keys in, a screen and a wish out.
//!
//! Whoever sits here has not logged in. Without a password of root he may set one, since nobody else could; with one,
//! everything but a look and a restart goes through the login.

use crate::error::printable;
use crate::terminal::{Key, ROWS, cut};

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
    /// This password for root.
    Password(String),
}

/// Where the screen is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Status,
    Log(Vec<String>),
    Reboot,
    Password(String),
    Again(String, String),
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

    /// Tells something below the status.
    pub fn tell(&mut self, text: &str) {
        self.notice = printable(text);
    }

    /// Takes a key.
    pub fn key(&mut self, key: Key, view: &View) -> Wish {
        let mode = std::mem::take(&mut self.mode);
        let (mode, wish) = match (mode, key) {
            (Mode::Status, Key::Char('l')) => (Mode::Status, Wish::Log),
            (Mode::Status, Key::Char('r')) => (Mode::Reboot, Wish::None),
            (Mode::Status, Key::Char('p')) if view.root_locked => (Mode::Password(String::new()), Wish::None),
            (Mode::Status, Key::Enter) if !view.root_locked => (Mode::Status, Wish::Login),
            (Mode::Reboot, Key::Char('y')) => (Mode::Status, Wish::Reboot),
            (Mode::Password(typed), Key::Enter) if typed.len() >= PASSWORD_MIN => {
                (Mode::Again(typed, String::new()), Wish::None)
            }
            (Mode::Again(first, typed), Key::Enter) if first == typed => {
                (Mode::Status, Wish::Password(typed))
            }
            (Mode::Password(typed), Key::Escape) if typed.is_empty() => (Mode::Status, Wish::None),
            (Mode::Password(typed), key) => match typing(typed, key) {
                Some(typed) => (Mode::Password(typed), Wish::None),
                None => (Mode::Status, Wish::None),
            },
            (Mode::Again(first, typed), key) => match typing(typed, key) {
                Some(typed) => (Mode::Again(first, typed), Wish::None),
                None => (Mode::Password(String::new()), Wish::None),
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
            Mode::Reboot => {
                lines.push("Restart this appliance? Sessions are cut and go on afterwards.".to_owned());
                lines.push(String::new());
                lines.push("y restart   any other key: back".to_owned());
            }
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
                "p set the root password   l log   r restart"
            } else {
                "Enter log in   l log   r restart"
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
mod tests {
    use super::*;
    use crate::terminal::{COLUMNS, Keys};

    fn view(root_locked: bool) -> View {
        View {
            version: "1.2.3".to_owned(),
            host: "mt1".to_owned(),
            addresses: vec!["192.0.2.10/24 (ens192)".to_owned()],
            scsi_ids: "good: 3 SCSI disks, each with its own ID".to_owned(),
            agent: Ok(Agent {
                pairs: 2,
                jobs: 1,
                alarms: vec!["target disk \x1b[2J is not attached".to_owned()],
            }),
            faults: Vec::new(),
            root_locked,
        }
    }

    fn press(screen: &mut Screen, view: &View, bytes: &[u8]) -> Vec<Wish> {
        let mut keys = Keys::default();
        let mut all = keys.feed(bytes);
        all.extend(keys.quiet());
        all.into_iter()
            .map(|key| screen.key(key, view))
            .filter(|wish| *wish != Wish::None)
            .collect()
    }

    #[test]
    fn the_status_is_on_the_screen_and_cannot_steer_it() {
        let text = Screen::default().text(&view(false));
        for line in [
            "name       mt1",
            "address    192.0.2.10/24 (ens192)",
            "SCSI IDs   good: 3",
            "agent      running",
            "pairs      2, 1 jobs",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'), "{text}");
        let mut full = view(true);
        full.agent = Err("x".repeat(200));
        full.addresses = vec!["192.0.2.10/24".to_owned(); 40];
        full.faults = vec!["guestinfo.hostname: wrong".to_owned(); 40];
        let text = Screen::default().text(&full);
        assert!(
            text.lines().count() <= ROWS && text.lines().all(|line| line.len() < COLUMNS),
            "{text}"
        );
        assert!(text.contains("none was applied"), "{text}");
    }

    #[test]
    fn a_password_is_set_only_where_there_is_none() {
        let (mut screen, locked) = (Screen::default(), view(true));
        assert!(press(&mut screen, &locked, b"pshort\r").is_empty());
        assert!(
            screen.text(&locked).contains("! at least 8"),
            "{}",
            screen.text(&locked)
        );
        assert!(press(&mut screen, &locked, b" enough\rshort enougt\r").is_empty());
        assert!(!screen.text(&locked).contains("enough"));
        assert_eq!(
            press(&mut screen, &locked, b"\x7fh\r"),
            [Wish::Password("short enough".to_owned())]
        );
        let (mut screen, set) = (Screen::default(), view(false));
        assert!(press(&mut screen, &set, b"p").is_empty());
        assert_eq!(press(&mut screen, &set, b"\r"), [Wish::Login]);
        // Nobody logs in where there is no password.
        assert!(press(&mut Screen::default(), &locked, b"\r").is_empty());
    }

    #[test]
    fn a_restart_is_asked_twice() {
        let (mut screen, view) = (Screen::default(), view(false));
        assert!(press(&mut screen, &view, b"rn").is_empty());
        assert!(press(&mut screen, &view, b"y").is_empty());
        assert_eq!(press(&mut screen, &view, b"ry"), [Wish::Reboot]);
        assert_eq!(press(&mut screen, &view, b"l"), [Wish::Log]);
        screen.show_log((0..99).map(|line| format!("line {line}")).collect());
        assert!(screen.text(&view).contains("line 98") && screen.text(&view).lines().count() <= ROWS);
    }
}
