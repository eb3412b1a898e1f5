// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file that tells how far an installation came.
//!
//! Replaced as a whole before each step, so that it names the step that was under way when the installer was killed.
//! A later run starts from the beginning: each step makes what it needs anew, and the disk does not boot in between.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, shown};

/// Version of the file.
const SCHEMA: u32 = 1;

/// How far an installation came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    schema: u32,
    /// The disk or image.
    pub target: String,
    /// The step that was begun last.
    pub step: String,
    /// Whether all were done.
    pub finished: bool,
}

/// Where it is kept.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// Names the file.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// What an earlier run left, if it was not finished.
    ///
    /// # Errors
    /// The file cannot be read. One that makes no sense is no reason to stop: only a hint is lost.
    pub fn unfinished(&self) -> Result<Option<State>> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(serde_json::from_slice::<State>(&bytes)
                .ok()
                .filter(|state| !state.finished)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &self.path, error)),
        }
    }

    /// Records that a step begins, or that all are done.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&self, target: &Path, step: &str, finished: bool) -> Result<()> {
        let state = State {
            schema: SCHEMA,
            target: shown(target),
            step: step.to_owned(),
            finished,
        };
        let mut text = serde_json::to_vec_pretty(&state)
            .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))?;
        text.push(b'\n');
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        }
        replace(&self.path, &text)
    }
}

/// Replaces a file as a whole: after a crash it is the old one or the new one.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::io("write", path, error);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_run_is_remembered_and_a_finished_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(&folder.path().join("deep/state.json"));
        assert_eq!(file.unfinished().unwrap(), None);
        file.record(Path::new("/dev/sda"), "unpack", false).unwrap();
        assert_eq!(file.unfinished().unwrap().unwrap().step, "unpack");
        file.record(Path::new("/dev/sda"), "first_sector", true).unwrap();
        assert_eq!(file.unfinished().unwrap(), None);
        fs::write(folder.path().join("deep/state.json"), "{").unwrap();
        assert_eq!(file.unfinished().unwrap(), None);
    }
}
