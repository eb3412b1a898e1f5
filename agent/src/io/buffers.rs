//! A bounded number of aligned buffers, each as large as the largest payload.
//!
//! The bound is what keeps the memory of a session flat whatever the size of its disk. Buffers are made on demand and
//! kept: a page that was touched once is not given back and faulted in again for each megabyte.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use mt_blockdev::buffer::AlignedBuf;
use mt_wire::limits::PAYLOAD_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool of buffers of [`PAYLOAD_BYTES_MAX`] bytes.
#[derive(Debug, Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    permits: Arc<Semaphore>,
    free: Mutex<Vec<AlignedBuf>>,
}

/// A buffer that goes back to its pool when it is dropped. Its length is that of its content.
#[derive(Debug)]
pub struct PooledBuf {
    /// Always `Some` until the drop.
    buffer: Option<AlignedBuf>,
    len: usize,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl BufferPool {
    /// A pool of `count` buffers; none is allocated yet.
    pub fn new(count: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                permits: Arc::new(Semaphore::new(count)),
                free: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Waits for a buffer and sets its length, at most [`PAYLOAD_BYTES_MAX`]. Its content is whatever was in it.
    pub async fn take(&self, len: usize) -> PooledBuf {
        let permit = Arc::clone(&self.shared.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        self.with_permit(permit, len)
    }

    /// A buffer if one is free.
    pub fn try_take(&self, len: usize) -> Option<PooledBuf> {
        let permit = Arc::clone(&self.shared.permits).try_acquire_owned().ok()?;
        Some(self.with_permit(permit, len))
    }

    fn with_permit(&self, permit: OwnedSemaphorePermit, len: usize) -> PooledBuf {
        assert!(len <= PAYLOAD_BYTES_MAX, "lengths are bounded where they enter");
        let free = self
            .shared
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let buffer = free.unwrap_or_else(|| AlignedBuf::zeroed(PAYLOAD_BYTES_MAX));
        PooledBuf {
            buffer: Some(buffer),
            len,
            shared: Arc::clone(&self.shared),
            _permit: permit,
        }
    }
}

impl Deref for PooledBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer.as_ref().expect("present until the drop")[..self.len]
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut().expect("present until the drop")[..self.len]
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.shared
                .free
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn buffers_are_bounded_and_come_back() {
        let pool = BufferPool::new(2);
        let first = pool.take(4096).await;
        let second = pool.try_take(1).unwrap();
        assert_eq!((first.len(), second.len()), (4096, 1));
        assert!(pool.try_take(1).is_none());
        drop(first);
        assert_eq!(pool.try_take(PAYLOAD_BYTES_MAX).unwrap().len(), PAYLOAD_BYTES_MAX);
        assert_eq!(
            pool.shared.free.lock().unwrap().len(),
            1,
            "the freed buffer is used again, not a new one"
        );
    }
}
