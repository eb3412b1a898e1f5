//! Random names for sessions and seedings. They need to differ, not to be secret.

use std::fs::File;
use std::io::Read;

/// Sixteen random bytes from the kernel, never all zero: that stands for "none" on the wire.
///
/// # Errors
/// When `/dev/urandom` cannot be read.
pub fn id() -> std::io::Result<[u8; 16]> {
    let mut source = File::open("/dev/urandom")?;
    loop {
        let mut id = [0; 16];
        source.read_exact(&mut id)?;
        if id != [0; 16] {
            return Ok(id);
        }
    }
}
