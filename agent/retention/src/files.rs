//! A folder as storage: the only module of this crate that knows paths.
//!
//! Files are read and written with direct I/O where the file system has it: the log is written once and seldom read, and the
//! page cache would only take memory from others and put off write errors. A lock on the folder keeps a second
//! process out for as long as the value lives.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::codec::{u64_of, usize_of};
use crate::storage::{ObjectName, Storage, StorageError, StorageOp};
use crate::writer::{self, Aligned, TRANSFER_BYTES, UnderWay};

/// Name of the lock file.
const LOCK: &str = "LOCK";
/// Most files held open.
const OPEN_MAX: usize = 64;

/// A folder of segments and superblocks.
#[derive(Debug)]
pub struct FileStorage {
    folder: PathBuf,
    dir: File,
    /// Held by whoever writes.
    lock: Option<File>,
    open: RefCell<BTreeMap<ObjectName, Arc<File>>>,
    under_way: Arc<UnderWay>,
    buffer: RefCell<Aligned>,
}

impl FileStorage {
    /// Opens a folder that exists, and locks it.
    ///
    /// # Errors
    /// When it is not a folder, or another process holds it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let dir = File::open(folder)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder"));
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK))?;
        lock.try_lock().map_err(|err| match err {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process holds this retention store",
            ),
            TryLockError::Error(err) => err,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            dir,
            lock: Some(lock),
            open: RefCell::default(),
            under_way: Arc::default(),
            buffer: RefCell::new(Aligned::new()),
        })
    }

    /// Opens a folder that exists for reading: nothing is created in it, nothing is locked, and another process may have it
    /// open for writing. Every write is refused; see [`Overlay`](crate::Overlay) for opening a store over it.
    ///
    /// # Errors
    /// When it is not a folder, or may not be read.
    pub fn open_read_only(folder: &Path) -> io::Result<Self> {
        let dir = File::open(folder)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder"));
        }
        Ok(Self {
            folder: folder.to_owned(),
            dir,
            lock: None,
            open: RefCell::default(),
            under_way: Arc::default(),
            buffer: RefCell::new(Aligned::new()),
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn with<T>(&self, object: ObjectName, call: impl FnOnce(&Arc<File>) -> io::Result<T>) -> io::Result<T> {
        let mut open = self.open.borrow_mut();
        if !open.contains_key(&object) {
            if open.len() >= OPEN_MAX {
                open.clear();
            }
            let how = match self.lock {
                Some(_) => How::Write,
                None => How::Read,
            };
            open.insert(object, Arc::new(open_file(&self.dir, object, how)?));
        }
        match open.get(&object) {
            Some(file) => call(file),
            None => Err(io::Error::other("the file was closed")),
        }
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // While the folder is locked: whoever opens it next must find it at rest.
        self.under_way.wait();
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Read,
    Write,
    Create,
}

/// Opens a file of the folder that was opened, wherever its path leads by now: another volume may have been mounted there.
fn open_file(dir: &File, object: ObjectName, how: How) -> io::Result<File> {
    let name = object.to_string();
    let access = match how {
        How::Read => OFlag::O_RDONLY,
        How::Write => OFlag::O_RDWR,
        How::Create => OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL,
    };
    let open = |direct| {
        openat(
            dir,
            name.as_str(),
            access | OFlag::O_CLOEXEC | direct,
            Mode::from_bits_truncate(0o600),
        )
    };
    match open(OFlag::O_DIRECT) {
        // How a file system says that it has no direct I/O; some have created the file by then.
        Err(Errno::EINVAL) => {
            if how == How::Create {
                match unlinkat(dir, name.as_str(), UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(open(OFlag::empty())?.into())
        }
        result => Ok(result?.into()),
    }
}

fn failed(op: StorageOp, object: ObjectName, offset: u64) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError {
        op,
        object,
        offset,
        source,
    }
}

impl Storage for FileStorage {
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StorageError> {
        let list = || -> io::Result<Vec<(ObjectName, u64)>> {
            let mut objects = Vec::new();
            let mut dir = Dir::openat(&self.dir, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            for entry in dir.iter() {
                let entry = entry?;
                let Some(object) = entry.file_name().to_str().ok().and_then(ObjectName::parse) else {
                    continue;
                };
                match fstatat(&self.dir, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(stat) => objects.push((object, u64::try_from(stat.st_size).unwrap_or(0))),
                    // Whoever only looks may come while its owner removes it.
                    Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(objects)
        };
        list().map_err(failed(StorageOp::List, ObjectName::Super(0), 0))
    }

    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let create = || -> io::Result<File> {
            if self.lock.is_none() {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            let file = open_file(&self.dir, object, How::Create)?;
            let bytes = i64::try_from(len).map_err(io::Error::other)?;
            loop {
                match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                    Ok(()) => break,
                    Err(Errno::EINTR) => {}
                    // Without it a write may find the volume full later; that stops the store, and loses nothing.
                    Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                        file.set_len(len)?;
                        break;
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(file)
        };
        let file = create().map_err(failed(StorageOp::Create, object, len))?;
        self.open.borrow_mut().insert(object, Arc::new(file));
        Ok(())
    }

    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.under_way.wait();
        let mut buffer = self.buffer.borrow_mut();
        self.with(object, |file| {
            let mut at = offset;
            for piece in buf.chunks_mut(TRANSFER_BYTES) {
                let aligned = buffer.part(piece.len());
                file.read_exact_at(aligned, at)?;
                piece.copy_from_slice(aligned);
                at += u64_of(piece.len());
            }
            Ok(())
        })
        .map_err(failed(StorageOp::Read, object, offset))
    }

    fn write(&mut self, object: ObjectName, offset: u64, parts: &[&[u8]]) -> Result<(), StorageError> {
        let mut buffer = self.buffer.borrow_mut();
        self.with(object, |file| {
            writer::write(&self.under_way, &mut buffer, file, object, offset, parts)
        })
        .map_err(failed(StorageOp::Write, object, offset))
    }

    fn sync(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.under_way.settle()?;
        self.with(object, |file| file.sync_data())
            .map_err(failed(StorageOp::Sync, object, 0))
    }

    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        self.under_way.settle()?;
        self.with(object, |file| file.set_len(len))
            .map_err(failed(StorageOp::Cut, object, len))
    }

    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.under_way.settle()?;
        self.open.borrow_mut().remove(&object);
        let removed = match self.lock {
            Some(_) => unlinkat(&self.dir, object.to_string().as_str(), UnlinkatFlags::NoRemoveDir)
                .map_err(io::Error::from),
            None => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        };
        removed.map_err(failed(StorageOp::Remove, object, 0))
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        self.dir
            .sync_all()
            .map_err(failed(StorageOp::SyncDir, ObjectName::Super(0), 0))
    }
}

/// Most bytes that a folder's volume can still take, for a forecast.
///
/// # Errors
/// When the file system does not answer.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(folder)?;
    Ok(u64_of(usize_of(stat.blocks_available())) * stat.fragment_size())
}
