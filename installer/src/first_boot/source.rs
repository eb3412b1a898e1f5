// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the properties come from: VMware's tools, or a CD. Only asked, never trusted.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::environment::{self, BYTES_MAX, Properties};
use super::settings::{KEYS, PREFIX};
use crate::error::{Error, Kind, Result, shown};

/// VMware's tools.
const TOOLS: &str = "vmtoolsd";
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
    let vmware =
        fs::read_to_string("/sys/class/dmi/id/sys_vendor").is_ok_and(|vendor| vendor.starts_with("VMware"));
    let tools = Path::new(TOOLS);
    let mut info = |key: &str| {
        let value = vmware.then(|| info_get(tools, key, TOOLS_PATIENCE));
        value.flatten()
    };
    collect(&mut info, &from_cd)
}

/// Puts together what the tools answer for a key and what is on a CD.
fn collect(
    info: &mut dyn FnMut(&str) -> Option<String>,
    cd: &dyn Fn() -> Result<Option<(String, Vec<u8>)>>,
) -> Result<Given> {
    let mut given = Given::default();
    if let Some(text) = info("guestinfo.ovfEnv") {
        given.properties = parsed("guestinfo.ovfEnv", text.as_bytes())?;
        given.sources.push("guestinfo.ovfEnv".to_owned());
    } else if let Some((device, bytes)) = cd()? {
        let name = format!("{CD_FILE} on {device}");
        given.properties = parsed(&name, &bytes)?;
        given.sources.push(name);
    }
    for key in KEYS {
        let name = format!("{PREFIX}{key}");
        if let Some(value) = info(&name) {
            given.sources.push(name.clone());
            given.properties.insert(name, value);
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

/// A value of VMware's; `None` where it is not set, or nobody answers in time.
fn info_get(tools: &Path, key: &str, patience: Duration) -> Option<String> {
    let deadline = Instant::now() + patience;
    let mut child = Command::new(tools)
        .args(["--cmd", &format!("info-get {key}")])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = child.stdout.take();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let limit = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX) + 1;
        let mut bytes = Vec::new();
        let read = output.map(|output| output.take(limit).read_to_end(&mut bytes));
        // Whoever has waited long enough is gone.
        let _ = sender.send(read.and_then(std::result::Result::ok).map(|_| bytes));
    });
    let bytes = receiver.recv_timeout(patience).ok().flatten();
    let ended = loop {
        match child.try_wait() {
            Ok(None) if bytes.is_some() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(Some(ended)) => break ended.success(),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let bytes = bytes.filter(|_| ended)?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PATIENT: Duration = Duration::from_secs(60);

    fn environment(value: &str) -> String {
        format!(
            "<Environment><PropertySection><Property key=\"guestinfo.hostname\" value=\"{value}\"/>\
             <Property key=\"guestinfo.timezone\" value=\"UTC\"/></PropertySection></Environment>"
        )
    }

    /// Stands for vmtoolsd, where a hypervisor would have to answer the real one.
    fn tools(script: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmtoolsd");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn said(script: &str, patience: Duration) -> Option<String> {
        let folder = tools(script);
        info_get(&folder.path().join("vmtoolsd"), "guestinfo.hostname", patience)
    }

    #[test]
    fn the_tools_are_asked_for_one_key_and_may_fail_in_every_way() {
        let asked = "[ \"$#:$1:$2\" = \"2:--cmd:info-get guestinfo.hostname\" ] && echo mt1";
        assert_eq!(said(asked, PATIENT).as_deref(), Some("mt1"));
        // What vmtoolsd says where the key is not set.
        assert_eq!(said("echo 'No value found' >&2; exit 1", PATIENT), None);
        assert_eq!(said("echo half; exit 1", PATIENT), None);
        assert_eq!(said("echo", PATIENT), None);
        assert_eq!(said("kill -9 $$", PATIENT), None);
        // It hangs, with its output open and closed.
        assert_eq!(said("exec sleep 600", Duration::from_millis(200)), None);
        assert_eq!(said("exec >&-; exec sleep 600", Duration::from_millis(200)), None);
        assert_eq!(info_get(Path::new("/nonexistent/vmtoolsd"), "x", PATIENT), None);
        // Without an end: a part is read, which is too long for the parser, and the rest has no reader.
        let endless = said("yes; exit 0", PATIENT);
        assert!(endless.is_none_or(|text| parsed("x", text.as_bytes()).is_err()));
        assert_eq!(said("printf 'a\\377b'", PATIENT).as_deref(), Some("a\u{fffd}b"));
    }

    #[test]
    fn the_tools_win_over_a_cd_and_a_single_key_over_both() {
        let none = || Ok(None);
        let cd = || Ok(Some(("/dev/sr0".to_owned(), environment("of-cd").into_bytes())));
        let found = collect(&mut |_| None, &none).unwrap();
        assert_eq!(found, Given::default());

        let found = collect(&mut |_| None, &cd).unwrap();
        assert_eq!(found.properties["guestinfo.hostname"], "of-cd");
        assert_eq!(found.sources, ["ovf-env.xml on /dev/sr0"]);

        let mut whole = |key: &str| (key == "guestinfo.ovfEnv").then(|| environment("of-tools"));
        let found = collect(&mut whole, &cd).unwrap();
        assert_eq!(found.properties["guestinfo.hostname"], "of-tools");
        assert_eq!(found.sources, ["guestinfo.ovfEnv"]);

        let mut single = |key: &str| match key {
            "guestinfo.ovfEnv" => Some(environment("of-tools")),
            "guestinfo.hostname" => Some("single".to_owned()),
            _ => None,
        };
        let found = collect(&mut single, &cd).unwrap();
        assert_eq!(found.properties["guestinfo.hostname"], "single");
        assert_eq!(found.properties["guestinfo.timezone"], "UTC");
        assert_eq!(found.sources, ["guestinfo.ovfEnv", "guestinfo.hostname"]);

        let mut damaged = |key: &str| (key == "guestinfo.ovfEnv").then(|| "<Environment".to_owned());
        let error = collect(&mut damaged, &cd).unwrap_err().to_string();
        assert!(error.contains("guestinfo.ovfEnv cannot be read"), "{error}");
    }
}
