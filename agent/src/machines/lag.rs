//! How far the disks may be behind what was acknowledged, and reading while they are.
//!
//! An epoch is acknowledged when it is in the log, and the disks follow. The next one may begin before they have caught up: what it
//! is compared with is then the disk with the log laid over it. Two limits bound the lag. What comes in waits while the log would
//! be ahead of the disks by more bytes, or its oldest epoch has waited longer; since no part of an epoch goes to a disk
//! before the whole of it is complete, a single epoch may always come in, whatever its size.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use mt_blockdev::device::BlockDevice;
use mt_retention::{DiskIndex, Newer, StoreError};

use super::error::MachineError;
use super::machine::{FileStore, Machine};
use crate::io::region::{self, Content};

/// Bytes by which the disks may be behind unless told otherwise.
pub const LAG_BYTES: u64 = 256 << 20;
/// Seconds by which they may be behind unless told otherwise.
pub const LAG_SECONDS: u64 = 10;

/// How stores are to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreSettings {
    /// Bytes by which the disks may be behind.
    pub lag_bytes: u64,
    /// Seconds by which they may be behind.
    pub lag_seconds: u64,
    /// Whether content is packed in the log where that pays.
    pub packing: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            lag_bytes: LAG_BYTES,
            lag_seconds: LAG_SECONDS,
            packing: true,
        }
    }
}

impl StoreSettings {
    /// Whether `more` bytes have to wait for the disks.
    fn holds_back(&self, store: &FileStore, more: u64, now: Timestamp) -> bool {
        let lag = store.lag_bytes();
        lag > 0
            && (lag.saturating_add(store.open_bytes()).saturating_add(more) > self.lag_bytes
                || lag_seconds(store, now) > self.lag_seconds)
    }
}

/// For how long the oldest epoch that is not on the disks has been waiting, seconds.
pub fn lag_seconds(store: &FileStore, now: Timestamp) -> u64 {
    let waited = store
        .lag_since_ms()
        .map_or(0, |since| now.as_millisecond().saturating_sub(since));
    u64::try_from(waited / 1000).unwrap_or(0)
}

impl Machine {
    /// Waits until `more` bytes may come in.
    ///
    /// # Errors
    /// When applying failed, or waits for room.
    pub(super) fn wait_for_lag(&self, more: u64) -> Result<(), MachineError> {
        self.wait_until(|store| !self.settings.holds_back(store, more, Timestamp::now()))
    }

    /// Waits until every complete epoch is on the disks.
    ///
    /// # Errors
    /// When applying failed, or waits for room.
    pub fn wait_applied(&self) -> Result<(), MachineError> {
        self.wait_until(|store| store.applied() == store.committed())
    }

    fn wait_until(&self, is_so: impl Fn(&FileStore) -> bool) -> Result<(), MachineError> {
        let mut inner = self.lock();
        loop {
            if let Some(stopped) = &inner.failed {
                return Err(stopped.error(&self.name));
            }
            let Some(store) = &inner.store else { return Ok(()) };
            if is_so(store) {
                return Ok(());
            }
            if inner.waits_for_room {
                let status = store.status();
                return Err(self.store_error(StoreError::Full {
                    used: status.used,
                    capacity: status.capacity,
                }));
            }
            inner = self.wait(inner, Duration::from_secs(1));
        }
    }

    /// Reads what a disk holds as of the newest complete epoch, whether that is on it yet or not. The open epoch is no part
    /// of it. `device` is that disk.
    ///
    /// # Errors
    /// When the log or the disk cannot be read, or the log is damaged there.
    pub fn read_newest(
        &self,
        disk: DiskIndex,
        device: &BlockDevice,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Content, MachineError> {
        // The log first: what is applied in between is on the disk then, and the same. No epoch is committed meanwhile, since the
        // session that reads is the one that would.
        let mut one_at_a_time = None;
        let mut newer = Vec::new();
        if self.lags.load(Ordering::Acquire) {
            // Where the log has something, a region at a time: what it has is held beside the buffer until the disk was read.
            let turn = self.laying.lock().unwrap_or_else(PoisonError::into_inner);
            newer = self.with_store(|store| store.newer_than_disk(disk, offset, buffer.len() as u64))?;
            one_at_a_time = (!newer.is_empty()).then_some(turn);
        }
        let found = region::read(device, offset, buffer).map_err(|source| {
            let source = std::io::Error::other(format!("{source}: {}", source.io_error()));
            self.disk_error("reading", disk, offset, source)
        })?;
        let content = lay_over(offset, buffer, found, &newer);
        drop(one_at_a_time);
        Ok(content)
    }
}

fn lay_over(offset: u64, buffer: &mut [u8], found: Content, newer: &[Newer]) -> Content {
    if newer.is_empty() {
        return found;
    }
    if found == Content::Hole {
        buffer.fill(0);
    }
    for piece in newer {
        let place = piece
            .offset
            .checked_sub(offset)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| buffer.get_mut(start..start + piece.content.len()));
        if let Some(place) = place {
            place.copy_from_slice(&piece.content);
        }
    }
    Content::Read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_newer_lies_over_what_was_read() {
        let newer = [(4096, 1_u8), (8192, 0)].map(|(offset, byte)| Newer {
            offset: 1 << 20 | offset,
            content: vec![byte; 2048],
        });
        for (found, below) in [(Content::Read, 9_u8), (Content::Hole, 0)] {
            // A region that is a hole leaves in the buffer what was there before.
            let mut buffer = vec![9; 16384];
            assert_eq!(lay_over(1 << 20, &mut buffer, found, &newer), Content::Read);
            let mut wanted = vec![below; 16384];
            wanted[4096..6144].fill(1);
            wanted[8192..10240].fill(0);
            assert_eq!(buffer, wanted);
            assert_eq!(lay_over(1 << 20, &mut buffer, found, &[]), found);
        }
    }
}
