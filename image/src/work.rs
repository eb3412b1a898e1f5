// SPDX-License-Identifier: MIT OR Apache-2.0
//! The private work folder of a build, which is gone afterwards, however the build ends.
//!
//! A second process, the janitor, holds the other end of a pipe. It sees the end of this process as the end of the
//! pipe, be it orderly or by `kill -9`, and removes the folder then. Only the death of both leaves the folder behind.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::{Error, Kind, Result, shown};

/// Hidden verb under which the program is its own janitor.
pub const JANITOR_VERB: &str = "janitor";
const PREFIX: &str = "mt-image-work-";

/// A folder for this build alone.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
    janitor: Child,
}

impl WorkFolder {
    /// Makes a folder below `parent`, readable by its owner only. `parent` has to be there: whether it may be made is for
    /// the verb to say.
    ///
    /// # Errors
    /// The folder cannot be made, or the janitor cannot be started.
    pub fn create(parent: &Path) -> Result<Self> {
        let parent = parent
            .canonicalize()
            .map_err(|error| Error::io("find", parent, error))?;
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map_err(|error| Error::io("create a work folder in", &parent, error))?;
        // This very program, also where its file was replaced since it started, as by an upgrade.
        let janitor = Command::new("/proc/self/exe")
            .arg(JANITOR_VERB)
            .arg(folder.path())
            .stdin(Stdio::piped())
            // Out of the terminal's group: Ctrl-C is for the build, not for the one who cleans up after it.
            .process_group(0)
            .spawn()
            .map_err(|error| Error::new(Kind::Unexpected, format!("cannot start the janitor: {error}")))?;
        // From here on the janitor owns the folder.
        Ok(Self {
            path: folder.keep(),
            janitor,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        if let Err(error) = self.janitor.wait() {
            mt_installer::tell_line!(
                "mt-image: the janitor of {} cannot be awaited: {error}",
                shown(&self.path)
            );
        }
    }
}

/// The janitor: waits for the end of standard input, then removes `folder`.
///
/// # Errors
/// The folder is none of ours, or cannot be removed.
pub fn janitor(folder: &Path) -> Result<()> {
    let ours = folder
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if !ours || !folder.is_absolute() {
        return Err(Error::new(
            Kind::Usage,
            format!("{} is no work folder of mt-image", shown(folder)),
        ));
    }
    let mut sink = [0u8; 64];
    while std::io::stdin().read(&mut sink).is_ok_and(|count| count > 0) {}
    // Programs of the build are being killed right now and may write one more file.
    for _ in 0..50 {
        match std::fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
    std::fs::remove_dir_all(folder).map_err(|error| Error::io("remove the work folder", folder, error))
}
