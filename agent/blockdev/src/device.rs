//! One open disk, or a regular file standing in for one.
//!
//! [`BlockDevice`] moves bytes: reads and writes at an offset, zeros, flush. It does not judge whether the
//! disk may be written: whoever opens one has to know. What it does promise:
//!
//! - Nothing outside `0..size()` is read or written; a regular file never grows.
//! - A transfer is whole or an error; interruptions and short transfers are handled here.
//! - Zeros are zeros: never a discard, whose result is up to the device.
//! - A failed flush latches. The kernel reports a lost write once and then forgets it, so a second flush
//!   that succeeds says nothing about the first one's data. After a failed flush every later flush and write
//!   of this value fails with [`DeviceError::is_latched`]; only a new open, and a resync, start afresh.
//!   Flushes are serialised for the same reason: of two at once on one descriptor only one is told.
//!
//! I/O is direct (`O_DIRECT`): no second copy in the page cache, and a write error arrives with the write.
//! Direct I/O wants offset, length and address aligned to the logical block. Reads and addresses that are
//! not are copied through an aligned buffer; a *write* whose offset or length is not is refused, since
//! completing it would need to read and write back neighbours that someone else may be writing.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::libc;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, fdatasync, lseek64};

use crate::buffer::AlignedBuf;
use crate::ioctl;

mod error;
mod stamp;
pub use error::{DeviceError, DeviceOp};
pub use stamp::Stamp;

/// Logical and physical block size given to regular files, bytes; a lab disk may be told otherwise above.
const FILE_BLOCK_SIZE: u32 = 512;
/// Bytes per system call where this module splits a transfer itself.
const BOUNCE_BYTES: usize = 1 << 20;
/// Bytes per BLKZEROOUT: the call cannot be interrupted, so a disk that is slow at it must not hold a
/// thread for hours.
const ZERO_BYTES_PER_CALL: u64 = 1 << 30;
/// Most bytes one read or write moves in the kernel (`MAX_RW_COUNT`), rounded to whole mebibytes so that what
/// follows is still aligned.
const TRANSFER_BYTES_MAX: usize = 0x7ff0_0000;

/// What an open device is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// How to open a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Reads, or reads and writes.
    pub access: Access,
    /// Keep others out: `O_EXCL` on a block device, which fails while the disk, a partition of it or
    /// anything stacked on it is in use and keeps mounts and other exclusive opens away while it is held;
    /// on a regular file an exclusive `flock`, which keeps out others that ask for it, as every agent does.
    /// Neither keeps a plain open of another root process out.
    pub exclusive: bool,
}

/// How a range was made zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMethod {
    /// BLKZEROOUT: the device's own command, or zeros written by the kernel.
    BlkZeroOut,
    /// `fallocate` with `ZERO_RANGE`.
    ZeroRange,
    /// `fallocate` with `PUNCH_HOLE`; a hole of a regular file always reads as zeros.
    PunchHole,
    /// Zeros written from a buffer.
    Written,
}

/// An open block device or regular file. All methods take `&self` and may be called from several threads.
#[derive(Debug)]
pub struct BlockDevice {
    file: File,
    path: PathBuf,
    access: Access,
    direct: bool,
    size: u64,
    logical_block_size: u32,
    physical_block_size: u32,
    rdev: Option<u64>,
    read_only: bool,
    /// Serialises flushes; see the module documentation.
    flushing: Mutex<()>,
    /// The error number of the first flush that failed.
    flush_failed: OnceLock<i32>,
}

