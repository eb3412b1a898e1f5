// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts a file under its final name only when it is whole.
//!
//! Steps, and what a crash leaves behind:
//! 1. the file is made without a name (`O_TMPFILE`): nothing, also after `kill -9`;
//! 2. written and synced: nothing;
//! 3. linked to its final name: the whole file;
//! 4. the folder is synced: as 3, or nothing after a power loss before this step.
//!
//! Where the file system cannot make files without a name (NFS, FUSE), a temporary name beside the final one is used;
//! a kill then leaves `.mt-image-*` behind, which says what it is.

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;
use tempfile::NamedTempFile;

use crate::error::{Error, Kind, Result, shown};

/// What to do with a file that has the final name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse, and leave it.
    Keep,
    /// Put the new file in its place.
    Replace,
}

/// A file in the making.
#[derive(Debug)]
pub struct Unpublished {
    place: Place,
    target: PathBuf,
    folder: PathBuf,
    existing: Existing,
}

#[derive(Debug)]
enum Place {
    Nameless(File),
    Named(NamedTempFile),
}

impl Unpublished {
    /// Begins a file that is to be called `target`.
    ///
    /// # Errors
    /// The target exists and is to be kept or is no regular file, has no file name, or its folder cannot be written.
    pub fn create(target: &Path, existing: Existing) -> Result<Self> {
        refuse_existing(target, existing)?;
        let folder = folder_of(target).to_owned();
        if target.file_name().is_none() {
            let text = format!("{} is no file name", shown(target));
            return Err(Error::new(Kind::Usage, text).hint("name the file to make"));
        }
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o644)
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(&folder);
        let place = match nameless {
            Ok(file) => Place::Nameless(file),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR | nix::libc::EINVAL)
                ) =>
            {
                let named = tempfile::Builder::new()
                    .prefix(".mt-image-")
                    .permissions(Permissions::from_mode(0o644))
                    .tempfile_in(&folder)
                    .map_err(|error| Error::io("create a file in", &folder, error))?;
                Place::Named(named)
            }
            Err(error) => return Err(Error::input("create a file in", &folder, error)),
        };
        Ok(Self {
            place,
            target: target.to_owned(),
            folder,
            existing,
        })
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        match &self.place {
            Place::Nameless(file) => file,
            Place::Named(named) => named.as_file(),
        }
    }

    /// Takes from group and others what they may not do with the file that this one is made from: a disk's content is no
    /// less secret for being in another form.
    ///
    /// # Errors
    /// The permissions cannot be read or set.
    pub fn restrict_as(&self, input: &Path) -> Result<()> {
        let theirs = input
            .metadata()
            .map_err(|error| Error::io("examine", input, error))?;
        let failed = |error| Error::io("set the permissions of", &self.target, error);
        let ours = self.file().metadata().map_err(failed)?.permissions().mode();
        let restricted = Permissions::from_mode(ours & (theirs.permissions().mode() | 0o600) & 0o777);
        self.file().set_permissions(restricted).map_err(failed)
    }

    /// The final name.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// Syncing or linking failed, or the name was taken meanwhile; the file is gone then.
    pub fn publish(self) -> Result<()> {
        self.file()
            .sync_all()
            .map_err(|error| Error::io("write out", &self.target, error))?;
        match self.place {
            Place::Nameless(file) => link(&file, &self.target, &self.folder, self.existing)?,
            Place::Named(named) => {
                let result = match self.existing {
                    Existing::Keep => named.persist_noclobber(&self.target),
                    Existing::Replace => named.persist(&self.target),
                };
                result.map_err(|error| Error::io("name the new file", &self.target, error.error))?;
            }
        }
        let folder = File::open(&self.folder).map_err(|error| Error::io("open", &self.folder, error))?;
        folder
            .sync_all()
            .map_err(|error| Error::io("write out", &self.folder, error))
    }
}

/// Refuses when `target` exists and is to be kept, or is anything but a regular file: a new file would take the name of a
/// device, and its node would be gone. For a check before hours of work.
///
/// # Errors
/// See there.
pub fn refuse_existing(target: &Path, existing: Existing) -> Result<()> {
    let found = match target.symlink_metadata() {
        Ok(found) => found,
        // The new file could not get this name either, which would show only after all the work.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidFilename => {
            return Err(Error::input("create", target, error));
        }
        Err(_) => return Ok(()),
    };
    if !found.is_file() {
        let text = format!(
            "{} exists and is no regular file; nothing was written",
            shown(target)
        );
        return Err(Error::new(Kind::Refused, text).hint("choose another name for the new file"));
    }
    if existing == Existing::Keep {
        return Err(Error::new(
            Kind::Refused,
            format!("{} exists already; nothing was written", shown(target)),
        )
        .hint("remove it, choose another name, or give --force"));
    }
    Ok(())
}

