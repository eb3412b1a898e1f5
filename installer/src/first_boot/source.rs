// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the properties come from: VMware's tools, or a CD. Only asked, never trusted.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::environment::{self, BYTES_MAX, Properties};
use super::settings::{KEYS, PREFIX};
use crate::error::{Error, Kind, Result, shown};

/// Longest that VMware's tools may take to answer.
const TOOLS_PATIENCE: Duration = Duration::from_secs(10);
/// Where a CD is mounted for the moment.
const CD_POINT: &str = "/run/mt-first-boot";
/// Name of the document on a CD (DSP0243, section 9.5).
const CD_FILE: &str = "ovf-env.xml";

/// Properties, and who gave them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// The properties.
    pub properties: Properties,
    /// In words, for messages.
    pub sources: Vec<String>,
}

/// Asks all sources. The OVF environment comes from the tools, else from a CD; a single key that somebody set on the
/// virtual machine wins over the same key of the environment, since it was set later.
///
/// # Errors
/// A source has something that cannot be read.
pub fn ask() -> Result<Given> {
    let mut given = Given::default();
    let vmware =
        fs::read_to_string("/sys/class/dmi/id/sys_vendor").is_ok_and(|vendor| vendor.starts_with("VMware"));
    let environment = if vmware {
        info_get("guestinfo.ovfEnv")
    } else {
        None
    };
    if let Some(text) = environment {
        given.properties = parsed("guestinfo.ovfEnv", text.as_bytes())?;
        given.sources.push("guestinfo.ovfEnv".to_owned());
    } else if let Some((device, bytes)) = from_cd()? {
        let name = format!("{CD_FILE} on {device}");
        given.properties = parsed(&name, &bytes)?;
        given.sources.push(name);
    }
    if vmware {
        for key in KEYS {
            let name = format!("{PREFIX}{key}");
            if let Some(value) = info_get(&name) {
                given.sources.push(name.clone());
                given.properties.insert(name, value);
            }
        }
    }
    Ok(given)
}

/// Reads one document from a file, for a check before it is used.
///
/// # Errors
/// It cannot be read or is damaged.
pub fn from_file(path: &Path) -> Result<Given> {
    let bytes = bounded(path).map_err(|error| Error::io("read", path, error))?;
    Ok(Given {
        properties: parsed(&shown(path), &bytes)?,
        sources: vec![shown(path)],
    })
}

fn parsed(name: &str, bytes: &[u8]) -> Result<Properties> {
    environment::parse(bytes).map_err(|fault| {
        Error::new(
            Kind::Config,
            format!("the OVF environment in {name} cannot be read: {fault}"),
        )
        .hint("deploy the OVA again, or give the settings on the console")
    })
}

/// At most one byte more than is allowed, so that the parser can refuse it.
fn bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let limit = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A value of VMware's; `None` where it is not set or nobody answers.
fn info_get(key: &str) -> Option<String> {
    let mut child = Command::new("vmtoolsd")
        .args(["--cmd", &format!("info-get {key}")])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let limit = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX) + 1;
        let mut bytes = Vec::new();
        let read = output.take(limit).read_to_end(&mut bytes);
        // Whoever has waited long enough is gone.
        let _ = sender.send(read.map(|_| bytes));
    });
    let Ok(Ok(bytes)) = receiver.recv_timeout(TOOLS_PATIENCE) else {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    };
    if !child.wait().is_ok_and(|ended| ended.success()) {
        return None;
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_end_matches('\n');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The document on the first CD that has one. Only optical drives are looked at: any other disk is another machine's.
fn from_cd() -> Result<Option<(String, Vec<u8>)>> {
    let mut drives: Vec<String> = fs::read_dir("/sys/block")
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name.starts_with("sr"))
                .collect()
        })
        .unwrap_or_default();
    drives.sort();
    for drive in drives {
        let device = format!("/dev/{drive}");
        let Some(_mounted) = Cd::mount(&device)? else {
            continue;
        };
        let file = Path::new(CD_POINT).join(CD_FILE);
        // Never followed: a link on the medium would lead into this system.
        if !fs::symlink_metadata(&file).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let bytes = bounded(&file).map_err(|error| Error::io("read", &file, error))?;
        return Ok(Some((device, bytes)));
    }
    Ok(None)
}

/// A CD mounted for the moment.
struct Cd(PathBuf);

impl Cd {
    /// `None` for a drive without a medium, or with another one.
    fn mount(device: &str) -> Result<Option<Self>> {
        let point = PathBuf::from(CD_POINT);
        fs::create_dir_all(&point).map_err(|error| Error::io("create", &point, error))?;
        let options = ["-t", "iso9660", "-o", "ro,nodev,nosuid,noexec"];
        let ended = Command::new("mount")
            .args(options)
            .arg(device)
            .arg(&point)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        Ok(ended.is_ok_and(|ended| ended.success()).then_some(Self(point)))
    }
}

impl Drop for Cd {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).stdin(Stdio::null()).status();
        let _ = fs::remove_dir(&self.0);
    }
}
