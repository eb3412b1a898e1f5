// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interview on the console: asks what an installation has to know, when no answers were given.
//!
//! A state machine without a terminal: keys go in, a screen comes out. Every question is a page; what is typed is
//! checked with every key; Enter goes on only when it is good, Escape goes back and keeps what was typed. What is on the
//! disk is lost only after `yes` was typed on the page that says what that is.

use crate::answers::{Answers, End, Network, RootLogin};
use crate::error::printable;
use crate::facts::{DiskFacts, MachineFacts};
use crate::first_boot::settings::{self, Address};
use crate::plan::size_text;
use crate::terminal::{Key, cut};

#[cfg(test)]
mod tests;

/// Longest text that is taken on one page.
const TYPED_MAX: usize = 128;
/// Shortest password.
const PASSWORD_MIN: usize = 8;
/// Disks that fit on a page.
const DISKS_SHOWN: usize = 5;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Host name.
    HostName,
    /// Static address or DHCP.
    Method,
    /// Static address.
    Address,
    /// Default gateway.
    Gateway,
    /// DNS servers.
    Dns,
    /// Time zone.
    Zone,
    /// Root's password.
    Password,
    /// The same again.
    PasswordAgain,
    /// Which disk.
    Disk,
    /// That what is on it may be lost.
    Confirm,
    /// Everything once more.
    Summary,
    /// File for the answers.
    Save,
}

/// The order of the questions.
const PAGES: &[Page] = &[
    Page::HostName,
    Page::Method,
    Page::Address,
    Page::Gateway,
    Page::Dns,
    Page::Zone,
    Page::Password,
    Page::PasswordAgain,
    Page::Disk,
    Page::Confirm,
    Page::Summary,
];

/// How the interview goes on after a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With the next key.
    Go,
    /// It is over: install with these answers.
    Install,
    /// These answers are to be saved in this file; then it goes on.
    Save(String),
    /// It is over: nothing is to be done.
    Leave,
}

/// The interview.
#[derive(Debug, Clone)]
pub struct Interview {
    page: Page,
    typed: [String; 9],
    dhcp: bool,
    disk: usize,
    disks: Vec<DiskFacts>,
    zones: Vec<String>,
    notice: Option<String>,
}

impl Interview {
    /// Begins, knowing the machine's disks and the system's time zones.
    #[must_use]
    pub fn new(facts: &MachineFacts, zones: Vec<String>) -> Self {
        let mut interview = Self {
            page: Page::HostName,
            typed: Default::default(),
            dhcp: true,
            disk: 0,
            disks: facts
                .disks
                .iter()
                .filter(|disk| !disk.is_medium)
                .cloned()
                .collect(),
            zones,
            notice: None,
        };
        interview.set(Page::HostName, "master-target");
        interview.set(Page::Zone, "UTC");
        interview.set(Page::Save, "/root/master-target.ks");
        interview
    }

    /// The question that is being asked.
    #[must_use]
    pub fn page(&self) -> Page {
        self.page
    }

    /// Something to be told on the next screen, such as that a file was saved.
    pub fn tell(&mut self, text: &str) {
        self.notice = Some(printable(text));
    }

    /// Where what is typed on a page is kept.
    fn slot(page: Page) -> Option<usize> {
        match page {
            Page::HostName => Some(0),
            Page::Address => Some(1),
            Page::Gateway => Some(2),
            Page::Dns => Some(3),
            Page::Zone => Some(4),
            Page::Password => Some(5),
            Page::PasswordAgain => Some(6),
            Page::Confirm => Some(7),
            Page::Save => Some(8),
            Page::Method | Page::Disk | Page::Summary => None,
        }
    }

    fn text(&self, page: Page) -> &str {
        Self::slot(page).map_or("", |slot| &self.typed[slot])
    }

    fn set(&mut self, page: Page, text: &str) {
        if let Some(slot) = Self::slot(page) {
            text.clone_into(&mut self.typed[slot]);
        }
    }