impl BlockDevice {
    /// Opens a block device or a regular file. Size and block sizes are read once, here.
    ///
    /// # Errors
    /// When the path cannot be opened (with `exclusive`: `EBUSY` for a block device in use, `WouldBlock`
    /// for a locked file), is neither block device nor regular file, changed kind while it was being
    /// opened, or does not tell its size.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, DeviceError> {
        let fail = |op, source| DeviceError::new(op, path, source);
        // Look before opening: opening a FIFO or a terminal has effects of its own.
        let before = std::fs::metadata(path).map_err(|err| fail(DeviceOp::Open, err))?;
        let is_block = before.file_type().is_block_device();
        if !is_block && !before.is_file() {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a block device nor a regular file",
            );
            return Err(fail(DeviceOp::Open, source));
        }
        let exclusive = if options.exclusive && is_block {
            libc::O_EXCL
        } else {
            0
        };
        let open = |direct: libc::c_int| {
            std::fs::OpenOptions::new()
                .read(true)
                .write(options.access == Access::ReadWrite)
                .custom_flags(exclusive | direct | libc::O_NOCTTY | libc::O_NONBLOCK)
                .open(path)
        };
        // EINVAL is how a file system says that it has no direct I/O; a block device always has.
        let (mut file, mut direct) = match open(libc::O_DIRECT) {
            Ok(file) => (file, true),
            Err(err) if !is_block && err.raw_os_error() == Some(libc::EINVAL) => {
                (open(0).map_err(|err| fail(DeviceOp::Open, err))?, false)
            }
            Err(err) => return Err(fail(DeviceOp::Open, err)),
        };
        let meta = file.metadata().map_err(|err| fail(DeviceOp::Inspect, err))?;
        if meta.file_type() != before.file_type() || meta.rdev() != before.rdev() {
            return Err(fail(
                DeviceOp::Open,
                io::Error::other("it became another file while it was being opened"),
            ));
        }
        if is_block {
            return Self::of_open(file, path, options.access, direct);
        }
        if direct && !direct_io_fits(&file, meta.len()) {
            file = open(0).map_err(|err| fail(DeviceOp::Open, err))?;
            direct = false;
        }
        if options.exclusive {
            file.try_lock().map_err(|err| match err {
                TryLockError::WouldBlock => fail(
                    DeviceOp::Lock,
                    io::Error::new(io::ErrorKind::WouldBlock, "another process holds its lock"),
                ),
                TryLockError::Error(err) => fail(DeviceOp::Lock, err),
            })?;
        }
        Self::of_open(file, path, options.access, direct)
    }

    /// Takes a device that another process opened and passed on (unix(7), `SCM_RIGHTS`): access, exclusivity and whether
    /// I/O is direct are those of the open file. `path` is what it was opened by, for messages.
    ///
    /// # Errors
    /// When it is neither block device nor regular file, can only be written, or does not tell its size.
    pub fn received(file: File, path: &Path) -> Result<Self, DeviceError> {
        let fail = |op, source| DeviceError::new(op, path, source);
        let kind = file
            .metadata()
            .map_err(|err| fail(DeviceOp::Inspect, err))?
            .file_type();
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|errno| fail(DeviceOp::Inspect, errno.into()))?;
        let access = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => Some(Access::ReadOnly),
            libc::O_RDWR => Some(Access::ReadWrite),
            _ => None,
        };
        match access {
            Some(access) if kind.is_block_device() || kind.is_file() => {
                Self::of_open(file, path, access, flags & libc::O_DIRECT != 0)
            }
            _ => {
                let text = "what was passed on is no open block device or regular file that can be read";
                Err(fail(
                    DeviceOp::Open,
                    io::Error::new(io::ErrorKind::InvalidInput, text),
                ))
            }
        }
    }

    /// An open block device or regular file, with its sizes as they are now.
    fn of_open(file: File, path: &Path, access: Access, direct: bool) -> Result<Self, DeviceError> {
        let fail = |source| DeviceError::new(DeviceOp::Inspect, path, source);
        let inspect = |errno: Errno| fail(errno.into());
        let meta = file.metadata().map_err(fail)?;
        let is_block = meta.file_type().is_block_device();
        let (size, logical_block_size, physical_block_size, read_only) = if is_block {
            (
                ioctl::size_bytes(&file).map_err(inspect)?,
                ioctl::logical_block_size(&file).map_err(inspect)?,
                ioctl::physical_block_size(&file).map_err(inspect)?,
                ioctl::read_only(&file).map_err(inspect)?,
            )
        } else {
            (meta.len(), FILE_BLOCK_SIZE, FILE_BLOCK_SIZE, false)
        };
        Ok(Self {
            size,
            logical_block_size,
            physical_block_size,
            read_only,
            rdev: is_block.then(|| meta.rdev()),
            file,
            path: path.to_owned(),
            access,
            direct,
            flushing: Mutex::new(()),
            flush_failed: OnceLock::new(),
        })
    }

    /// Size when it was opened, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Smallest unit of a write, bytes; 512 for a regular file.
    #[must_use]
    pub fn logical_block_size(&self) -> u32 {
        self.logical_block_size
    }

    /// Smallest unit written without reading first, bytes; 512 for a regular file.
    #[must_use]
    pub fn physical_block_size(&self) -> u32 {
        self.physical_block_size
    }

    /// Whether it is a block device; else it is a regular file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.rdev.is_some()
    }

    /// Whether the kernel held the device read-only when it was opened.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device number of the block device; `None` for a regular file.
    #[must_use]
    pub fn rdev(&self) -> Option<u64> {
        self.rdev
    }

    /// Whether I/O bypasses the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether an earlier flush failed, so that nothing is written any more.
    #[must_use]
    pub fn is_latched(&self) -> bool {
        self.flush_failed.get().is_some()
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the range is not inside the device, or a read fails: then `buf` holds nothing of use.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        let fail =
            |source| DeviceError::ranged(DeviceOp::Read, &self.path, offset, len_u64(buf.len()), source);
        self.check_range(offset, len_u64(buf.len())).map_err(fail)?;
        if self.is_aligned(buf.as_ptr(), buf.len(), offset) {
            return self.read_all(buf, offset).map_err(|source| {
                DeviceError::ranged(DeviceOp::Read, &self.path, offset, len_u64(buf.len()), source)
            });
        }
        self.read_through_bounce(buf, offset).map_err(|source| {
            DeviceError::ranged(DeviceOp::Read, &self.path, offset, len_u64(buf.len()), source)
        })
    }

    /// Writes all of `buf` at `offset`. Durable only after [`Self::flush`].
    ///
    /// # Errors
    /// When an earlier flush failed, the range is not inside the device, offset or length are not whole
    /// logical blocks where I/O is direct, or a write fails: then any part of the range may have been written.
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError> {
        let len = len_u64(buf.len());
        let fail = |source| DeviceError::ranged(DeviceOp::Write, &self.path, offset, len, source);
        self.check_not_latched(DeviceOp::Write, Some((offset, len)))?;
        self.check_writable(offset, len).map_err(fail)?;
        if self.is_aligned(buf.as_ptr(), buf.len(), offset) {
            return self.write_all(buf, offset).map_err(fail);
        }
        // Only the address is out of line: `check_writable` has seen to offset and length.
        let mut bounce = AlignedBuf::zeroed(buf.len().min(BOUNCE_BYTES));
        let mut at = offset;
        for piece in buf.chunks(BOUNCE_BYTES) {
            bounce[..piece.len()].copy_from_slice(piece);
            self.write_all(&bounce[..piece.len()], at).map_err(fail)?;
            at += len_u64(piece.len());
        }
        Ok(())
    }

    /// Makes a range read as zeros, by the cheapest way that guarantees it. Durable only after [`Self::flush`].
    ///
    /// # Errors
    /// As for [`Self::write_all_at`].
    pub fn zero_range(&self, offset: u64, len: u64) -> Result<ZeroMethod, DeviceError> {
        let fail = |source| DeviceError::ranged(DeviceOp::Zero, &self.path, offset, len, source);
        self.check_not_latched(DeviceOp::Zero, Some((offset, len)))?;
        self.check_writable(offset, len).map_err(fail)?;
        if len == 0 {
            return Ok(ZeroMethod::Written);
        }
        match self.zero_fast(offset, len) {
            Ok(method) => return Ok(method),
            // The kernel or the file system cannot do it here: write zeros.
            Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS) => {}
            Err(errno) => return Err(fail(errno.into())),
        }
        let zeros = AlignedBuf::zeroed(usize::try_from(len).unwrap_or(BOUNCE_BYTES).min(BOUNCE_BYTES));
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let piece = usize::try_from(end - at)
                .unwrap_or(BOUNCE_BYTES)
                .min(BOUNCE_BYTES);
            self.write_all(&zeros[..piece], at).map_err(fail)?;
            at += len_u64(piece);
        }
        Ok(ZeroMethod::Written)
    }

    fn zero_fast(&self, offset: u64, len: u64) -> Result<ZeroMethod, Errno> {
        if self.is_block_device() {
            let mut at = offset;
            let end = offset + len;
            while at < end {
                let piece = (end - at).min(ZERO_BYTES_PER_CALL);
                retry(|| ioctl::zero_out(&self.file, at, piece))?;
                at += piece;
            }
            return Ok(ZeroMethod::BlkZeroOut);
        }
        // `check_writable` has bounded both by the size of a file, which is an i64 itself.
        let start = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let count = i64::try_from(len).map_err(|_| Errno::EINVAL)?;
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match retry(|| {
            fallocate(
                &self.file,
                keep | FallocateFlags::FALLOC_FL_ZERO_RANGE,
                start,
                count,
            )
        }) {
            Ok(()) => Ok(ZeroMethod::ZeroRange),
            Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
                retry(|| {
                    fallocate(
                        &self.file,
                        keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE,
                        start,
                        count,
                    )
                })?;
                Ok(ZeroMethod::PunchHole)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Makes everything written so far durable (`fdatasync`, which also flushes the device's write cache).
    ///
    /// # Errors
    /// When it fails; from then on it always fails, see the module documentation.
    pub fn flush(&self) -> Result<(), DeviceError> {
        // The lock guards no data, so a thread that panicked holding it left nothing broken.
        let _one_at_a_time = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_not_latched(DeviceOp::Flush, None)?;
        match retry(|| fdatasync(&self.file)) {
            Ok(()) => Ok(()),
            Err(errno) => {
                // Only ever set under the lock; a value already there would be the older one, and stays.
                let _ = self.flush_failed.set(errno as i32);
                Err(DeviceError::new(DeviceOp::Flush, &self.path, errno.into()))
            }
        }
    }

    /// The next byte at or after `offset` that may hold data; everything before it is zero. `None` when only zeros follow.
    /// Regular files know their holes (`lseek`, `SEEK_DATA`); a block device is all data.
    ///
    /// Where the data ends is not asked for: `SEEK_HOLE` walks through all of it, and a caller that goes through a file
    /// piece by piece would have it walked again for each.
    ///
    /// # Errors
    /// When the file system fails to answer.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>, DeviceError> {
        if offset >= self.size {
            return Ok(None);
        }
        if self.is_block_device() {
            return Ok(Some(offset));
        }
        let fail = |errno: Errno| {
            DeviceError::ranged(
                DeviceOp::Seek,
                &self.path,
                offset,
                self.size - offset,
                errno.into(),
            )
        };
        let at = i64::try_from(offset).map_err(|_| fail(Errno::EINVAL))?;
        // The file offset this moves is used by nothing else: all I/O names its own.
        let start = match lseek64(&self.file, at, Whence::SeekData) {
            Ok(start) => u64::try_from(start).map_err(|_| fail(Errno::ERANGE))?,
            Err(Errno::ENXIO) => return Ok(None),
            Err(Errno::EINVAL) => return Ok(Some(offset)),
            Err(errno) => return Err(fail(errno)),
        };
        Ok((start < self.size).then(|| start.max(offset)))
    }

    fn check_not_latched(&self, op: DeviceOp, range: Option<(u64, u64)>) -> Result<(), DeviceError> {
        match self.flush_failed.get() {
            None => Ok(()),
            Some(errno) => Err(DeviceError::latched(op, &self.path, range, *errno)),
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let text = format!("the range is outside the device, which has {} bytes", self.size);
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    fn check_writable(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        if self.access == Access::ReadOnly {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it was opened for reading only",
            ));
        }
        let block = u64::from(self.logical_block_size);
        if self.direct && (!offset.is_multiple_of(block) || !len.is_multiple_of(block)) {
            let text = format!("offset or length is not a multiple of the logical block of {block} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }

    /// Whether the kernel takes this transfer as it is.
    fn is_aligned(&self, address: *const u8, len: usize, offset: u64) -> bool {
        let block = u64::from(self.logical_block_size);
        !self.direct
            || (len_u64(address.addr()).is_multiple_of(block)
                && len_u64(len).is_multiple_of(block)
                && offset.is_multiple_of(block))
    }

    fn read_all(&self, mut buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = file_offset(offset)?;
        while !buf.is_empty() {
            let want = buf.len().min(TRANSFER_BYTES_MAX);
            match retry(|| pread(&self.file, &mut buf[..want], at))? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the device ended early",
                    ));
                }
                count => {
                    buf = &mut buf[count..];
                    at = advance(at, count)?;
                }
            }
        }
        Ok(())
    }

    fn write_all(&self, mut buf: &[u8], offset: u64) -> io::Result<()> {
        let mut at = file_offset(offset)?;
        while !buf.is_empty() {
            let want = buf.len().min(TRANSFER_BYTES_MAX);
            match retry(|| pwrite(&self.file, &buf[..want], at))? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::WriteZero,
                        "the device took no more bytes",
                    ));
                }
                count => {
                    buf = &buf[count..];
                    at = advance(at, count)?;
                }
            }
        }
        Ok(())
    }

    /// Reads whole blocks around the range into an aligned buffer and copies the range out.
    fn read_through_bounce(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let block = u64::from(self.logical_block_size);
        let mut bounce = AlignedBuf::zeroed(BOUNCE_BYTES);
        let mut done = 0_usize;
        while done < buf.len() {
            let at = offset + len_u64(done);
            let start = at - at % block;
            let skip = usize::try_from(at - start).map_err(io::Error::other)?;
            let want = (BOUNCE_BYTES - skip).min(buf.len() - done);
            let end = (at + len_u64(want)).next_multiple_of(block).min(self.size);
            let span = usize::try_from(end - start).map_err(io::Error::other)?;
            self.read_all(&mut bounce[..span], start)?;
            buf[done..done + want].copy_from_slice(&bounce[skip..skip + want]);
            done += want;
        }
        Ok(())
    }
}

