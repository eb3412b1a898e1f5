//! The content of an extent made smaller, where that pays.
//!
//! An extent takes whole blocks of 4 KiB in the log, so one block cannot become smaller. Of a longer one the log holds the *pack*
//! when that takes at most three quarters of the blocks:
//!
//! | offset | size | name | meaning |
//! |---|---|---|---|
//! | 0 | 4 | length | bytes of the LZ4 block, little-endian |
//! | 4 | 4 | crc | CRC-32C of the LZ4 block |
//! | 8 | | block | LZ4 block (`doc/lz4_Block_format.md` of LZ4) of the content up to the end of the disk |
//! | | | | zeros to the end of the last block of 4 KiB |
//!
//! The digest of the extent is that of its content. The CRC is there beside it since different LZ4 blocks can stand for the same
//! content: without it a flipped bit could go unnoticed.

use crate::codec::{Malformed, Reader, u32_of, usize_of};
use crate::types::BLOCK_SIZE;

const HEADER_SIZE: usize = 8;

/// The stored form of some content, in whole blocks; `None` where the content itself is to be stored.
pub(crate) fn pack(content: &[u8]) -> Option<Vec<u8>> {
    let blocks = content.len().div_ceil(BLOCK_SIZE);
    let most = blocks * 3 / 4;
    if most == 0 {
        return None;
    }
    let mut out = vec![0; HEADER_SIZE + lz4_flex::block::get_maximum_output_size(content.len())];
    let len = lz4_flex::block::compress_into(content, &mut out[HEADER_SIZE..]).ok()?;
    let stored = (HEADER_SIZE + len).div_ceil(BLOCK_SIZE);
    if stored > most {
        return None;
    }
    out[0..4].copy_from_slice(&u32_of(len).to_le_bytes());
    let crc = crc32c::crc32c(&out[HEADER_SIZE..HEADER_SIZE + len]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    // The compressor may have written beyond what it says.
    out.truncate(HEADER_SIZE + len);
    out.resize(stored * BLOCK_SIZE, 0);
    Some(out)
}

/// The content of `real` bytes that `stored` stands for, with zeros up to a whole block.
///
/// # Errors
/// When it is not a pack of as many bytes. Whatever it says, no more memory is taken than for that.
pub(crate) fn unpack(stored: &[u8], real: usize) -> Result<Vec<u8>, Malformed> {
    let mut from = Reader::new(stored);
    let len = usize_of(u64::from(from.u32()?));
    let crc = from.u32()?;
    let block = from.bytes(len)?;
    if crc32c::crc32c(block) != crc {
        return Err("packed content fails its checksum");
    }
    let mut content = vec![0; real.next_multiple_of(BLOCK_SIZE)];
    match lz4_flex::block::decompress_into(block, &mut content[..real]) {
        Ok(found) if found == real => Ok(content),
        _ => Err("packed content is not of its length"),
    }
}

/// Bytes behind the pack in its blocks: nothing reads them, and they are zeros.
pub(crate) fn behind(stored: &[u8]) -> &[u8] {
    let len = stored
        .first_chunk()
        .map_or(0, |len| usize_of(u64::from(u32::from_le_bytes(*len))));
    stored.get(HEADER_SIZE.saturating_add(len)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn text(len: usize, seed: u8) -> Vec<u8> {
        (0..len)
            .map(|at| b"bring the machines home. "[(at + at / 977) % 25] ^ seed)
            .collect()
    }

    #[test]
    fn what_does_not_pay_is_left_as_it_is() {
        assert_eq!(pack(&text(BLOCK_SIZE, 0)), None, "one block cannot be less");
        assert_eq!(
            pack(&text(BLOCK_SIZE + 1, 0)).map(|stored| stored.len()),
            Some(BLOCK_SIZE)
        );
        let mut noise = vec![0; 16 * BLOCK_SIZE];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(pack(&noise), None);
        // Three quarters noise: a little is saved, and not enough for the time that reading it costs.
        noise[13 * BLOCK_SIZE..].fill(7);
        assert_eq!(pack(&noise), None);
        noise[11 * BLOCK_SIZE..].fill(7);
        assert_eq!(pack(&noise).map(|stored| stored.len()), Some(12 * BLOCK_SIZE));
    }

    #[test]
    fn any_flipped_bit_is_noticed_or_behind_the_pack() {
        let content = text(2 * BLOCK_SIZE + 512, 3);
        let stored = pack(&content).unwrap();
        let unused = behind(&stored).len();
        assert!(unused > 0 && behind(&stored).iter().all(|byte| *byte == 0));
        for at in 0..stored.len() - unused {
            for bit in 0..8 {
                let mut broken = stored.clone();
                broken[at] ^= 1 << bit;
                assert!(unpack(&broken, content.len()).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn it_comes_back_as_it_was(len in 1..40_usize, cut in 0..BLOCK_SIZE, seed in any::<u8>()) {
            let content = text(len * BLOCK_SIZE + cut, seed);
            let stored = pack(&content).expect("it repeats itself");
            prop_assert!(stored.len().is_multiple_of(BLOCK_SIZE));
            let mut found = unpack(&stored, content.len()).expect("it was just made");
            prop_assert!(found.split_off(content.len()).iter().all(|byte| *byte == 0));
            prop_assert_eq!(found, content);
        }

        #[test]
        fn bytes_of_a_stranger_do_no_harm(stored in proptest::collection::vec(any::<u8>(), 0..300), real in 1..9000_usize) {
            // With a right checksum, so that the decompressor is reached.
            let mut stored = stored;
            if stored.len() >= HEADER_SIZE {
                let len = stored.len() - HEADER_SIZE;
                stored[0..4].copy_from_slice(&u32_of(len).to_le_bytes());
                let crc = crc32c::crc32c(&stored[HEADER_SIZE..]);
                stored[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(content) = unpack(&stored, real) {
                prop_assert_eq!(content.len(), real.next_multiple_of(BLOCK_SIZE));
            }
        }
    }
}
