//! Takes the path of the local socket, and gives it back.
//!
//! Two agents on one path must not push each other out, and nothing that is not a dead socket may be removed:
//!
//! 1. `PATH.lock` is locked, as long as the agent lives; who has it decides about the path.
//! 2. What is at the path is looked at without following links. A socket that nobody answers on is removed; a socket
//!    that answers, and everything that is no socket, is refused.
//! 3. The new socket is bound as `PATH.new`, gets its mode and group, and is renamed to its place. A crash in between
//!    leaves a name that the next agent removes under the lock.

use std::fs::{
    DirBuilder, File, OpenOptions, Permissions, TryLockError, remove_file, rename, set_permissions,
};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;
use nix::unistd::Gid;

use crate::error::{ExitCode, Explain};

/// Why there is no local socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent has it.
    #[error("cannot serve the local socket {path}: another agent does")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("cannot serve the local socket {path}: there is {found} in its place, which is left alone")]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The system refused.
    #[error("cannot {attempt} {path}: {source}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Explain for SocketError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::InUse { .. } => "stop it, or give this one its own [agent] socket",
                Self::Occupied { .. } => "move it away, or choose another path with [agent] socket",
                Self::Io { .. } => "check [agent] socket, and the owner and mode of its folder",
            }
            .to_owned(),
        )
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::InUse { .. } | Self::Io { .. } => ExitCode::Unexpected,
            Self::Occupied { .. } => ExitCode::Refused,
        }
    }
}

/// The listening socket. Dropping it removes the path.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of what we bound.
    bound: (u64, u64),
    /// Locked as long as this lives.
    _lock: File,
}

impl LocalSocket {
    /// Takes the path. With a group its members can connect, else only the owner.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, group: Option<Gid>) -> Result<Self, SocketError> {
        let io = |attempt, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io {
                attempt,
                path,
                source,
            }
        };
        if let Some(folder) = path.parent() {
            // On an appliance systemd has made it (RuntimeDirectory=).
            let made = DirBuilder::new().mode(0o755).create(folder);
            match made {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(io("make the folder", folder)(error));
                }
                _ => {}
            }
        }
        let lock = lock(path)?;
        clear_place(path)?;
        let new = with_suffix(path, ".new");
        clear_place(&new)?;
        let listener = UnixListener::bind(&new).map_err(io("bind the socket", &new))?;
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        set_permissions(&new, Permissions::from_mode(mode)).map_err(io("set the mode of", &new))?;
        if let Some(group) = group {
            chown(&new, None, Some(group.as_raw())).map_err(io("set the group of", &new))?;
        }
        let meta = new.symlink_metadata().map_err(io("look at", &new))?;
        rename(&new, path).map_err(io("move the new socket to", path))?;
        listener.set_nonblocking(true).map_err(io("set up", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            bound: (meta.dev(), meta.ino()),
            _lock: lock,
        })
    }

    /// A second handle on the listening socket, for the runtime.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // The lock is still held: nobody puts a socket of his own here between the look and the removal.
        let ours = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == self.bound;
        if self.path.symlink_metadata().is_ok_and(ours)
            && let Err(error) = remove_file(&self.path)
        {
            tracing::warn!("cannot remove the local socket {}: {error}", self.path.display());
        }
    }
}

fn lock(path: &Path) -> Result<File, SocketError> {
    let place = with_suffix(path, ".lock");
    let fail = |source| SocketError::Io {
        attempt: "open the lock file",
        path: place.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW);
    let file = options.open(&place).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(fail(source)),
    }
}

/// Removes a dead socket from the path, and nothing else.
fn clear_place(path: &Path) -> Result<(), SocketError> {
    let fail = |attempt, source| SocketError::Io {
        attempt,
        path: path.to_owned(),
        source,
    };
    let kind = match path.symlink_metadata() {
        Ok(meta) => meta.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("look at", error)),
    };
    if !kind.is_socket() {
        let found = match () {
            () if kind.is_symlink() => "a symbolic link",
            () if kind.is_dir() => "a folder",
            () if kind.is_file() => "a file",
            () => "a device or pipe",
        };
        return Err(SocketError::Occupied {
            path: path.to_owned(),
            found,
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            remove_file(path).map_err(|error| fail("remove the stale socket", error))
        }
        // It answers, or its queue is full: somebody lives there without our lock.
        Ok(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(fail("ask who serves", error)),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &Path) -> &'static str {
        match LocalSocket::bind(path, None) {
            Err(SocketError::Occupied { found, .. }) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_socket_is_made_and_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let socket = LocalSocket::bind(&path, Some(Gid::effective())).unwrap();
        let meta = path.symlink_metadata().unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.mode() & 0o7777, 0o660);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(path.symlink_metadata().is_err());
        let without_group = LocalSocket::bind(&path, None).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().mode() & 0o7777, 0o600);
        drop(without_group);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(
            path.symlink_metadata().is_ok(),
            "a listener that was dropped leaves its name behind"
        );
        let socket = LocalSocket::bind(&path, None).unwrap();
        assert!(matches!(
            LocalSocket::bind(&path, None),
            Err(SocketError::InUse { .. })
        ));
        UnixStream::connect(&path).expect("the first is not disturbed by the second");
        drop(socket);
        // Somebody who does not know of the lock file is not pushed out either.
        let _stranger = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            LocalSocket::bind(&path, None),
            Err(SocketError::InUse { .. })
        ));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(found(&path), "a file");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let link = folder.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(found(&link), "a symbolic link");
        let inner = folder.path().join("folder");
        std::fs::create_dir(&inner).unwrap();
        assert_eq!(found(&inner), "a folder");
        // A link in place of the lock file leads nowhere.
        let other = folder.path().join("other.sock");
        std::os::unix::fs::symlink(&path, with_suffix(&other, ".lock")).unwrap();
        assert!(matches!(
            LocalSocket::bind(&other, None),
            Err(SocketError::Io { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_another_put_in_our_place_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let socket = LocalSocket::bind(&path, None).unwrap();
        remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
