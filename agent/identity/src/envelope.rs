//! What the files of this crate have in common.
//!
//! ```text
//! offset size
//!      0    8  magic: four letters, 0d 0a 1a 0a
//!      8    2  version, little-endian
//!     10    .  content
//!      .   32  SHA-256 of everything before
//! ```
//!
//! The version is looked at before the digest: what a newer version has at its end is its own matter. The digest finds
//! damage, not malice: whoever can write the file can write the digest.

use ring::digest::{SHA256, digest};

/// Size of what is before the content, in bytes.
pub(crate) const HEAD_SIZE: usize = 10;
/// Size of what is behind it, in bytes.
pub(crate) const DIGEST_SIZE: usize = 32;

/// A kind of file.
pub(crate) struct Envelope {
    pub(crate) magic: &'static [u8; 8],
    pub(crate) version: u16,
}

/// Why bytes are not a file of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    OtherKind,
    Version(u16),
    Damaged,
}

impl Envelope {
    /// Writes what is before the content.
    pub(crate) fn begin(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
    }

    /// Writes what is behind it.
    pub(crate) fn end(bytes: &mut Vec<u8>) {
        let checksum = digest(&SHA256, bytes);
        bytes.extend_from_slice(checksum.as_ref());
    }

    /// The content.
    pub(crate) fn open<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Unfit> {
        let rest = bytes.strip_prefix(self.magic).ok_or(Unfit::OtherKind)?;
        let (version, _) = rest.split_first_chunk().ok_or(Unfit::Damaged)?;
        let version = u16::from_le_bytes(*version);
        if version != self.version {
            return Err(Unfit::Version(version));
        }
        let (covered, checksum) = bytes.split_last_chunk::<DIGEST_SIZE>().ok_or(Unfit::Damaged)?;
        if digest(&SHA256, covered).as_ref() != checksum {
            return Err(Unfit::Damaged);
        }
        covered.get(HEAD_SIZE..).ok_or(Unfit::Damaged)
    }
}

/// Gives changed bytes a digest that matches, as an attacker would.
pub(crate) fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len().saturating_sub(DIGEST_SIZE));
    Envelope::end(&mut bytes);
    bytes
}
