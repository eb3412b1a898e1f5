// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first boot: settings that were given at deployment are applied, once, and keys are made here.
//!
//! 1. The sources are asked ([`source`]); what they have is read as data ([`settings`]).
//! 2. One fault refuses all of it: the report says which property, and the console asks instead. The next boot tries
//!    again, since the properties can be mended while the machine is off.
//! 3. Files are put in place, each whole; then the report says `applied`, which is never done again. A run that was cut
//!    before that is done anew by the next boot and ends the same.
//!
//! Host keys are made where there are none. The machine's ID is made by systemd, which finds it empty.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::custom_change::changes::{Place, SSH_OPENING, with_block};
use crate::custom_change::node::Node;
use crate::error::{Error, Kind, Result};
use crate::network::resolved_owns;

pub mod environment;
pub mod settings;
pub mod source;

use settings::Settings;
use source::Given;

/// Where the report is, below the root.
pub const REPORT: &str = "var/lib/master-target/first-boot.json";
/// Version of the report.
const SCHEMA: u32 = 1;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Settings were given and applied; never done again.
    Applied,
    /// None were given.
    NoneGiven,
    /// Some cannot be used; nothing was applied.
    Refused,
}

/// What the first boot found and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this document.
    pub schema: u32,
    /// When, RFC 3339 in UTC.
    pub date: String,
    /// How it went.
    pub state: State,
    /// Who gave settings.
    pub sources: Vec<String>,
    /// Names of what was applied.
    pub applied: Vec<String>,
    /// What cannot be used, a line each.
    pub faults: Vec<String>,
}

/// The report of an earlier run, where there is one.
///
/// # Errors
/// It cannot be read.
pub fn report(root: &Path) -> Result<Option<Report>> {
    let path = root.join(REPORT);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(
                Kind::Unexpected,
                format!("{} is damaged: {error}", path.display()),
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// Applies what was given to the system on `root`, and writes the report.
///
/// # Errors
/// A file cannot be written. That a setting cannot be used is in the report.
pub fn apply(root: &Path, given: &Given, date: &str) -> Result<Report> {
    let zone_exists = |zone: &str| {
        let path = root.join("usr/share/zoneinfo").join(zone);
        !zone.contains("..") && path.is_file()
    };
    let mut report = Report {
        schema: SCHEMA,
        date: date.to_owned(),
        state: State::NoneGiven,
        sources: given.sources.clone(),
        applied: Vec::new(),
        faults: Vec::new(),
    };
    match settings::read(&given.properties, &zone_exists) {
        Ok(settings) if settings == Settings::default() => {}
        Ok(settings) => {
            report.state = State::Applied;
            report.applied = put(root, &settings)?;
        }
        Err(faults) => {
            report.state = State::Refused;
            report.faults = faults.iter().map(ToString::to_string).collect();
        }
    }
    write_report(root, &report)?;
    Ok(report)
}

/// Keeps a report of a source that cannot be read at all.
///
/// # Errors
/// It cannot be written.
pub fn refuse(root: &Path, fault: &Error, date: &str) -> Result<Report> {
    let report = Report {
        schema: SCHEMA,
        date: date.to_owned(),
        state: State::Refused,
        sources: Vec::new(),
        applied: Vec::new(),
        faults: vec![fault.to_string()],
    };
    write_report(root, &report)?;
    Ok(report)
}

fn write_report(root: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_vec_pretty(report)
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))?;
    put_file(root, REPORT, text, 0o600)
}

