//! Memory that direct I/O accepts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer, bytes: a page, and no device has larger logical blocks than the kernel's page.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Heap memory of fixed length that starts on a 4096-byte boundary, as direct I/O wants it.
///
/// It never grows, so that its address stays what was handed to the kernel.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory behind `start` belongs to this value alone (allocated in `zeroed`, freed in `drop`),
// so that moving it to another thread moves the only owner.
unsafe impl Send for AlignedBuf {}
// SAFETY: `&AlignedBuf` only gives `&[u8]`; there is no interior mutability.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Allocates `len` bytes, all zero. A length of 0 is allowed and allocates nothing.
    ///
    /// Like `Vec`, it ends the process when there is no memory. A length never comes from a peer unchecked:
    /// callers bound it first.
    ///
    /// # Panics
    /// When `len` is within a page of `isize::MAX`, which no caller's bound allows.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self {
                start: NonNull::dangling(),
                len,
            };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size greater than zero (checked above).
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self { start, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BUFFER_ALIGNMENT).expect("callers bound the length of a buffer")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed only here.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) };
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialised bytes as long as `self` lives (for `len` 0 a
        // dangling, aligned pointer is what a slice wants), and `&self` keeps writers out.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_independent() {
        for len in [0, 1, 511, 4096, 4097, 1 << 20] {
            let mut a = AlignedBuf::zeroed(len);
            let b = AlignedBuf::zeroed(len);
            assert_eq!(a.len(), len);
            if len > 0 {
                assert_eq!(a.as_ptr().align_offset(BUFFER_ALIGNMENT), 0, "len {len}");
            }
            assert!(a.iter().all(|byte| *byte == 0));
            a.fill(0xa5);
            assert!(
                b.iter().all(|byte| *byte == 0),
                "writing one buffer must not reach another"
            );
        }
    }

    #[test]
    fn a_buffer_can_be_filled_on_another_thread() {
        let mut buffer = AlignedBuf::zeroed(4096);
        let buffer = std::thread::spawn(move || {
            buffer.fill(7);
            buffer
        })
        .join()
        .unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7));
    }
}
