// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer console`: the screen of the installed appliance, on a console.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::ask::hash;
use crate::error::{Error, Kind, Result};
use crate::first_boot::settings::Settings;
use crate::status_screen::{Agent, Form, Screen, View, Wish};
use crate::terminal::{COLUMNS, Input, Terminal};
use crate::{first_boot, scsi_ids};

/// The screen is renewed this often.
const RENEW_MS: u16 = 5_000;
/// Renewals without a key after which everything is written anew, and what a password has opened is closed.
const IDLE_RENEWALS: u32 = 24;
/// How long a wrong password holds whoever tries the next one.
const WRONG_PASSWORD: Duration = Duration::from_secs(2);
/// The network's settings, below the root.
const NETWORK_FILE: &str = "etc/systemd/network/50-mt-0.network";
/// Folders of programs that libraries use, which are in no PATH.
const HELPERS: [&str; 2] = ["/usr/sbin", "/sbin"];

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The console it is on, such as tty1: the login is started there
    #[arg(long, value_name = "NAME", default_value = "tty1")]
    terminal: String,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let root = Path::new("/");
    let mut terminal = Terminal::open()?;
    let mut screen = Screen::default();
    let mut view = gather();
    let mut quiet_renewals = 0;
    loop {
        terminal.show(&screen.text(&view))?;
        let key = match terminal.input(RENEW_MS)? {
            Input::Key(key) => key,
            Input::Nothing => {
                quiet_renewals += 1;
                if quiet_renewals == IDLE_RENEWALS {
                    quiet_renewals = 0;
                    screen.idle();
                    terminal.forget();
                }
                view = gather();
                continue;
            }
            Input::Closed => return Err(Error::new(Kind::Unexpected, "the console was closed")),
        };
        quiet_renewals = 0;
        // Whoever has just connected to a serial line sees nothing of what was sent before.
        terminal.forget();
        let mut wish = screen.key(key, &view);
        if let Wish::Unlock(password) = &wish {
            let good = is_root_password(password);
            if !good {
                std::thread::sleep(WRONG_PASSWORD);
            }
            wish = screen.unlock(good, &view);
        }
        match wish {
            Wish::None | Wish::Unlock(_) => {}
            Wish::Log => screen.show_log(log()),
            Wish::Identity => screen.show_identity(identity()),
            Wish::Password(password) => {
                let set = hash(&password).and_then(|hash| first_boot::put_root_password(root, &hash));
                screen.tell(&match set {
                    Ok(()) => "the password is set".to_owned(),
                    Err(error) => format!("the password is NOT set: {error}"),
                });
                view = gather();
            }
            Wish::Network(settings) => {
                screen.tell(&match set_network(root, &settings) {
                    Ok(()) => "the network's settings are in effect".to_owned(),
                    Err(error) => format!("the network is NOT set: {error}"),
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
                let unit = format!("master-target-login@{}.service", arguments.terminal);
                // Its start ends this process; its end starts it again.
                if !quiet("systemctl", &["start", &unit]) {
                    screen.tell("the login cannot be started; restart the appliance");
                }
            }
        }
    }
}

/// Whether this is root's password, as PAM's own helper says, which knows all hashes that the system uses.
fn is_root_password(password: &str) -> bool {
    let Some(helper) = HELPERS
        .iter()
        .map(|folder| Path::new(folder).join("unix_chkpwd"))
        .find(|path| path.is_file())
    else {
        return false;
    };
    let child = Command::new(helper)
        .args(["root", "nonull"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    if let Some(mut pipe) = child.stdin.take() {
        // One that ends without reading says no by its exit code.
        let _ = pipe.write_all(&[password.as_bytes(), b"\0"].concat());
    }
    child.wait().is_ok_and(|ended| ended.success())
}

/// Writes the network's settings and puts them in effect.
fn set_network(root: &Path, settings: &Settings) -> Result<()> {
    if !quiet("systemctl", &["is-active", "--quiet", "systemd-networkd.service"]) {
        return Err(Error::new(
            Kind::Refused,
            "systemd-networkd does not run here: log in and use what this system has instead",
        ));
    }
    if let Some(name) = &settings.hostname {
        first_boot::put_hostname(root, name)?;
        if !quiet("hostnamectl", &["set-hostname", name]) {
            return Err(Error::new(
                Kind::Partly,
                "the new host name takes effect at the next start only; the address is as before",
            ));
        }
    }
    first_boot::put_network(root, settings)?;
    // Old releases cannot reload.
    if quiet("networkctl", &["reload"]) || quiet("systemctl", &["restart", "systemd-networkd.service"]) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Partly,
        "it is written, and takes effect at the next start only",
    ))
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
    let host = host.unwrap_or_default();
    let network = fs::read_to_string(Path::new("/").join(NETWORK_FILE)).unwrap_or_default();
    View {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        network: Form::of(&host, &network),
        host,
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

/// What whoever registers a machine has to know.
fn identity() -> Vec<String> {
    let about = match ask_agent(&["identity", "show", "--json"]) {
        Ok(about) => about,
        Err(why) => return vec![format!("The agent does not tell its identity: {why}")],
    };
    let text = |name: &str| about[name].as_str().map(str::to_owned);
    let mut lines = vec![
        "Machines register with this appliance by its passphrase; whoever knows the".to_owned(),
        "fingerprint of its CA gives it as well (--ca-fingerprint).".to_owned(),
        String::new(),
        "  CA fingerprint".to_owned(),
    ];
    lines.extend(in_rows(&text("ca").unwrap_or_default()));
    lines.push(String::new());
    if let Some(passphrase) = text("passphrase") {
        lines.push("  Passphrase: write it down, it is shown this once".to_owned());
        lines.extend(in_rows(&passphrase));
    } else {
        lines.push(
            "The passphrase was shown already, and is kept nowhere in clear. For another one".to_owned(),
        );
        lines.push("log in and run: mt-agent passphrase rotate".to_owned());
    }
    lines
}

/// A long text in rows that fit on the screen.
fn in_rows(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    letters
        .chunks(COLUMNS - 8)
        .map(|row| format!("    {}", row.iter().collect::<String>()))
        .collect()
}

fn agent() -> std::result::Result<Agent, String> {
    let status = ask_agent(&["status", "--json"])?;
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

fn ask_agent(arguments: &[&str]) -> std::result::Result<serde_json::Value, String> {
    let output = Command::new("mt-agent")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("mt-agent cannot be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().next().unwrap_or("it does not answer").to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("its answer is no JSON: {error}"))
}
