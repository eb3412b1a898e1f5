// SPDX-License-Identifier: MIT OR Apache-2.0
//! The seal: a digest of the whole medium, written into the medium itself, so that a copy can be checked with nothing
//! but the copy at hand.
//!
//! The primary volume descriptor (ECMA-119 8.4, at byte 32768) has 512 bytes that are the application's, at its byte 883.
//! They hold, filled up with spaces:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 21 | `MASTER_TARGET SHA256=` |
//! | 21 | 64 | SHA-256 in hex of all bytes of the file, these 512 taken as zeros |
//! | 85 | 427 | spaces |
//!
//! No other field of the medium depends on these bytes. Every byte is covered: of the file by the digest, of the seal by
//! there being exactly one right seal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Fault, Result};

const SEAL_OFFSET: u64 = 16 * 2048 + 883;
const VOLUME_BLOCKS_OFFSET: u64 = 16 * 2048 + 80;
const SEAL_SIZE: usize = 512;
const SEAL_BEGIN: &str = "MASTER_TARGET SHA256=";

/// Seals a medium.
///
/// # Errors
/// It cannot be read or written.
pub fn apply(iso: &Path) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(iso)
        .map_err(|error| Error::io("open", iso, error))?;
    let seal = expected(&file).map_err(|error| Error::io("read", iso, error))?;
    file.write_all_at(&seal, SEAL_OFFSET)
        .map_err(|error| Error::io("write", iso, error))
}

/// What is wrong with a medium, as far as its seal tells; nothing when it is as it was made.
///
/// # Errors
/// It cannot be read.
pub fn verify(iso: &Path) -> Result<Vec<Fault>> {
    let fault = |code, text: &str| Fault {
        code,
        offset: Some(SEAL_OFFSET),
        text: text.to_owned(),
    };
    let file = File::open(iso).map_err(|error| Error::io("open", iso, error))?;
    let mut found = [0u8; SEAL_SIZE];
    match file.read_exact_at(&mut found, SEAL_OFFSET) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let text = "the file ends before its volume descriptor: it is no medium, or was cut";
            return Ok(vec![fault("too-short", text)]);
        }
        other => other.map_err(|error| Error::io("read", iso, error))?,
    }
    let expected = expected(&file).map_err(|error| Error::io("read", iso, error))?;
    if found == expected {
        return Ok(Vec::new());
    }
    if !found.starts_with(SEAL_BEGIN.as_bytes()) {
        let text = "there is no seal of the master target: another file, or damaged here";
        return Ok(vec![fault("no-seal", text)]);
    }
    let hex = |seal: &[u8]| {
        let digest = &seal[SEAL_BEGIN.len()..SEAL_BEGIN.len() + 64];
        String::from_utf8_lossy(digest).escape_default().to_string()
    };
    let text = format!(
        "the medium has SHA-256 {}, its seal says {}: {}",
        hex(&expected),
        hex(&found),
        cut(&file)
            .map_err(|error| Error::io("read", iso, error))?
            .unwrap_or_else(|| { "it was damaged or changed after it was made".to_owned() })
    );
    Ok(vec![fault("digest", &text)])
}

/// Says so where the file is shorter than the volume it begins with (ECMA-119 8.4.8, blocks of 2,048 bytes).
fn cut(file: &File) -> io::Result<Option<String>> {
    let mut blocks = [0u8; 4];
    file.read_exact_at(&mut blocks, VOLUME_BLOCKS_OFFSET)?;
    let (volume, size) = (
        u64::from(u32::from_le_bytes(blocks)) * 2048,
        file.metadata()?.len(),
    );
    Ok((size < volume).then(|| format!("it was cut short, with {size} of at least {volume} bytes")))
}

fn expected(file: &File) -> io::Result<[u8; SEAL_SIZE]> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = 0;
    loop {
        let count = file.read_at(&mut buffer, at)?;
        if count == 0 {
            break;
        }
        let in_buffer = |offset: u64| {
            let from_start = offset.saturating_sub(at).min(count as u64);
            usize::try_from(from_start).expect("at most the buffer's size")
        };
        buffer[in_buffer(SEAL_OFFSET)..in_buffer(SEAL_OFFSET + SEAL_SIZE as u64)].fill(0);
        digest.update(&buffer[..count]);
        at += count as u64;
    }
    let mut seal = [b' '; SEAL_SIZE];
    let text: String = digest
        .finalize()
        .iter()
        .fold(SEAL_BEGIN.to_owned(), |text, byte| format!("{text}{byte:02x}"));
    seal[..text.len()].copy_from_slice(text.as_bytes());
    Ok(seal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("a.iso");
        let bytes: Vec<u8> = (0..40_000u32)
            .map(|at| at.to_le_bytes()[at as usize % 3])
            .collect();
        std::fs::write(&path, bytes).unwrap();
        apply(&path).unwrap();
        path
    }

    #[test]
    fn a_sealed_medium_is_good_and_sealing_again_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = medium(folder.path());
        assert!(verify(&path).unwrap().is_empty());
        let before = std::fs::read(&path).unwrap();
        apply(&path).unwrap();
        assert!(before == std::fs::read(&path).unwrap());
        let seal = &before[usize::try_from(SEAL_OFFSET).unwrap()..][..SEAL_SIZE];
        assert!(seal.starts_with(b"MASTER_TARGET SHA256=") && seal[85..].iter().all(|byte| *byte == b' '));
    }

    #[test]
    fn every_flipped_bit_of_the_descriptor_and_every_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = medium(folder.path());
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for at in (0..40_000).filter(|at| *at % 97 == 0 || (32_768..34_816).contains(at)) {
            let mut byte = [0u8];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            assert_eq!(verify(&path).unwrap().len(), 1, "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        assert!(verify(&path).unwrap().is_empty());
        // What the medium of this test has in the place of its size: more than it is, then less.
        for (blocks, told) in [(20u32, true), (19, false)] {
            file.set_len(40_000).unwrap();
            file.write_all_at(&blocks.to_le_bytes(), VOLUME_BLOCKS_OFFSET)
                .unwrap();
            apply(&path).unwrap();
            file.set_len(39_999).unwrap();
            let found = verify(&path).unwrap().remove(0);
            assert_eq!(found.code, "digest");
            assert_eq!(
                found.text.contains("with 39999 of at least 40960 bytes"),
                told,
                "{found}"
            );
        }
        file.set_len(40_001).unwrap();
        assert_eq!(verify(&path).unwrap()[0].code, "digest");
        file.set_len(33_000).unwrap();
        assert_eq!(verify(&path).unwrap()[0].code, "too-short");
        std::fs::write(&path, vec![0u8; 40_000]).unwrap();
        assert_eq!(verify(&path).unwrap()[0].code, "no-seal");
    }
}
