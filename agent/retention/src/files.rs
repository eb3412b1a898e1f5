//! A folder as storage: the only module of this crate that knows paths.
//!
//! Files are read and written with direct I/O where the file system has it: the log is written once and seldom read, and the
//! page cache would only take memory from others and put off write errors. A lock on the folder keeps a second
//! process out for as long as the value lives.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use crate::codec::{u64_of, usize_of};
use crate::storage::{ObjectName, Storage, StorageError, StorageOp};
use crate::types::BLOCK_SIZE;

/// Name of the lock file.
const LOCK: &str = "LOCK";
/// Most files held open.
const OPEN_MAX: usize = 64;
/// Bytes moved per system call.
const TRANSFER_BYTES: usize = 1 << 20;

/// A folder of segments and superblocks.
#[derive(Debug)]
pub struct FileStorage {
    folder: PathBuf,
    dir: File,
    _lock: File,
    open: RefCell<BTreeMap<ObjectName, File>>,
    buffer: RefCell<Aligned>,
}

/// Memory whose used part begins where direct I/O wants it, without `unsafe`: the spare block in front is skipped.
#[derive(Debug)]
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; TRANSFER_BYTES + BLOCK_SIZE];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
        // The allocator may refuse to tell; then transfers fall back to what the kernel says about them.
        let start = if start <= BLOCK_SIZE { start } else { 0 };
        Self { bytes, start }
    }

    fn part(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
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
            _lock: lock,
            open: RefCell::default(),
            buffer: RefCell::new(Aligned::new()),
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, object: ObjectName) -> PathBuf {
        self.folder.join(object.to_string())
    }

    fn with<T>(&self, object: ObjectName, call: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let mut open = self.open.borrow_mut();
        if !open.contains_key(&object) {
            if open.len() >= OPEN_MAX {
                open.clear();
            }
            open.insert(object, open_file(&self.path(object), false)?);
        }
        match open.get(&object) {
            Some(file) => call(file),
            None => Err(io::Error::other("the file was closed")),
        }
    }
}

fn open_file(path: &Path, create: bool) -> io::Result<File> {
    let open = |direct| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(create)
            .custom_flags(direct)
            .open(path)
    };
    match open(libc::O_DIRECT) {
        // How a file system says that it has no direct I/O; some have created the file by then.
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
            if create && path.exists() {
                std::fs::remove_file(path)?;
            }
            open(0)
        }
        result => result,
    }
}

/// Calls `each` with the parts, gathered into buffers of at most [`TRANSFER_BYTES`].
fn gather(
    buffer: &mut Aligned,
    parts: &[&[u8]],
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut filled = 0;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let take = rest.len().min(TRANSFER_BYTES - filled);
            buffer.part(TRANSFER_BYTES)[filled..filled + take].copy_from_slice(&rest[..take]);
            filled += take;
            rest = &rest[take..];
            if filled == TRANSFER_BYTES {
                each(buffer.part(filled))?;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        each(buffer.part(filled))?;
    }
    Ok(())
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
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                if let Some(object) = entry.file_name().to_str().and_then(ObjectName::parse) {
                    objects.push((object, entry.metadata()?.len()));
                }
            }
            Ok(objects)
        };
        list().map_err(failed(StorageOp::List, ObjectName::Super(0), 0))
    }

    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let create = || -> io::Result<File> {
            let file = open_file(&self.path(object), true)?;
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
        self.open.borrow_mut().insert(object, file);
        Ok(())
    }

    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
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
            let mut at = offset;
            gather(&mut buffer, parts, |piece| {
                file.write_all_at(piece, at)?;
                at += u64_of(piece.len());
                Ok(())
            })
        })
        .map_err(failed(StorageOp::Write, object, offset))
    }

    fn sync(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.with(object, File::sync_data)
            .map_err(failed(StorageOp::Sync, object, 0))
    }

    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        self.with(object, |file| file.set_len(len))
            .map_err(failed(StorageOp::Cut, object, len))
    }

    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.open.borrow_mut().remove(&object);
        std::fs::remove_file(self.path(object)).map_err(failed(StorageOp::Remove, object, 0))
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        self.dir
            .sync_all()
            .map_err(failed(StorageOp::SyncDir, ObjectName::Super(0), 0))
    }
}

const _: () = assert!(TRANSFER_BYTES.is_multiple_of(BLOCK_SIZE));

/// Most bytes that a folder's volume can still take, for a forecast.
///
/// # Errors
/// When the file system does not answer.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(folder)?;
    Ok(u64_of(usize_of(stat.blocks_available())) * stat.fragment_size())
}