    /// Takes a key.
    pub fn key(&mut self, key: Key) -> Outcome {
        self.notice = None;
        match (self.page, key) {
            (_, Key::Escape) => return self.back(),
            (Page::Summary, Key::Char('i' | 'I')) => return Outcome::Install,
            (Page::Summary, Key::Char('s' | 'S')) => self.page = Page::Save,
            (Page::Summary, _) => {}
            (Page::Method, Key::Up | Key::Down | Key::Char(' ')) => self.dhcp = !self.dhcp,
            (Page::Method, Key::Char('1')) => self.dhcp = true,
            (Page::Method, Key::Char('2')) => self.dhcp = false,
            (Page::Disk, Key::Up) => self.choose(self.disk.saturating_sub(1)),
            (Page::Disk, Key::Down) => self.choose(self.disk + 1),
            (_, Key::Enter) => return self.next(),
            (page, Key::Char(letter)) => {
                if let Some(slot) = Self::slot(page)
                    && self.typed[slot].len() < TYPED_MAX
                {
                    self.typed[slot].push(letter);
                }
            }
            (page, Key::Backspace) => {
                if let Some(slot) = Self::slot(page) {
                    self.typed[slot].pop();
                }
            }
            (page, Key::Clear) => self.set(page, ""),
            (_, Key::Up | Key::Down) => {}
        }
        Outcome::Go
    }

    fn choose(&mut self, index: usize) {
        let index = index.min(self.disks.len().saturating_sub(1));
        if index != self.disk {
            self.disk = index;
            // What was confirmed was another disk.
            self.set(Page::Confirm, "");
        }
    }

    fn asked(&self, page: Page) -> bool {
        !(self.dhcp && matches!(page, Page::Address | Page::Gateway))
    }

    fn next(&mut self) -> Outcome {
        if self.check().is_err() {
            return Outcome::Go;
        }
        if self.page == Page::Save {
            let file = self.text(Page::Save).to_owned();
            self.page = Page::Summary;
            return Outcome::Save(file);
        }
        let at = PAGES.iter().position(|page| *page == self.page).unwrap_or(0);
        if let Some(next) = PAGES[at + 1..].iter().find(|page| self.asked(**page)) {
            self.page = *next;
        }
        Outcome::Go
    }

    fn back(&mut self) -> Outcome {
        if self.page == Page::Save {
            self.page = Page::Summary;
            return Outcome::Go;
        }
        let at = PAGES.iter().position(|page| *page == self.page).unwrap_or(0);
        match PAGES[..at].iter().rev().find(|page| self.asked(**page)) {
            Some(before) => {
                self.page = *before;
                Outcome::Go
            }
            None => Outcome::Leave,
        }
    }