/// Puts all files in place; answers the names of what was set.
fn put(root: &Path, settings: &Settings) -> Result<Vec<String>> {
    let mut applied = Vec::new();
    let mut done = |name: &str| applied.push(name.to_owned());
    if let Some(name) = &settings.hostname {
        put_hostname(root, name)?;
        done("hostname");
    }
    if settings.address.is_some() || !settings.dns.is_empty() {
        put_network(root, settings)?;
        done(if settings.address.is_some() {
            "address"
        } else {
            "dns"
        });
    }
    if !settings.ntp.is_empty() {
        let servers: String = settings
            .ntp
            .iter()
            .map(|server| format!("server {server} iburst\n"))
            .collect();
        put_file(
            root,
            "etc/chrony/sources.d/master-target.sources",
            servers.into_bytes(),
            0o644,
        )?;
        done("ntp");
    }
    if let Some(zone) = &settings.timezone {
        let link = Node::Link {
            target: format!("/usr/share/zoneinfo/{zone}"),
        };
        put_node(root, "etc/localtime", &link)?;
        put_file(root, "etc/timezone", format!("{zone}\n").into_bytes(), 0o644)?;
        done("timezone");
    }
    if let Some(hash) = &settings.root_password_hash {
        put_root_password(root, hash)?;
        done("root_password_hash");
    }
    if let Some(key) = &settings.ssh_key {
        put_ssh(root, key)?;
        done("ssh_key");
    }
    if let Some(id) = settings.retention_disk {
        let path = root.join("etc/master-target/own-disks");
        let old = fs::read_to_string(&path).unwrap_or_default();
        let text = with_block(&old, &format!("{id}\n"), Place::Bottom);
        put_file(root, "etc/master-target/own-disks", text.into_bytes(), 0o644)?;
        done("retention_disk");
    }
    Ok(applied)
}

/// Writes the host name, and makes it answer without a network.
///
/// # Errors
/// A file cannot be written.
pub fn put_hostname(root: &Path, name: &str) -> Result<()> {
    put_file(root, "etc/hostname", format!("{name}\n").into_bytes(), 0o644)?;
    put_hosts(root, name)
}

