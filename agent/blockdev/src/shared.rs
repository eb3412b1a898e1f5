//! Memory that this process shares with programs in the kernel: the values of a BPF array map, as atomic words.
//!
//! The kernel marks in it while we take the marks. Whoever reads such memory through plain references promises the compiler
//! that nobody writes meanwhile, which is not true here; every word is therefore an [`AtomicU64`] and nothing else is ever
//! handed out. libbpf-rs has no mapping of maps, and the crates for mapped files call every mapping unsafe, since a file
//! may be cut short below it. A map cannot: its size is settled when it is made, and the mapping keeps it alive after its
//! descriptor is closed. So the mapping is safe to hold once the descriptor is known to be that of an array map.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// `BPF_MAP_TYPE_ARRAY` (linux/bpf.h).
const MAP_TYPE_ARRAY: u64 = 2;
/// `BPF_F_MMAPABLE` (linux/bpf.h).
const FLAG_MMAPABLE: u64 = 1 << 10;

/// The values of an array map, mapped for reading and writing until it is dropped.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory belongs to no thread, and all that is handed out of it are shared references to atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the values of an array map whose values are whole multiples of 8 bytes.
    ///
    /// # Errors
    /// `InvalidInput` when the descriptor is not that of an array map made with `BPF_F_MMAPABLE`; else the errors of mmap.
    pub fn of_array_map(map: impl AsFd) -> io::Result<Self> {
        let fd = map.as_fd().as_raw_fd();
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let len = mapped_len(&text).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is not that of an array map that can be mapped",
            )
        })?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours. The kernel refuses a
        // length above the size of the map, which never changes (kernel/bpf/arraymap.c, array_map_mmap).
        let start = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.as_fd(),
                0,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            words: len.get() / size_of::<AtomicU64>(),
        })
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, so it is aligned; it is `words` long and lives as long as `self`. Every
        // bit pattern is a u64, and others change it by whole aligned bytes or words only, while we use atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and no reference to it outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.words * size_of::<AtomicU64>()) };
    }
}

/// Length of the values of the array map that a text of `/proc/PID/fdinfo` describes, bytes.
fn mapped_len(fdinfo: &str) -> Option<NonZeroUsize> {
    let field = |name: &str| {
        let line = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
        let value = line.trim();
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => value.parse().ok(),
        }
    };
    if field("map_type:")? != MAP_TYPE_ARRAY || field("map_flags:")? & FLAG_MMAPABLE == 0 {
        return None;
    }
    let value = field("value_size:")?;
    if value % 8 != 0 {
        return None;
    }
    NonZeroUsize::new(usize::try_from(value.checked_mul(field("max_entries:")?)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FDINFO: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t2059\nmap_type:\t2\nkey_size:\t4\nvalue_size:\t4096\n\
                          max_entries:\t3\nmap_flags:\t0x1400\nmap_extra:\t0x0\nmemlock:\t12288\nmap_id:\t9\nfrozen:\t0\n";

    #[test]
    fn only_an_array_map_that_can_be_mapped_has_a_length() {
        assert_eq!(mapped_len(FDINFO), NonZeroUsize::new(3 * 4096));
        for (from, to) in [
            ("map_type:\t2", "map_type:\t1"),
            ("map_flags:\t0x1400", "map_flags:\t0x1000"),
            ("value_size:\t4096", "value_size:\t4"),
            ("max_entries:\t3", "max_entries:\t0"),
            ("max_entries:\t3", "max_entries:\t18446744073709551615"),
            ("map_type:\t2\n", ""),
        ] {
            assert_eq!(mapped_len(&FDINFO.replace(from, to)), None, "{to}");
        }
    }

    #[test]
    fn a_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let err = SharedWords::of_array_map(&file).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
    }
}
