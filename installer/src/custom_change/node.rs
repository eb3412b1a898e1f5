// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stands under one path, read and put in place.
//!
//! A file is put in place under a temporary name, synced and renamed, and its folder synced: whoever looks sees the
//! one before or the whole new one, also after a power loss.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use crate::error::{Error, Result};

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Nothing.
    Absent,
    /// A file.
    File {
        /// Its content.
        bytes: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner and group, where they are to be kept.
        owner: Option<(u32, u32)>,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: String,
    },
    /// A folder.
    Folder {
        /// Permission bits.
        mode: u32,
    },
    /// Anything else; never made, and never replaced.
    Other,
}

impl Node {
    /// Reads what stands there.
    ///
    /// # Errors
    /// It cannot be examined or read.
    pub fn read(path: &Path) -> Result<Self> {
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::Absent),
            Err(error) => return Err(Error::io("examine", path, error)),
        };
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(|error| Error::io("read the link", path, error))?;
            let target = target.to_string_lossy().into_owned();
            return Ok(Self::Link { target });
        }
        if metadata.is_dir() {
            return Ok(Self::Folder { mode });
        }
        if !metadata.is_file() {
            return Ok(Self::Other);
        }
        let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
        let owner = Some((metadata.uid(), metadata.gid()));
        Ok(Self::File { bytes, mode, owner })
    }

    /// Puts it in place of whatever stands there. A folder is only made where there is nothing, and only removed when it
    /// is empty.
    ///
    /// # Errors
    /// It cannot be written, or made durable.
    pub fn put(&self, path: &Path) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        match self {
            Self::Absent => {
                let removed = match Self::read(path)? {
                    Self::Absent => return Ok(()),
                    Self::Folder { .. } => match fs::remove_dir(path) {
                        // Somebody has put something into it meanwhile: that is theirs.
                        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
                        other => other,
                    },
                    _ => fs::remove_file(path),
                };
                removed.map_err(|error| Error::io("remove", path, error))?;
            }
            Self::File { bytes, mode, owner } => {
                let write = || -> std::io::Result<()> {
                    let mut new = tempfile::Builder::new()
                        .prefix(".mt-")
                        .permissions(fs::Permissions::from_mode(*mode))
                        .tempfile_in(folder)?;
                    new.write_all(bytes)?;
                    if let Some((user, group)) = owner {
                        keep_owner(new.as_file(), *user, *group)?;
                    }
                    // The mode asked for at creation is cut by the umask.
                    new.as_file().set_permissions(fs::Permissions::from_mode(*mode))?;
                    new.as_file().sync_all()?;
                    new.persist(path).map_err(|error| error.error)?;
                    Ok(())
                };
                write().map_err(|error| Error::io("write", path, error))?;
            }
            Self::Link { target } => {
                // Made beside it and renamed, so that there is never nothing.
                let beside = folder.join(format!(".mt-link-{}", std::process::id()));
                let _ = fs::remove_file(&beside);
                std::os::unix::fs::symlink(target, &beside)
                    .and_then(|()| fs::rename(&beside, path))
                    .map_err(|error| Error::io("link", path, error))?;
            }
            Self::Folder { mode } => {
                if Self::read(path)? == Self::Absent {
                    fs::create_dir(path).map_err(|error| Error::io("create", path, error))?;
                }
                fs::set_permissions(path, fs::Permissions::from_mode(*mode))
                    .map_err(|error| Error::io("set the mode of", path, error))?;
            }
            Self::Other => {}
        }
        sync_folder(folder)
    }

    /// The same but for the owner, which only root can set.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::File { bytes, mode, .. },
                Self::File {
                    bytes: others,
                    mode: others_mode,
                    ..
                },
            ) => bytes == others && mode == others_mode,
            _ => self == other,
        }
    }
}

fn keep_owner(file: &File, user: u32, group: u32) -> std::io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) == (user, group) {
        return Ok(());
    }
    fchown(file, Some(user), Some(group))
}

/// Makes what was done in a folder durable.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("write out", folder, error))
}
