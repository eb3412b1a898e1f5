// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload: the appliance's root file system as squashfs, with its SHA-256 in a file beside it.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::command::Program;
use crate::error::{Error, Kind, Result, shown};

/// A payload and what it must be.
#[derive(Debug, Clone)]
pub struct Payload {
    /// The squashfs.
    pub path: PathBuf,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

impl Payload {
    /// Takes a payload, with the digest that is given, or that the file `NAME.sha256` beside it holds.
    ///
    /// # Errors
    /// There is no digest, or it is none.
    pub fn new(path: &Path, sha256: Option<&str>) -> Result<Self> {
        let text = match sha256 {
            Some(text) => text.to_owned(),
            None => {
                let beside = path.with_extension("sha256");
                fs::read_to_string(&beside).map_err(|error| {
                    Error::io("read the payload's digest", &beside, error)
                        .hint("the digest lies beside the payload, or is given with --payload-sha256")
                })?
            }
        };
        let digest = text.split_ascii_whitespace().next().unwrap_or_default();
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::new(
                Kind::Config,
                format!("the digest of {} is no SHA-256 in hex", shown(path)),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            sha256: digest.to_ascii_lowercase(),
        })
    }

    /// Reads all of it and compares; tells the bytes that were read.
    ///
    /// # Errors
    /// It cannot be read, or is not what it must be.
    pub fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut file = File::open(&self.path).map_err(|error| Error::io("open", &self.path, error))?;
        let size = file
            .metadata()
            .map_err(|error| Error::io("examine", &self.path, error))?
            .len();
        let mut digest = Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        let mut done = 0;
        loop {
            match file
                .read(&mut buffer)
                .map_err(|error| Error::io("read", &self.path, error))?
            {
                0 => break,
                count => {
                    digest.update(&buffer[..count]);
                    done += count as u64;
                    progress(done, size);
                }
            }
        }
        let found: String = digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if found == self.sha256 {
            return Ok(());
        }
        Err(Error::new(
            Kind::Faults,
            format!(
                "the payload {} is damaged: its SHA-256 is {found}, expected {}; nothing was written",
                shown(&self.path),
                self.sha256
            ),
        )
        .hint("copy the ISO again and compare its SHA-256"))
    }

    /// Unpacks it into a folder.
    ///
    /// # Errors
    /// unsquashfs failed, for instance because the disk is full or broken.
    pub fn unpack(&self, root: &Path) -> Result<()> {
        Program::new("unsquashfs")
            .args([
                "-quiet",
                "-no-progress",
                "-force",
                "-data-queue",
                "64",
                "-frag-queue",
                "64",
                "-dest",
            ])
            .arg(root)
            .arg(&self.path)
            .run()
            .map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_payload_is_told_from_a_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("payload.squashfs");
        fs::write(&path, "abc").unwrap();
        assert!(Payload::new(&path, None).is_err(), "no digest");
        fs::write(folder.path().join("payload.sha256"), "short\n").unwrap();
        assert!(Payload::new(&path, None).is_err(), "no digest of that length");
        let good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        fs::write(folder.path().join("payload.sha256"), format!("{good}\n")).unwrap();
        let payload = Payload::new(&path, None).unwrap();
        let mut seen = 0;
        payload.check(&mut |done, _| seen = done).unwrap();
        assert_eq!(seen, 3);
        fs::write(&path, "abd").unwrap();
        let error = payload.check(&mut |_, _| ()).unwrap_err();
        assert_eq!(error.kind, Kind::Faults);
        assert!(error.to_string().contains("nothing was written"), "{error}");
    }
}
