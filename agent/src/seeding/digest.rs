//! What the two sides compare: BLAKE3 of blocks and sub-blocks, with zeros found first.
//!
//! A block of zeros is never hashed: it is common, finding it costs a tenth of hashing it, and it travels as one bit.

use mt_wire::limits::{BLOCK_SIZE, SUB_BLOCK_SIZE};
use mt_wire::{Digest, Extent};

const BLOCK: usize = 64 * 1024;
const SUB_BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE && SUB_BLOCK as u64 == SUB_BLOCK_SIZE);

/// A block (64 KiB, or what is left of the disk) as the source sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// BLAKE3 of the block; `None` when every byte is zero.
    pub digest: Option<Digest>,
    /// Bit n is set when sub-block n is all zero.
    pub zero_sub_blocks: u16,
}

/// A sub-block (4 KiB, or what is left of the disk).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubBlock {
    /// BLAKE3 of the sub-block, computed for zeros too: the other side does not say which of its sub-blocks are zero.
    pub digest: Digest,
    /// Whether every byte is zero.
    pub zero: bool,
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folding whole chunks lets the compiler use vector registers; `all()` would stop at each byte.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// Digests of a region's blocks, as the target announces them.
pub fn blocks(region: &[u8]) -> Vec<Option<Digest>> {
    region
        .chunks(BLOCK)
        .map(|block| if is_zero(block) { None } else { Some(digest(block)) })
        .collect()
}

/// Digests of a region's blocks with the zero sub-blocks, as the source needs them.
pub fn blocks_with_zeros(region: &[u8]) -> Vec<Block> {
    region
        .chunks(BLOCK)
        .map(|block| {
            let zero_sub_blocks = block
                .chunks(SUB_BLOCK)
                .enumerate()
                .fold(0, |mask, (index, sub_block)| {
                    mask | u16::from(is_zero(sub_block)) << index
                });
            let all_zero = zero_sub_blocks.count_ones() as usize == block.len().div_ceil(SUB_BLOCK);
            Block {
                digest: if all_zero { None } else { Some(digest(block)) },
                zero_sub_blocks,
            }
        })
        .collect()
}

/// The sub-blocks of the blocks whose bits are set, block after block.
pub fn sub_blocks(region: &[u8], blocks: u16) -> Vec<SubBlock> {
    region
        .chunks(BLOCK)
        .enumerate()
        .filter(|(index, _)| blocks & (1 << index) != 0)
        .flat_map(|(_, block)| block.chunks(SUB_BLOCK))
        .map(|sub_block| SubBlock {
            digest: digest(sub_block),
            zero: is_zero(sub_block),
        })
        .collect()
}

/// BLAKE3 of some bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

/// Checks a payload against the digests its extents carry; the first extent that fails is the error.
///
/// # Errors
/// The extent whose content is not what the source read.
pub fn check_payload(extents: &[Extent], payload: &[u8]) -> Result<(), Extent> {
    let mut rest = payload;
    for extent in extents {
        let Some((content, behind)) = rest.split_at_checked(extent.len as usize) else {
            return Err(*extent);
        };
        if digest(content) != extent.digest {
            return Err(*extent);
        }
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn zeros_are_found_wherever_the_one_byte_is() {
        for len in [0, 1, 63, 64, 65, 4096, 4100] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len} zeros");
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn short_last_block_counts_its_own_sub_blocks() {
        let mut region = vec![0; BLOCK + SUB_BLOCK + 512];
        assert_eq!(blocks(&region), vec![None, None]);
        assert_eq!(
            blocks_with_zeros(&region)[1],
            Block {
                digest: None,
                zero_sub_blocks: 0b11
            }
        );
        *region.last_mut().unwrap() = 1;
        let seen = blocks_with_zeros(&region);
        assert_eq!(
            seen[1],
            Block {
                digest: Some(digest(&region[BLOCK..])),
                zero_sub_blocks: 0b01
            }
        );
        assert_eq!(sub_blocks(&region, 0b10).len(), 2);
    }
}
