//! The C library's heap, told to keep little.
//!
//! glibc gives threads heaps of their own (*arenas*, up to eight for each processor) and keeps what was freed in them. A service
//! with a handful of threads for each disk keeps many times what it uses that way. See mallopt(3).

use nix::libc;

/// Heaps that all threads share: one for each of the two processors that an appliance has.
const ARENAS: libc::c_int = 2;
/// From this size on, bytes, memory is taken from the kernel and goes back to it when it is freed. Set, it stays: glibc would
/// raise it to the largest block that was ever freed.
const MAPPED_BYTES: libc::c_int = 512 * 1024;
/// Most bytes kept free at the end of a heap.
const KEPT_BYTES: libc::c_int = 1024 * 1024;

/// Bounds what the heap keeps beyond what is in use. Call it first, before there are threads; called again it changes nothing.
pub fn keep_little() {
    for (what, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
    ] {
        // SAFETY: mallopt takes two integers and no pointer; it locks the heap that it changes.
        let done = unsafe { libc::mallopt(what, value) };
        // A heap that does not know the setting works as it did.
        if done == 0 {
            debug_assert!(false, "glibc knows setting {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_heap_takes_the_settings_and_works_on() {
        super::keep_little();
        super::keep_little();
        let large = vec![7_u8; 3 << 20];
        assert_eq!(
            large.iter().map(|byte| usize::from(*byte)).sum::<usize>(),
            21 << 20
        );
    }
}
