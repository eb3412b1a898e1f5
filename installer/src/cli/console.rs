// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer console`: the screen of the installed appliance, on a console.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::ask::hash;
use crate::error::{Error, Kind, Result};
use crate::status_screen::{Agent, Screen, View, Wish};
use crate::terminal::{Input, Terminal};
use crate::{first_boot, scsi_ids};

/// The screen is renewed this often.
const RENEW_MS: u16 = 5_000;

pub fn run() -> Result<()> {
    let mut terminal = Terminal::open()?;
    let mut screen = Screen::default();
    let mut view = gather();
    loop {
        terminal.show(&screen.text(&view))?;
        let key = match terminal.input(RENEW_MS)? {
            Input::Key(key) => key,
            Input::Nothing => {
                view = gather();
                continue;
            }
            Input::Closed => return Err(Error::new(Kind::Unexpected, "the console was closed")),
        };
        match screen.key(key, &view) {
            Wish::None => {}
            Wish::Log => screen.show_log(log()),
            Wish::Password(password) => {
                let set =
                    hash(&password).and_then(|hash| first_boot::put_root_password(Path::new("/"), &hash));
                screen.tell(&match set {
                    Ok(()) => "the password is set".to_owned(),
                    Err(error) => format!("the password is NOT set: {error}"),
                });
                view = gather();
            }
            Wish::Reboot => {
                if !quiet("systemctl", &["reboot"]) {
                    screen.tell("the restart was refused; log in and look at the log");
                }
            }
            Wish::Login => {
                terminal.clear()?;
                drop(terminal);
                // Ends with the session; whoever logs in owns the console until then.
                let _ = Command::new("login").status();
                terminal = Terminal::open()?;
                view = gather();
            }
        }
    }
}

fn quiet(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|ended| ended.success())
}

fn log() -> Vec<String> {
    let output = Command::new("journalctl")
        .args(["--lines=40", "--no-pager", "--output=short", "--priority=notice"])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect(),
        Err(error) => vec![format!("the log cannot be read: {error}")],
    }
}

/// Looks at everything anew; what cannot be had is said so in its place.
fn gather() -> View {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    let scsi_ids = scsi_ids::gather(Path::new("/"));
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    let root_locked = shadow.lines().any(|line| {
        let mut fields = line.split(':');
        fields.next() == Some("root") && fields.next().is_some_and(|hash| hash.starts_with(['*', '!']))
    });
    View {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host.unwrap_or_default(),
        addresses: addresses(),
        scsi_ids: scsi_ids.map_or_else(|error| error.to_string(), |report| report.summary()),
        agent: agent(),
        faults: first_boot::report(Path::new("/"))
            .ok()
            .flatten()
            .map(|report| report.faults)
            .unwrap_or_default(),
        root_locked,
    }
}

fn addresses() -> Vec<String> {
    let mut found = Vec::new();
    for card in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        if card.flags.contains(nix::net::if_::InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let Some(address) = card.address else { continue };
        if let Some(four) = address.as_sockaddr_in() {
            found.push(format!("{} ({})", four.ip(), card.interface_name));
        } else if let Some(six) = address.as_sockaddr_in6()
            && !six.ip().is_unicast_link_local()
        {
            found.push(format!("{} ({})", six.ip(), card.interface_name));
        }
    }
    found
}

fn agent() -> std::result::Result<Agent, String> {
    let output = Command::new("mt-agent")
        .args(["status", "--json"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("mt-agent cannot be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().next().unwrap_or("it does not answer").to_owned());
    }
    let status: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("its answer is no JSON: {error}"))?;
    let count = |name: &str| status[name].as_array().map_or(0, Vec::len);
    let alarms = status["alarms"].as_array().into_iter().flatten();
    Ok(Agent {
        pairs: count("pairs"),
        jobs: count("jobs_running"),
        alarms: alarms
            .filter_map(|alarm| alarm["text"].as_str().map(str::to_owned))
            .collect(),
    })
}