/// Sets the hash of root's password and leaves everything else of the line.
///
/// # Errors
/// There is no such account, or the file cannot be written.
pub fn put_root_password(root: &Path, hash: &str) -> Result<()> {
    let path = root.join("etc/shadow");
    let Node::File { bytes, mode, owner } = Node::read(&path)? else {
        return Err(Error::new(
            Kind::Unexpected,
            format!("cannot set root's password: {} is no file", path.display()),
        ));
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut found = false;
    let lines: String = text
        .lines()
        .map(|line| match line.splitn(3, ':').collect::<Vec<_>>().as_slice() {
            ["root", _, rest] => {
                found = true;
                format!("root:{hash}:{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    if !found {
        return Err(Error::new(
            Kind::Unexpected,
            format!(
                "cannot set root's password: {} has no line of root",
                path.display()
            ),
        ));
    }
    let bytes = lines.into_bytes();
    Node::File { bytes, mode, owner }.put(&path)
}

/// Writes the network's settings. Everything that an installation said of the network goes.
///
/// # Errors
/// A file cannot be written.
pub fn put_network(root: &Path, settings: &Settings) -> Result<()> {
    let folder = root.join("etc/systemd/network");
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("50-mt-") && name != "50-mt-0.network" {
            Node::Absent.put(&entry.path())?;
        }
    }
    put_file(
        root,
        "etc/systemd/network/50-mt-0.network",
        network_file(settings).into_bytes(),
        0o644,
    )?;
    // systemd-resolved takes them from there, and those of DHCP too; elsewhere the resolver's file is all there is.
    if !settings.dns.is_empty() && !resolved_owns(root) {
        let text: String = settings
            .dns
            .iter()
            .map(|server| format!("nameserver {server}\n"))
            .collect();
        put_file(root, "etc/resolv.conf", text.into_bytes(), 0o644)?;
    }
    Ok(())
}

/// The file of systemd-networkd for the cards of the machine.
fn network_file(settings: &Settings) -> String {
    let mut text = "[Match]\nType=ether\nKind=!*\n\n[Network]\nLLMNR=no\nMulticastDNS=no\n".to_owned();
    match settings.address {
        Some(own) => {
            text += &format!("DHCP=no\nAddress={}/{}\n", own.address, own.prefix);
            // What a router announces would add addresses that nobody asked for.
            text += if own.address.is_ipv6() || settings.gateway.is_some_and(|gateway| gateway.is_ipv4()) {
                "IPv6AcceptRA=no\n"
            } else {
                "IPv6AcceptRA=yes\n"
            };
        }
        None => text += "DHCP=ipv4\nIPv6AcceptRA=yes\n",
    }
    if let Some(gateway) = settings.gateway {
        text += &format!("Gateway={gateway}\n");
    }
    for server in &settings.dns {
        text += &format!("DNS={server}\n");
    }
    text
}

/// The host's own name answers without a network.
fn put_hosts(root: &Path, name: &str) -> Result<()> {
    let short = name.split('.').next().unwrap_or(name);
    let names = if short == name {
        name.to_owned()
    } else {
        format!("{name} {short}")
    };
    let old = fs::read_to_string(root.join("etc/hosts"))
        .unwrap_or_else(|_| "127.0.0.1 localhost\n::1 localhost\n".to_owned());
    let kept: String = old
        .lines()
        .filter(|line| !line.starts_with("127.0.1.1"))
        .map(|line| format!("{line}\n"))
        .collect();
    put_file(
        root,
        "etc/hosts",
        format!("{kept}127.0.1.1 {names}\n").into_bytes(),
        0o644,
    )
}

/// Lets root in by a key, and switches SSH on.
fn put_ssh(root: &Path, key: &str) -> Result<()> {
    put_node(root, "root/.ssh", &Node::Folder { mode: 0o700 })?;
    let path = "root/.ssh/authorized_keys";
    let old = fs::read_to_string(root.join(path)).unwrap_or_default();
    if !old.lines().any(|line| line == key) {
        let separator = if old.is_empty() || old.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        put_file(root, path, format!("{old}{separator}{key}\n").into_bytes(), 0o600)?;
    }
    for unit in ["ssh.service", "ssh.socket"] {
        let link = root.join("etc/systemd/system").join(unit);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new("/dev/null")) {
            Node::Absent.put(&link)?;
        }
    }
    let wanted = Node::Link {
        target: "/usr/lib/systemd/system/ssh.service".to_owned(),
    };
    put_node(
        root,
        "etc/systemd/system/multi-user.target.wants/ssh.service",
        &wanted,
    )?;
    put_file(
        root,
        "etc/master-target/firewall.d/ssh.nft",
        SSH_OPENING.to_vec(),
        0o644,
    )
}

fn put_file(root: &Path, path: &str, bytes: Vec<u8>, mode: u32) -> Result<()> {
    let node = Node::File {
        bytes,
        mode,
        owner: None,
    };
    put_node(root, path, &node)
}

fn put_node(root: &Path, path: &str, node: &Node) -> Result<()> {
    let place = root.join(path);
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    if node.same(&Node::read(&place)?) {
        return Ok(());
    }
    node.put(&place)
}

/// What files alone do not change on the running system: its name, its list of units, its host keys.
pub fn make_live(report: &Report, say: &mut dyn FnMut(&str)) {
    if let Ok(name) = fs::read_to_string("/etc/hostname")
        && let Err(error) = nix::unistd::sethostname(name.trim())
    {
        say(&format!("the host name is set at the next start only: {error}"));
    }
    let run = |words: &[&str]| {
        Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .status()
            .is_ok_and(|ended| ended.success())
    };
    // Makes the keys that are missing, and no others.
    if Path::new("/usr/bin/ssh-keygen").exists() && !run(&["ssh-keygen", "-A"]) {
        say("the host keys of SSH cannot be made");
    }
    if report.applied.iter().any(|name| name == "ssh_key") {
        // Not waited for: this runs before the network, SSH after it.
        let started =
            run(&["systemctl", "daemon-reload"]) && run(&["systemctl", "--no-block", "start", "ssh.service"]);
        if !started {
            say("SSH is switched on at the next start only");
        }
    }
}

#[cfg(test)]
mod tests;
