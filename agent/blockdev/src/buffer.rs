//! Memory that direct I/O accepts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Alignment of every buffer, bytes: a page, and no device has larger logical blocks than the kernel's page.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// Size and alignment of a huge page on x86-64, bytes.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Heap memory of fixed length that starts on a 4096-byte boundary, as direct I/O wants it.
///
/// It never grows, so that its address stays what was handed to the kernel.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    /// The huge page that it is a piece of; `None` when its memory is its own.
    page: Option<Arc<HugePage>>,
}

/// [`HUGE_PAGE_BYTES`] of private memory on a boundary of as many, given back when the last piece of it is dropped.
struct HugePage(NonNull<std::ffi::c_void>);

// SAFETY: nothing is read or written through this value; it only keeps the mapping, and unmapping it may be done by any thread.
unsafe impl Send for HugePage {}
// SAFETY: as above; `&HugePage` gives no access to the memory.
unsafe impl Sync for HugePage {}

impl HugePage {
    /// Maps it and asks the kernel for one page of that size (`MADV_HUGEPAGE`); where it has none to give, small pages serve.
    fn map() -> Option<Self> {
        // A mapping is only sure to begin on a small page, so twice as much is mapped and what lies around is given back.
        let len = NonZeroUsize::new(2 * HUGE_PAGE_BYTES)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory that is in use.
        let all = unsafe { mmap_anonymous(None, len, access, MapFlags::MAP_PRIVATE) }.ok()?;
        let before = all.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: the offset is less than a huge page, and two of them are mapped.
        let (start, behind) = unsafe { (all.byte_add(before), all.byte_add(before + HUGE_PAGE_BYTES)) };
        for (at, len) in [(all, before), (behind, HUGE_PAGE_BYTES - before)] {
            if len > 0 {
                // SAFETY: the range is whole pages of the mapping made above, and nobody knows of it.
                let _ = unsafe { munmap(at, len) };
            }
        }
        // SAFETY: the range is mapped and belongs to this value. Advice changes no content.
        let _ = unsafe { madvise(start, HUGE_PAGE_BYTES, MmapAdvise::MADV_HUGEPAGE) };
        Some(Self(start))
    }
}

impl Drop for HugePage {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `map`, and no piece of it is left: each holds an `Arc` of this value.
        let _ = unsafe { munmap(self.0, HUGE_PAGE_BYTES) };
    }
}

// SAFETY: the memory behind `start` belongs to this value alone (allocated in `zeroed` and freed in `drop`, or a piece of a
// huge page that no other value has), so that moving it to another thread moves the only owner.
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
                page: None,
            };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size greater than zero (checked above).
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self {
            start,
            len,
            page: None,
        }
    }

    /// All buffers of `len` bytes that fit into one huge page, all zero; the page lives as long as one of them does.
    ///
    /// Direct I/O hands every page of a buffer to the device as a segment of its own unless they lie side by side in memory. A
    /// disk takes a limited number of segments (254 on virtio), so that a read of 1 MiB in small pages becomes two requests of
    /// hundreds of pieces, and in a huge page one of a single piece: with one virtual disk twice the rate.
    ///
    /// # Panics
    /// When `len` is 0, is no multiple of [`BUFFER_ALIGNMENT`] or is larger than the page.
    #[must_use]
    pub fn in_huge_page(len: usize) -> Vec<Self> {
        assert!(
            len > 0 && len <= HUGE_PAGE_BYTES && len.is_multiple_of(BUFFER_ALIGNMENT),
            "a piece of a huge page is whole small pages"
        );
        let count = HUGE_PAGE_BYTES / len;
        let Some(page) = HugePage::map().map(Arc::new) else {
            return (0..count).map(|_| Self::zeroed(len)).collect();
        };
        let first = page.0.cast::<u8>();
        let piece = |index| Self {
            // SAFETY: `index` is less than `count`, so that the piece lies inside the page.
            start: unsafe { first.byte_add(index * len) },
            len,
            page: Some(Arc::clone(&page)),
        };
        (0..count).map(piece).collect()
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BUFFER_ALIGNMENT).expect("callers bound the length of a buffer")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len > 0 && self.page.is_none() {
            // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed only here.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) };
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialised bytes as long as `self` and its page live (for `len` 0 a
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
    fn pieces_of_a_huge_page_are_independent_and_outlive_each_other() {
        for len in [4096, 3 * 4096, 1 << 20, HUGE_PAGE_BYTES] {
            let mut pieces = AlignedBuf::in_huge_page(len);
            assert_eq!(pieces.len(), HUGE_PAGE_BYTES / len);
            assert_eq!(pieces[0].as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
            for (number, piece) in pieces.iter_mut().enumerate() {
                assert_eq!(piece.len(), len);
                assert_eq!(piece.as_ptr().align_offset(BUFFER_ALIGNMENT), 0);
                assert!(piece.iter().all(|byte| *byte == 0), "piece {number} of {len}");
                piece.fill(u8::try_from(number % 251 + 1).unwrap());
            }
            let last = pieces.pop().unwrap();
            drop(pieces);
            let number = HUGE_PAGE_BYTES / len - 1;
            let wanted = u8::try_from(number % 251 + 1).unwrap();
            assert!(
                std::thread::spawn(move || last.iter().all(|byte| *byte == wanted))
                    .join()
                    .unwrap()
            );
        }
    }

    #[test]
    #[should_panic(expected = "whole small pages")]
    fn a_piece_that_direct_io_would_refuse_is_refused() {
        let _ = AlignedBuf::in_huge_page(1000);
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
