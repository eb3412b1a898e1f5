// SPDX-License-Identifier: MIT OR Apache-2.0
//! The form for host name, address and name servers. What is typed is checked with every key by the same rules as the
//! settings of a deployment, together with all that was typed on the pages before.

use std::net::IpAddr;

use crate::first_boot::environment::Properties;
use crate::first_boot::settings::{self, PREFIX, Settings};
use crate::terminal::Key;

/// A page: the property it asks for, and what it says.
struct Page {
    property: &'static str,
    title: &'static str,
}

/// The pages in their order. The one without a property chooses between DHCP and a static address.
const PAGES: &[Page] = &[
    Page {
        property: "hostname",
        title: "Host name",
    },
    Page {
        property: "",
        title: "How the network card gets its address",
    },
    Page {
        property: "address",
        title: "Address and prefix length, such as 192.0.2.10/24",
    },
    Page {
        property: "gateway",
        title: "Default gateway; empty: none",
    },
    Page {
        property: "dns",
        title: "DNS servers, separated by commas; empty: none, or those of DHCP",
    },
];
/// Place of the page with the choice.
const METHOD: usize = 1;
/// Longest text that is taken on one page.
const TYPED_MAX: usize = 128;

/// What is typed, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// Page that is shown; behind the last one is the summary.
    page: usize,
    fixed: bool,
    typed: [String; PAGES.len()],
}

/// How it goes on after a key.
pub(super) enum Next {
    Form(Form),
    Leave,
    Apply(Settings),
}

impl Form {
    /// A form with what is set now: the host name, and the text of the file of systemd-networkd.
    #[must_use]
    pub fn of(host: &str, file: &str) -> Self {
        let all =
            |key: &str| -> Vec<&str> { file.lines().filter_map(|line| line.strip_prefix(key)).collect() };
        let first = |key: &str| all(key).first().copied().unwrap_or_default().to_owned();
        let address = first("Address=");
        Self {
            page: 0,
            fixed: !address.is_empty(),
            typed: [
                host.to_owned(),
                String::new(),
                address,
                first("Gateway="),
                all("DNS=").join(", "),
            ],
        }
    }

    pub(super) fn key(mut self, key: Key) -> Next {
        match key {
            Key::Escape => loop {
                let Some(before) = self.page.checked_sub(1) else {
                    return Next::Leave;
                };
                self.page = before;
                if self.asked() {
                    return Next::Form(self);
                }
            },
            Key::Char('a' | 'A') if self.page == PAGES.len() => match self.settings() {
                Ok(settings) => return Next::Apply(settings),
                Err(_) => return Next::Form(self),
            },
            Key::Enter if self.page < PAGES.len() && self.fault().is_none() => {
                self.page += 1;
                while !self.asked() {
                    self.page += 1;
                }
            }
            Key::Up | Key::Down | Key::Char(' ') if self.page == METHOD => self.fixed = !self.fixed,
            Key::Char('1') if self.page == METHOD => self.fixed = false,
            Key::Char('2') if self.page == METHOD => self.fixed = true,
            key if self.page != METHOD => {
                if let Some(typed) = self.typed.get_mut(self.page) {
                    match key {
                        Key::Char(letter) if typed.len() < TYPED_MAX => typed.push(letter),
                        Key::Backspace => drop(typed.pop()),
                        Key::Clear => typed.clear(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Next::Form(self)
    }

    fn asked(&self) -> bool {
        self.fixed
            || !PAGES
                .get(self.page)
                .is_some_and(|page| ["address", "gateway"].contains(&page.property))
    }

    /// What the first pages say, as the properties of a deployment.
    fn read(&self, pages: usize) -> Result<Settings, String> {
        let mut properties = Properties::new();
        for (page, typed) in PAGES.iter().zip(&self.typed).take(pages) {
            let of_static = ["address", "gateway"].contains(&page.property);
            if !page.property.is_empty() && (self.fixed || !of_static) {
                properties.insert(format!("{PREFIX}{}", page.property), typed.clone());
            }
        }
        let read = settings::read(&properties, &|_| false).map_err(|faults| {
            let first = faults.first();
            first.map_or_else(String::new, |fault| fault.text.clone())
        })?;
        if read.hostname.is_none() {
            return Err("a host name is needed".to_owned());
        }
        if self.fixed && pages > METHOD + 1 && read.address.is_none() {
            return Err("an address is needed, such as 192.0.2.10/24".to_owned());
        }
        Ok(read)
    }

    fn settings(&self) -> Result<Settings, String> {
        self.read(PAGES.len())
    }

    fn fault(&self) -> Option<String> {
        self.read(self.page + 1).err()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let Some(page) = PAGES.get(self.page) else {
            return self.summary();
        };
        let mut lines = vec![page.title.to_owned(), String::new()];
        if self.page == METHOD {
            let mark = |chosen| if chosen { ">" } else { " " };
            lines.push(format!("  {} 1  DHCP", mark(!self.fixed)));
            lines.push(format!("  {} 2  a static address", mark(self.fixed)));
        } else {
            lines.push(format!("  > {}_", self.typed[self.page]));
        }
        lines.push(String::new());
        lines.push(match self.fault() {
            None => "  good".to_owned(),
            Some(fault) => format!("! {fault}"),
        });
        lines.push(String::new());
        lines.push("Enter on   Escape back   Ctrl-U empty".to_owned());
        lines
    }

    fn summary(&self) -> Vec<String> {
        let mut lines = vec!["These settings take effect at once:".to_owned(), String::new()];
        match self.settings() {
            Ok(settings) => {
                let list = |servers: &[IpAddr]| {
                    let texts: Vec<String> = servers.iter().map(ToString::to_string).collect();
                    if texts.is_empty() {
                        if self.fixed { "none" } else { "those of DHCP" }.to_owned()
                    } else {
                        texts.join(", ")
                    }
                };
                lines.push(format!("  name     {}", settings.hostname.unwrap_or_default()));
                match settings.address {
                    Some(own) => {
                        let gateway = settings.gateway.map(|gateway| gateway.to_string());
                        lines.push(format!("  address  {}/{}", own.address, own.prefix));
                        lines.push(format!("  gateway  {}", gateway.unwrap_or("none".to_owned())));
                    }
                    None => lines.push("  address  by DHCP".to_owned()),
                }
                lines.push(format!("  DNS      {}", list(&settings.dns)));
            }
            Err(fault) => lines.push(format!("! {fault}")),
        }
        lines.push(String::new());
        lines.push("a apply   Escape back".to_owned());
        lines
    }
}
