// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration file of a virtual machine (`.vmx`): whether `disk.EnableUUID` is set, and setting it.
//!
//! The file is kept byte for byte but for that one line: encoding, line ends, order, comments and spacing are the
//! virtual machine's business. Keys and truth values count in any case, values with or without quotes.
//!
//! Changing is refused while the machine may run: beside the file are then `NAME.vmx.lck` (a file or a folder), on NFS
//! `.lck-NUMBER`, and its swap `NAME-NUMBER.vswp`. The product would write its own copy over ours at power-off. The lock is looked for before the change and again before the
//! rename; a machine that is powered on between the two is not noticed.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result, shown};
use crate::input::{self, Accept};

/// Largest file taken; real ones have a few KiB.
const VMX_SIZE_MAX: u64 = 4 << 20;
const KEY: &str = "disk.EnableUUID";
/// What some editors put before a text in UTF-8; it stays where it is and is no part of the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// State of the setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnableUuid {
    /// True.
    On,
    /// Given with another value.
    Off(String),
    /// Not given, which means off.
    Missing,
    /// Given several times; which one counts is the product's choice.
    Repeated,
    /// Given with a quotation mark that is not closed: what a product makes of that line is its choice.
    Unclosed {
        /// The line, from 1.
        line: usize,
    },
}

impl std::fmt::Display for EnableUuid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::On => formatter.write_str("set"),
            Self::Off(value) => write!(formatter, "{value:?}, expected \"TRUE\""),
            Self::Missing => formatter.write_str("missing, expected \"TRUE\""),
            Self::Repeated => formatter.write_str("given several times, expected once"),
            Self::Unclosed { line } => {
                write!(
                    formatter,
                    "not to be made out: the quotation mark in line {line} is not closed, expected \"TRUE\""
                )
            }
        }
    }
}

/// A configuration file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmxFile {
    bytes: Vec<u8>,
}

impl VmxFile {
    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// In words: why this is no configuration of a virtual machine.
    pub fn parse(bytes: Vec<u8>) -> std::result::Result<Self, String> {
        if bytes.contains(&0) {
            return Err("it holds zero bytes: a binary file".to_owned());
        }
        let file = Self { bytes };
        let known = ["config.version", "virtualHW.version"];
        for key in known {
            if !file.lines().any(|line| {
                setting(line).is_some_and(|(found, _)| found.eq_ignore_ascii_case(key.as_bytes()))
            }) {
                return Err(format!("it has no {key}, which every virtual machine has"));
            }
        }
        Ok(file)
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split_inclusive(|&byte| byte == b'\n')
    }

    /// State of `disk.EnableUUID`.
    #[must_use]
    pub fn enable_uuid(&self) -> EnableUuid {
        let mut values = (1..)
            .zip(self.lines())
            .filter_map(|(number, line)| setting(line).map(|found| (number, found)))
            .filter(|(_, (key, _))| key.eq_ignore_ascii_case(KEY.as_bytes()));
        match (values.next(), values.next()) {
            (None, _) => EnableUuid::Missing,
            (Some(_), Some(_)) => EnableUuid::Repeated,
            (Some((_, (_, Value::Whole(value)))), None) if value.eq_ignore_ascii_case(b"true") => {
                EnableUuid::On
            }
            (Some((_, (_, Value::Whole(value)))), None) => {
                EnableUuid::Off(String::from_utf8_lossy(value).into_owned())
            }
            (Some((line, (_, Value::Unclosed))), None) => EnableUuid::Unclosed { line },
        }
    }

