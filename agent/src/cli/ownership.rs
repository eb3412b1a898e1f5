//! Whose the folders of the service are: of the user that it runs as, which root must not fill with files of its own.

use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;

use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// Goes on as the owner of a folder, for good, where this is root and the folder another's. What is made in it is then its
/// owner's, and no link that lies in it leads to where only root may write. Without the folder nothing changes: the service's
/// manager gives a folder to its user that it finds in another's hands.
///
/// # Errors
/// When the folder cannot be looked at, or the system refuses.
pub fn become_owner_of(folder: &Path) -> io::Result<()> {
    let owner = match folder.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// Gives a folder that root has made, and that holds nothing, to the user that serves a socket.
///
/// # Errors
/// When one of them cannot be looked at, or the folder cannot be given.
pub fn give_to_server_of(socket: &Path, folder: &Path) -> io::Result<()> {
    let (server, found) = (socket.symlink_metadata()?, folder.symlink_metadata()?);
    let empty = found.is_dir() && std::fs::read_dir(folder)?.next().is_none();
    if !geteuid().is_root() || server.uid() == 0 || found.uid() != 0 || !empty {
        return Ok(());
    }
    lchown(folder, Some(server.uid()), Some(server.gid()))
}