impl AsFd for BlockDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether direct I/O in units of [`FILE_BLOCK_SIZE`] works on all of an open regular file.
fn direct_io_fits(file: &File, size: u64) -> bool {
    let block = FILE_BLOCK_SIZE;
    if size == 0 || !size.is_multiple_of(u64::from(block)) {
        return false;
    }
    match ioctl::direct_alignment(file) {
        Some(align) => align.offset != 0 && align.offset <= block && align.memory <= block,
        // The file system does not tell: see whether it takes a read that is aligned to 512 and to no more.
        None => {
            let mut probe = AlignedBuf::zeroed(1024);
            let at = i64::from(if size >= 1024 { block } else { 0 });
            retry(|| pread(file, &mut probe[512..], at)).is_ok()
        }
    }
}

/// Repeats a call while a signal interrupts it.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// A length as the kernel counts; `usize` has at most 64 bits on every target of this crate.
fn len_u64(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}

fn file_offset(offset: u64) -> io::Result<i64> {
    i64::try_from(offset)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "offset is beyond what files have"))
}

fn advance(at: i64, count: usize) -> io::Result<i64> {
    i64::try_from(count)
        .ok()
        .and_then(|count| at.checked_add(count))
        .ok_or_else(|| io::Error::other("offset overflow"))
}

#[cfg(test)]
mod tests;
