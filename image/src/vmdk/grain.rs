// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grains: compression, decompression and the identity of what they hold.
//!
//! A grain's data is one complete zlib stream (RFC 1950). VMware's text says RFC 1951, every product writes 1950.
//! The zlib envelope carries an Adler-32, which is what lets a reader notice a damaged grain.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::GRAIN_SIZE;

/// Room for a compressed grain: deflate adds a few bytes per block to what it cannot compress.
pub const COMPRESSED_SIZE_MAX: usize = GRAIN_SIZE + 4096;

/// A grain that could not be decompressed, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrainFault(pub String);

/// Compresses grains one after the other; holds the 300 KiB state of deflate between them.
#[derive(Debug)]
pub struct GrainCompressor {
    state: Compress,
    output: Vec<u8>,
}

impl GrainCompressor {
    /// Makes a compressor for a level from 1 (fast) to 9 (small).
    #[must_use]
    pub fn new(level: u32) -> Self {
        Self {
            state: Compress::new(Compression::new(level.clamp(1, 9)), true),
            output: vec![0; COMPRESSED_SIZE_MAX],
        }
    }

    /// Compresses one grain and returns the zlib stream, which is valid until the next call.
    ///
    /// # Errors
    /// When deflate fails or needs more than [`COMPRESSED_SIZE_MAX`], which no input of grain size makes it do.
    pub fn compress(&mut self, grain: &[u8]) -> Result<&[u8], GrainFault> {
        self.state.reset();
        let status = self
            .state
            .compress(grain, &mut self.output, FlushCompress::Finish)
            .map_err(|error| GrainFault(format!("deflate failed: {error}")))?;
        if status != Status::StreamEnd {
            return Err(GrainFault(format!(
                "deflate did not finish a grain of {} bytes",
                grain.len()
            )));
        }
        let len = usize::try_from(self.state.total_out()).expect("bounded by the buffer");
        Ok(&self.output[..len])
    }
}

/// Decompresses grains one after the other.
#[derive(Debug)]
pub struct GrainInflater {
    state: Decompress,
    output: Vec<u8>,
}

impl Default for GrainInflater {
    fn default() -> Self {
        Self {
            state: Decompress::new(true),
            output: vec![0; GRAIN_SIZE + 1],
        }
    }
}

impl GrainInflater {
    /// Decompresses one grain that must come to exactly one of `sizes` bytes and use all of `compressed`.
    ///
    /// # Errors
    /// The stream is damaged, has another size, or bytes follow its end.
    pub fn inflate(&mut self, compressed: &[u8], sizes: [usize; 2]) -> Result<&[u8], GrainFault> {
        self.state.reset(true);
        let status = self
            .state
            .decompress(compressed, &mut self.output, FlushDecompress::Finish)
            .map_err(|error| GrainFault(format!("the compressed data is damaged: {error}")))?;
        let len = usize::try_from(self.state.total_out()).expect("bounded by the buffer");
        if status != Status::StreamEnd {
            return Err(GrainFault(if len > GRAIN_SIZE {
                "the data decompresses to more than a grain".to_owned()
            } else {
                "the compressed data ends too soon".to_owned()
            }));
        }
        let used = usize::try_from(self.state.total_in()).expect("bounded by the input");
        if used != compressed.len() {
            return Err(GrainFault(format!(
                "{} bytes follow the end of the compressed data",
                compressed.len() - used
            )));
        }
        if !sizes.contains(&len) {
            return Err(GrainFault(format!(
                "the data decompresses to {len} bytes, expected {}",
                sizes[0]
            )));
        }
        Ok(&self.output[..len])
    }
}

/// Tells whether all bytes are zero; compares 16 bytes at a time.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    let mut chunks = data.chunks_exact(16);
    chunks.by_ref().all(|chunk| {
        let mut raw = [0u8; 16];
        raw.copy_from_slice(chunk);
        u128::from_le_bytes(raw) == 0
    }) && chunks.remainder().iter().all(|&byte| byte == 0)
}

/// Builds the identity of a disk from what its grains hold, not from the clock, so that a second build gives the
/// same file.
///
/// The identity covers size, position and content of each grain that is not all zero, and neither the compression
/// level nor the layout of the file.
#[derive(Debug, Clone)]
pub struct ContentHasher(blake3::Hasher);

/// Digest of one grain, for [`ContentHasher::add`].
#[must_use]
pub fn grain_digest(grain: &[u8]) -> [u8; 32] {
    *blake3::hash(grain).as_bytes()
}

impl ContentHasher {
    /// Starts the identity of a disk of `capacity_sectors`.
    #[must_use]
    pub fn new(capacity_sectors: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("master-target 2026-11 VMDK content ID");
        hasher.update(&capacity_sectors.to_le_bytes());
        Self(hasher)
    }

    /// Adds the next grain, in ascending order.
    pub fn add(&mut self, lba: u64, digest: &[u8; 32]) {
        self.0.update(&lba.to_le_bytes());
        self.0.update(digest);
    }

    /// Ends the identity.
    #[must_use]
    pub fn finish(&self) -> ContentId {
        let mut id = [0u8; 16];
        id.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        // The last four bytes are the CID, of which VMware reserves ffffffff (no parent) and fffffffe.
        if id[12..16] >= [0xff, 0xff, 0xff, 0xfe][..] {
            id[12] = 0x7f;
        }
        ContentId(id)
    }
}

/// `ddb.longContentID`; its last eight digits are the CID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentId(pub [u8; 16]);

impl ContentId {
    /// The short identity.
    #[must_use]
    pub fn cid(&self) -> u32 {
        u32::from_be_bytes([self.0[12], self.0[13], self.0[14], self.0[15]])
    }
}

impl std::fmt::Display for ContentId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_detection() {
        let mut data = vec![0u8; 1000];
        assert!(is_zero(&data));
        for at in [0, 15, 16, 999] {
            data[at] = 1;
            assert!(!is_zero(&data), "byte {at}");
            data[at] = 0;
        }
    }

    #[test]
    fn incompressible_grains_fit() {
        let mut state = 1u64;
        let grain: Vec<u8> = (0..GRAIN_SIZE)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                state.to_le_bytes()[7]
            })
            .collect();
        for level in 1..=9 {
            let mut compressor = GrainCompressor::new(level);
            let packed = compressor.compress(&grain).unwrap().to_vec();
            assert_eq!(
                GrainInflater::default()
                    .inflate(&packed, [GRAIN_SIZE; 2])
                    .unwrap(),
                grain
            );
        }
    }

    #[test]
    fn trailing_and_missing_bytes_are_noticed() {
        let mut packed = GrainCompressor::new(6)
            .compress(&[7; GRAIN_SIZE])
            .unwrap()
            .to_vec();
        let mut inflater = GrainInflater::default();
        packed.push(0);
        assert!(
            inflater
                .inflate(&packed, [GRAIN_SIZE; 2])
                .unwrap_err()
                .0
                .contains("follow")
        );
        packed.truncate(packed.len() - 3);
        assert!(inflater.inflate(&packed, [GRAIN_SIZE; 2]).is_err());
    }
}