/// Refuses unless the folder that `target` is to be in is there: a misspelt path would otherwise become a folder.
///
/// # Errors
/// See there.
pub fn refuse_no_folder_for(target: &Path) -> Result<()> {
    let folder = folder_of(target);
    match folder.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::input(
            "create a file in",
            folder,
            std::io::ErrorKind::NotADirectory.into(),
        )),
        Err(error) => Err(Error::input("create a file in", folder, error)),
    }
}

/// The folder of a file that is named on the command line.
#[must_use]
pub fn folder_of(target: &Path) -> &Path {
    target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Refuses to put a file in the place of what it is made from, `--force` or not.
///
/// # Errors
/// See there.
pub fn refuse_same(input: &Path, output: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    if let (Ok(one), Ok(other)) = (input.metadata(), output.metadata())
        && (one.dev(), one.ino()) == (other.dev(), other.ino())
    {
        let which = if input == output {
            "what is to be read".to_owned()
        } else {
            format!("the same file as {}, which is to be read", shown(input))
        };
        let text = format!("{} is {which}; nothing was written", shown(output));
        return Err(Error::new(Kind::Refused, text).hint("choose another name for the new file"));
    }
    Ok(())
}

fn link(file: &File, target: &Path, folder: &Path, existing: Existing) -> Result<()> {
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let link_to = |name: &Path| linkat(AT_FDCWD, &source, AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW);
    match (link_to(target), existing) {
        (Ok(()), _) => Ok(()),
        (Err(nix::errno::Errno::EEXIST), Existing::Replace) => {
            // A link cannot replace; a rename can. The interim name exists only between these two calls.
            let interim = folder.join(format!(".mt-image-{}", std::process::id()));
            link_to(&interim).map_err(|errno| Error::io("name the new file", &interim, errno.into()))?;
            std::fs::rename(&interim, target).map_err(|error| {
                let _ = std::fs::remove_file(&interim);
                Error::io("replace", target, error)
            })
        }
        (Err(nix::errno::Errno::EEXIST), Existing::Keep) => Err(Error::new(
            Kind::Refused,
            format!("{} appeared meanwhile; it was left as it is", shown(target)),
        )),
        (Err(errno), _) => Err(Error::io("name the new file", target, errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn nothing_is_seen_before_publish() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("with space\nand newline");
        let new = Unpublished::create(&target, Existing::Keep).unwrap();
        new.file().write_all(b"whole").unwrap();
        assert!(names(folder.path()).is_empty());
        new.publish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[test]
    fn what_was_not_for_everybody_does_not_become_so() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("input");
        std::fs::write(&input, "").unwrap();
        for (mode, expected) in [(0o600, 0o600), (0o640, 0o640), (0o666, 0o644), (0o400, 0o600)] {
            std::fs::set_permissions(&input, Permissions::from_mode(mode)).unwrap();
            let target = folder.path().join(format!("{mode:o}"));
            let new = Unpublished::create(&target, Existing::Keep).unwrap();
            new.file().set_permissions(Permissions::from_mode(0o644)).unwrap();
            new.restrict_as(&input).unwrap();
            new.publish().unwrap();
            let found = target.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(found, expected, "{mode:o}");
        }
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(Unpublished::create(&folder.path().join("x"), Existing::Keep).unwrap());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn existing_files_are_kept_or_replaced_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        std::fs::write(&target, "old").unwrap();
        let refused = Unpublished::create(&target, Existing::Keep).unwrap_err();
        assert_eq!(refused.kind, Kind::Refused);
        let new = Unpublished::create(&target, Existing::Replace).unwrap();
        new.file().write_all(b"new").unwrap();
        new.publish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn a_name_that_no_file_can_have_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let refused = Unpublished::create(&folder.path().join("x".repeat(256)), Existing::Keep).unwrap_err();
        assert_eq!(refused.kind, Kind::Usage);
        assert!(refused.next_step().unwrap().contains("shorter"), "{refused}");
    }

    #[test]
    fn a_name_taken_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        let new = Unpublished::create(&target, Existing::Keep).unwrap();
        std::fs::write(&target, "theirs").unwrap();
        assert_eq!(new.publish().unwrap_err().kind, Kind::Refused);
        assert_eq!(std::fs::read(&target).unwrap(), b"theirs");
    }
}
