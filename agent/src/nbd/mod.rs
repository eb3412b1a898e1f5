//! A small NBD server, so that any program that reads disks (QEMU, `qemu-img`, `nbdcopy`) can look at a recovery point
//! while nothing of the target disks changes.
//!
//! [`connection`] is the protocol without I/O: bytes in, bytes and requests out. It speaks the fixed newstyle handshake
//! and simple replies (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>), without TLS: the
//! socket is a Unix socket that only its owner may open. [`overlay`] takes writes that are thrown away at the end, for a
//! machine that is booted from a point to be tested. [`serve`] is the edge.

pub mod connection;
pub mod overlay;
pub mod serve;

use std::io;

/// Something that can be exported. Its methods block on disks.
pub trait Export: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Whether [`Self::write`] may be called.
    fn writable(&self) -> bool;

    /// Fills `buffer` from `offset`; both lie inside the export.
    ///
    /// # Errors
    /// When what is exported cannot be read, or is damaged.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `content` at `offset`; both lie inside the export.
    ///
    /// # Errors
    /// When it cannot be written, or may not be.
    fn write(&self, offset: u64, content: &[u8]) -> io::Result<()>;
}