    /// Whether what is typed on this page is good; a word about it either way.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self) -> Result<String, String> {
        let text = self.text(self.page);
        match self.page {
            Page::HostName => settings::hostname(text).map(|_| "good".to_owned()),
            Page::Method | Page::Summary => Ok(String::new()),
            Page::Address => {
                let Address { address, prefix } = settings::address(text)?;
                Ok(format!("good: {address} in a net of {prefix} bits"))
            }
            Page::Gateway => {
                if text.is_empty() {
                    return Ok("none: only the own net can be reached".to_owned());
                }
                self.gateway().map(|_| "good".to_owned())
            }
            Page::Dns => {
                if text.is_empty() {
                    return Ok("none".to_owned());
                }
                let servers = settings::addresses(text)?;
                match self.address() {
                    Some(own) if servers.contains(&own.address) => {
                        Err(format!("{} is the appliance's own address", own.address))
                    }
                    _ => Ok("good".to_owned()),
                }
            }
            Page::Zone => {
                if self.zones.iter().any(|zone| zone == text) {
                    return Ok("good".to_owned());
                }
                let wanted = text.to_ascii_lowercase();
                let near: Vec<&str> = self
                    .zones
                    .iter()
                    .filter(|zone| zone.to_ascii_lowercase().contains(&wanted))
                    .take(4)
                    .map(String::as_str)
                    .collect();
                Err(if text.is_empty() || near.is_empty() {
                    "no such time zone; for example Europe/Berlin".to_owned()
                } else {
                    format!("not complete; there are {}", near.join(", "))
                })
            }
            Page::Password => {
                if text.len() < PASSWORD_MIN {
                    Err(format!(
                        "at least {PASSWORD_MIN} characters, {} so far",
                        text.len()
                    ))
                } else {
                    Ok("good".to_owned())
                }
            }
            Page::PasswordAgain => {
                if text == self.text(Page::Password) {
                    Ok("the same".to_owned())
                } else {
                    Err("not the same as before; Escape goes back to change that".to_owned())
                }
            }
            Page::Disk => match self.disks.get(self.disk) {
                None => Err("there is no disk to install on: add one, then start again".to_owned()),
                Some(disk) => usable(disk),
            },
            Page::Confirm => {
                if text == "yes" {
                    Ok("confirmed".to_owned())
                } else {
                    Err("type yes, or press Escape to choose another disk".to_owned())
                }
            }
            Page::Save => {
                if text.starts_with('/') && !text.ends_with('/') {
                    Ok("good".to_owned())
                } else {
                    Err("an absolute path of a file, such as /root/master-target.ks".to_owned())
                }
            }
        }
    }

    fn address(&self) -> Option<Address> {
        if self.dhcp {
            return None;
        }
        settings::address(self.text(Page::Address)).ok()
    }

    fn gateway(&self) -> Result<Option<std::net::IpAddr>, String> {
        let text = self.text(Page::Gateway);
        if self.dhcp || text.is_empty() {
            return Ok(None);
        }
        let gateway = settings::host_address(text)?;
        match self.address() {
            Some(own) if own.address == gateway => Err(format!("{gateway} is the appliance's own address")),
            Some(own) if !own.reaches(gateway) => Err(format!(
                "{gateway} is not in the net of {}/{}",
                own.address, own.prefix
            )),
            _ => Ok(Some(gateway)),
        }
    }

    /// The answers, with the hash of the password that was typed. The disk is named by its SCSI ID where it has one.
    #[must_use]
    pub fn answers(&self, hash: String) -> Answers {
        let network = Network::with_address(
            self.address().map(|own| (own.address, own.prefix)),
            self.gateway().ok().flatten(),
            settings::addresses(self.text(Page::Dns)).unwrap_or_default(),
        );
        let mut answers = Answers {
            hostname: Some(self.text(Page::HostName).to_owned()),
            root: RootLogin::Hash(hash),
            networks: vec![network],
            end: End::Reboot,
            ..Answers::default()
        };
        self.text(Page::Zone).clone_into(&mut answers.time.zone);
        answers.storage.disk = self.disks.get(self.disk).map(|disk| disk.best_name().to_owned());
        answers.storage.clear = self.text(Page::Confirm) == "yes";
        answers
    }

    /// The password, to be hashed.
    #[must_use]
    pub fn password(&self) -> &str {
        self.text(Page::Password)
    }

    /// The screen.
    #[must_use]
    pub fn screen(&self, version: &str) -> String {
        let (question, help): (&str, &[&str]) = match self.page {
            Page::HostName => (
                "Host name",
                &["The name of this appliance in its network, such as mt1 or mt1.example.org."],
            ),
            Page::Method => ("Network", &["How does this appliance get its address?"]),
            Page::Address => (
                "Static address",
                &[
                    "With the length of the net's prefix, or its netmask:",
                    "192.0.2.10/24 or 192.0.2.10/255.255.255.0",
                ],
            ),
            Page::Gateway => (
                "Default gateway",
                &["The way out of the own net. Empty where there is none."],
            ),
            Page::Dns => (
                "DNS servers",
                &["Addresses, separated by commas. Empty: as DHCP says, or none."],
            ),
            Page::Zone => (
                "Time zone",
                &["A name such as Europe/Berlin; a part of it shows those that fit."],
            ),
            Page::Password => (
                "Root password",
                &[
                    "For this console and for SSH where that is switched on.",
                    "At least 8 characters.",
                ],
            ),
            Page::PasswordAgain => ("Root password, once more", &[]),
            Page::Disk => (
                "Disk to install on",
                &["The system goes onto this disk. Disks that hold something may be a machine's."],
            ),
            Page::Confirm => ("What is lost", &["Everything on this disk will be overwritten:"]),
            Page::Summary => ("Summary", &[]),
            Page::Save => (
                "Save the answers",
                &[
                    "A kickstart file; with it the same installation runs unattended (inst.ks=).",
                    "It holds the hash of the password, not the password. The installed system keeps",
                    "it as /root/master-target.ks; a file saved here is gone after the restart.",
                ],
            ),
        };
        let asked: Vec<Page> = PAGES.iter().copied().filter(|page| self.asked(*page)).collect();
        let step = asked
            .iter()
            .position(|page| *page == self.page)
            .unwrap_or(asked.len() - 1);
        let mut lines = vec![
            format!("Master target {version} - installer"),
            String::new(),
            format!("{} ({} of {})", question, step + 1, asked.len()),
            String::new(),
        ];
        lines.extend(help.iter().map(|line| (*line).to_owned()));
        lines.push(String::new());
        self.body(&mut lines);
        lines.push(String::new());
        match self.check() {
            Ok(word) if word.is_empty() => {}
            Ok(word) => lines.push(format!("  {word}")),
            Err(fault) => lines.push(format!("! {fault}")),
        }
        if let Some(notice) = &self.notice {
            lines.push(format!("  {notice}"));
        }
        lines.push(String::new());
        lines.push(
            match self.page {
                Page::Summary => "i install   s save the answers   Escape back",
                Page::Method | Page::Disk => "Up, Down choose   Enter on   Escape back",
                Page::HostName => "Enter on   Ctrl-U clear   Escape leave",
                _ => "Enter on   Ctrl-U clear   Escape back",
            }
            .to_owned(),
        );
        let mut text: String = lines.iter().map(|line| cut(&printable(line)) + "\n").collect();
        // The cursor stays where one types.
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    fn body(&self, lines: &mut Vec<String>) {
        match self.page {
            Page::Method => {
                for (number, text, chosen) in [(1, "DHCP", self.dhcp), (2, "Static address", !self.dhcp)] {
                    lines.push(format!("  {} {number} {text}", if chosen { ">" } else { " " }));
                }
            }
            Page::Disk => {
                let first = self.disk.saturating_sub(DISKS_SHOWN - 1);
                for (index, disk) in self.disks.iter().enumerate().skip(first).take(DISKS_SHOWN) {
                    let mark = if index == self.disk { ">" } else { " " };
                    lines.push(format!("  {mark} {} {}", disk.shown(), size_text(disk.size)));
                    lines.push(format!("      {}, holds {}", disk.model, disk.content));
                }
                if self.disks.len() > DISKS_SHOWN {
                    lines.push(format!("    {} of {}", self.disk + 1, self.disks.len()));
                }
            }
            Page::Confirm => {
                if let Some(disk) = self.disks.get(self.disk) {
                    lines.push(format!("  {} {}", disk.shown(), size_text(disk.size)));
                    lines.push(format!("  holds {}", disk.content));
                    lines.extend(
                        disk.partitions
                            .iter()
                            .take(6)
                            .map(|partition| format!("    {partition}")),
                    );
                    if disk.partitions.len() > 6 {
                        lines.push(format!("    and {} more", disk.partitions.len() - 6));
                    }
                }
                lines.push(String::new());
                lines.push(format!("  > {}_", self.text(self.page)));
            }
            Page::Summary => {
                let network = match (self.address(), self.gateway()) {
                    (Some(own), Ok(Some(gateway))) => {
                        format!("{}/{}, gateway {gateway}", own.address, own.prefix)
                    }
                    (Some(own), _) => format!("{}/{}, no gateway", own.address, own.prefix),
                    (None, _) => "DHCP".to_owned(),
                };
                let dns = match self.text(Page::Dns) {
                    "" if self.dhcp => "as DHCP says",
                    "" => "none",
                    servers => servers,
                };
                let disk = self
                    .disks
                    .get(self.disk)
                    .map(|disk| format!("{} {}", disk.shown(), size_text(disk.size)))
                    .unwrap_or_default();
                for (name, value) in [
                    ("host name", self.text(Page::HostName)),
                    ("network", &network),
                    ("DNS servers", dns),
                    ("time zone", self.text(Page::Zone)),
                    ("root", "password set"),
                    ("disk", &disk),
                ] {
                    lines.push(format!("  {name:12} {value}"));
                }
                lines.push("               everything on this disk will be overwritten".to_owned());
            }
            Page::Password | Page::PasswordAgain => {
                lines.push(format!("  > {}_", "*".repeat(self.text(self.page).len())));
            }
            page => lines.push(format!("  > {}_", self.text(page))),
        }
    }
}

/// Whether a disk can be installed on, as the plan will judge it.
fn usable(disk: &DiskFacts) -> Result<String, String> {
    if let Some(user) = disk.used_by.first() {
        return Err(format!("it is in use: {user}"));
    }
    if disk.read_only {
        return Err("it is read-only".to_owned());
    }
    if disk.logical_block_size != 512 {
        return Err(format!(
            "its blocks have {} bytes, 512 are needed",
            disk.logical_block_size
        ));
    }
    if let Some(why) = &disk.unreadable {
        return Err(format!("it cannot be read: {why}"));
    }
    Ok(if disk.is_empty {
        "it is empty".to_owned()
    } else if disk.holds_foreign() {
        "it holds something that is not ours: a machine's, or recovery points?".to_owned()
    } else {
        "it holds an earlier master target".to_owned()
    })
}
