//! A bounded number of aligned buffers, each as large as the largest payload.
//!
//! The bound is what keeps the memory of a session flat whatever the size of its disk, and what sessions borrow from each
//! other is bounded for all of them together. Buffers are made on demand and kept: a page that was touched once is not given
//! back and faulted in again for each megabyte. They are made in pairs, which share a huge page: pools of an even number waste
//! nothing.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use mt_blockdev::buffer::AlignedBuf;
use mt_wire::limits::PAYLOAD_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool of buffers of [`PAYLOAD_BYTES_MAX`] bytes.
#[derive(Debug, Clone)]
pub struct BufferPool {
    own: Supply,
    /// What may be taken beyond that: how much of it, and from where.
    more: Option<(Arc<Semaphore>, Supply)>,
}

/// Buffers that several pools may borrow, so that a busy session has many and a hundred sessions do not take a hundred times
/// as much memory. Each pool has some of its own besides: whoever hangs with what it borrowed holds up nobody.
#[derive(Debug, Clone)]
pub struct SharedBuffers(Supply);

/// Buffers, and leave to use them.
#[derive(Debug, Clone)]
struct Supply {
    permits: Arc<Semaphore>,
    free: Arc<Mutex<Vec<AlignedBuf>>>,
}

/// A buffer that goes back to where it came from when it is dropped. Its length is that of its content.
#[derive(Debug)]
pub struct PooledBuf {
    /// Always `Some` until the drop.
    buffer: Option<AlignedBuf>,
    len: usize,
    free: Arc<Mutex<Vec<AlignedBuf>>>,
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl Supply {
    fn new(count: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(count)),
            free: Arc::default(),
        }
    }

    fn buffer(
        &self,
        len: usize,
        permit: OwnedSemaphorePermit,
        more: Option<OwnedSemaphorePermit>,
    ) -> PooledBuf {
        assert!(len <= PAYLOAD_BYTES_MAX, "lengths are bounded where they enter");
        let buffer = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.is_empty() {
                free.extend(AlignedBuf::in_huge_page(PAYLOAD_BYTES_MAX));
            }
            free.pop()
        };
        PooledBuf {
            buffer,
            len,
            free: Arc::clone(&self.free),
            _permits: (permit, more),
        }
    }
}

impl SharedBuffers {
    /// So many buffers for all; none is allocated yet.
    pub fn new(count: usize) -> Self {
        Self(Supply::new(count))
    }
}

impl BufferPool {
    /// A pool of `count` buffers; none is allocated yet.
    pub fn new(count: usize) -> Self {
        Self {
            own: Supply::new(count),
            more: None,
        }
    }

    /// A pool of `own` buffers that takes up to `most` altogether while `shared` has some.
    pub fn sharing(own: usize, most: usize, shared: &SharedBuffers) -> Self {
        let more = Arc::new(Semaphore::new(most.saturating_sub(own)));
        Self {
            own: Supply::new(own),
            more: Some((more, shared.0.clone())),
        }
    }

    /// Waits for a buffer and sets its length, at most [`PAYLOAD_BYTES_MAX`]. Its content is whatever was in it.
    pub async fn take(&self, len: usize) -> PooledBuf {
        let own = async {
            let permit = Arc::clone(&self.own.permits).acquire_owned().await;
            self.own
                .buffer(len, permit.expect("the semaphore is never closed"), None)
        };
        let Some((limit, shared)) = &self.more else {
            return own.await;
        };
        let borrowed = async {
            let leave = Arc::clone(limit).acquire_owned().await;
            let permit = Arc::clone(&shared.permits).acquire_owned().await;
            let expect = "the semaphore is never closed";
            shared.buffer(len, permit.expect(expect), Some(leave.expect(expect)))
        };
        tokio::select! {
            biased;
            buffer = own => buffer,
            buffer = borrowed => buffer,
        }
    }

    /// A buffer if one is free.
    pub fn try_take(&self, len: usize) -> Option<PooledBuf> {
        if let Ok(permit) = Arc::clone(&self.own.permits).try_acquire_owned() {
            return Some(self.own.buffer(len, permit, None));
        }
        let (limit, shared) = self.more.as_ref()?;
        let leave = Arc::clone(limit).try_acquire_owned().ok()?;
        let permit = Arc::clone(&shared.permits).try_acquire_owned().ok()?;
        Some(shared.buffer(len, permit, Some(leave)))
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
            self.free
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
        drop(second);
        assert_eq!(
            pool.own.free.lock().unwrap().len(),
            2,
            "the freed buffers are used again, not new ones"
        );
    }

    #[tokio::test]
    async fn what_is_borrowed_is_bounded_for_each_and_for_all() {
        let shared = SharedBuffers::new(3);
        let (one, other) = (
            BufferPool::sharing(1, 3, &shared),
            BufferPool::sharing(1, 3, &shared),
        );
        let mut held: Vec<PooledBuf> = (0..3).map(|_| one.try_take(1).unwrap()).collect();
        assert!(one.try_take(1).is_none(), "no more than three altogether");
        held.extend((0..2).map(|_| other.try_take(1).unwrap()));
        assert!(
            other.try_take(1).is_none(),
            "the others hold what could be borrowed"
        );
        // What comes back first is taken, whoever had it.
        let waiting = other.take(2);
        tokio::pin!(waiting);
        assert!(futures_pending(&mut waiting).await);
        held.remove(1);
        assert_eq!(waiting.await.len(), 2);
    }

    async fn futures_pending(future: &mut (impl Future<Output = PooledBuf> + Unpin)) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }
}
