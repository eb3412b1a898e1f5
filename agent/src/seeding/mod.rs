//! Seeding and verifying, without I/O: two state machines that are told events and answer with actions.
//!
//! Both sides walk their disk in regions of 1 MiB, in the same order and at most a window apart. The target announces
//! what each region holds; the source compares it with its own, asks for detail where a block differs, and sends only
//! what differs. A region is *settled* when the source said it is done and every write for it has come back. The
//! durable mark is the end of the settled prefix at the time of a flush, stored after that flush and acknowledged
//! after it was stored:
//!
//! 1. writes of the region are complete,
//! 2. the disk is flushed,
//! 3. the mark is stored (and synced) in the target's state,
//! 4. `Durable` goes to the source, which stores it too.
//!
//! A crash between any two leaves a mark that is too old, never one that is too new; what lies behind the mark is
//! compared again, which costs reading and no data.
//!
//! The machines own no buffer and know no disk. Payloads pass through them as an opaque value, so the same code runs
//! above a socket and in a test that keeps everything in memory.

pub mod differences;
pub mod digest;
pub mod source;
pub mod target;

#[cfg(test)]
mod tests;

use mt_wire::limits::REGION_SIZE;

/// Length of the region at `offset` on a disk of `size` bytes.
pub fn region_len(offset: u64, size: u64) -> u64 {
    REGION_SIZE.min(size.saturating_sub(offset))
}