    /// The file with the setting on and everything else as it was.
    #[must_use]
    pub fn with_enable_uuid(&self) -> Self {
        let end: &[u8] = if self.bytes.windows(2).any(|pair| pair == b"\r\n") {
            b"\r\n"
        } else {
            b"\n"
        };
        let mut bytes = Vec::with_capacity(self.bytes.len() + 32);
        let mut done = false;
        for line in self.lines() {
            if !setting(line).is_some_and(|(key, _)| key.eq_ignore_ascii_case(KEY.as_bytes())) {
                bytes.extend_from_slice(line);
                continue;
            }
            // The first one is replaced, further ones go: no product says which would count.
            if !done {
                if line.starts_with(BYTE_ORDER_MARK) {
                    bytes.extend_from_slice(BYTE_ORDER_MARK);
                }
                bytes.extend_from_slice(b"disk.EnableUUID = \"TRUE\"");
                let body = line
                    .iter()
                    .rposition(|byte| !matches!(byte, b'\r' | b'\n'))
                    .map_or(0, |at| at + 1);
                bytes.extend_from_slice(&line[body..]);
                done = true;
            }
        }
        if !done {
            if !bytes.ends_with(b"\n") && !bytes.is_empty() {
                bytes.extend_from_slice(end);
            }
            bytes.extend_from_slice(b"disk.EnableUUID = \"TRUE\"");
            bytes.extend_from_slice(end);
        }
        Self { bytes }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Value of a line.
enum Value<'a> {
    /// Without its quotation marks, where there are any.
    Whole(&'a [u8]),
    /// It begins with a quotation mark, and there is no other.
    Unclosed,
}

/// Key and value of a line, `None` for comments and everything else.
fn setting(line: &[u8]) -> Option<(&[u8], Value<'_>)> {
    // Nowhere but at the beginning of a file is there such a line.
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii();
    if line.starts_with(b"#") {
        return None;
    }
    let at = line.iter().position(|&byte| byte == b'=')?;
    let value = line[at + 1..].trim_ascii();
    let value = match value.strip_prefix(b"\"") {
        Some(rest) if !rest.contains(&b'"') => Value::Unclosed,
        Some(rest) => Value::Whole(rest.strip_suffix(b"\"").unwrap_or(rest).trim_ascii()),
        None => Value::Whole(value),
    };
    Some((line[..at].trim_ascii(), value))
}

/// Reads a configuration file.
///
/// # Errors
/// It cannot be read, or is none ([`Kind::Refused`]).
pub fn load(path: &Path) -> Result<VmxFile> {
    let refuse = |reason: String| {
        Error::new(
            Kind::Refused,
            format!(
                "{} is no configuration of a virtual machine: {reason}",
                shown(path)
            ),
        )
        .hint("name the .vmx file in the virtual machine's folder")
    };
    let bytes = input::read(
        "configuration of a virtual machine",
        path,
        VMX_SIZE_MAX,
        Accept::File,
    )?;
    VmxFile::parse(bytes).map_err(refuse)
}

/// Sets `disk.EnableUUID` in a file; returns whether that changed it.
///
/// Steps: 1. lock looked for; 2. new text written beside the file, synced, with mode and owner of the old one; 3. lock
/// and file looked at again; 4. renamed over the file; 5. folder synced. A crash before 4 leaves the old file and a
/// `.mt-image-*` beside it, after 4 the new file.
///
/// # Errors
/// The file is none, the machine may be running, or writing failed; the file is then as it was.
pub fn enable_uuid(path: &Path) -> Result<bool> {
    // A link would be replaced by a file; what it points to is what is meant.
    let path = &path
        .canonicalize()
        .map_err(|error| Error::input("find", path, error))?;
    let old = load(path)?;
    if old.enable_uuid() == EnableUuid::On {
        return Ok(false);
    }
    refuse_running(path)?;
    let folder = path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let metadata = path
        .metadata()
        .map_err(|error| Error::io("examine", path, error))?;
    let mut new = tempfile::Builder::new()
        .prefix(".mt-image-")
        .permissions(std::fs::Permissions::from_mode(metadata.mode() & 0o7777))
        .tempfile_in(&folder)
        .map_err(|error| Error::io("create a file in", &folder, error))?;
    let failed = |error| Error::io("write the new text of", path, error);
    new.write_all(old.with_enable_uuid().as_bytes()).map_err(failed)?;
    std::os::unix::fs::fchown(new.as_file(), Some(metadata.uid()), Some(metadata.gid())).map_err(failed)?;
    // The umask has had its say at creation; the old mode is what counts.
    new.as_file()
        .set_permissions(std::fs::Permissions::from_mode(metadata.mode() & 0o7777))
        .map_err(failed)?;
    new.as_file().sync_all().map_err(failed)?;
    refuse_running(path)?;
    if load(path)? != old {
        return Err(Error::new(
            Kind::Refused,
            format!("{} was changed meanwhile; it was left as it is", shown(path)),
        )
        .hint("find out who changed it, then try again"));
    }
    new.persist(path)
        .map_err(|error| Error::io("replace", path, error.error))?;
    let folder_file = std::fs::File::open(&folder).map_err(|error| Error::io("open", &folder, error))?;
    folder_file
        .sync_all()
        .map_err(|error| Error::io("write out", &folder, error))?;
    Ok(true)
}

fn refuse_running(path: &Path) -> Result<()> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let stem = name.strip_suffix(".vmx").unwrap_or(&name);
    let fixed = [
        format!("{name}.lck"),
        format!("{name}~.lck"),
        format!(".{name}.lck"),
        format!("{stem}.vmem.lck"),
    ];
    let folder = path.parent().unwrap_or(Path::new("/"));
    let failed = |error| Error::io("look for locks in", folder, error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let lock = entry.map_err(failed)?.path();
        let found = lock.file_name().unwrap_or_default().to_string_lossy();
        // The swap of a machine that runs is named after it and ends in a number; ESXi's locks on NFS are hidden and say
        // nothing of the file they are for.
        let swap = found.strip_suffix(".vswp").is_some_and(|rest| {
            let rest = rest.strip_prefix("vmx-").unwrap_or(rest);
            rest.strip_prefix(stem)
                .is_some_and(|end| end.is_empty() || end.starts_with('-'))
        });
        if fixed.contains(&found.clone().into_owned()) || found.starts_with(".lck-") || swap {
            let text = format!(
                "{} is in use: {} exists; nothing was changed",
                shown(path),
                shown(&lock)
            );
            return Err(Error::new(Kind::Refused, text).hint(
                "power the virtual machine off; a lock left behind by a crash must be removed by hand",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
