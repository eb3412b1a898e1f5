//! A layer that takes writes and is thrown away: what a machine writes that is booted from a recovery point to be tested.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::Export;

/// The unit in which written blocks are remembered, bytes.
const BLOCK: u64 = 4096;

/// Writes go to a file that has no name; reads are answered from there where something was written, else from below.
pub struct Overlay {
    below: Arc<dyn Export>,
    layer: Mutex<Layer>,
}

struct Layer {
    file: File,
    /// A bit for each block that the file holds.
    written: Vec<u64>,
}

impl Overlay {
    /// A layer above `below`; `file` is empty and has no name, so that it is gone when this is.
    ///
    /// # Errors
    /// When the file cannot be given its size.
    pub fn new(below: Arc<dyn Export>, file: File) -> io::Result<Self> {
        let size = below.size();
        file.set_len(size.next_multiple_of(BLOCK))?;
        let words = usize::try_from(size.div_ceil(BLOCK).div_ceil(64))
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self {
            below,
            layer: Mutex::new(Layer {
                file,
                written: vec![0; words],
            }),
        })
    }
}

impl Layer {
    fn place(block: u64) -> (usize, u64) {
        (
            usize::try_from(block / 64).unwrap_or(usize::MAX),
            1 << (block % 64),
        )
    }

    fn has(&self, block: u64) -> bool {
        let (word, bit) = Self::place(block);
        self.written.get(word).is_some_and(|word| word & bit != 0)
    }

    fn mark(&mut self, block: u64) {
        let (word, bit) = Self::place(block);
        if let Some(word) = self.written.get_mut(word) {
            *word |= bit;
        }
    }
}

impl Export for Overlay {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn writable(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let layer = self.layer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut position = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            // A run of blocks that are all here, or all below.
            let here = layer.has(position / BLOCK);
            let mut end = (position / BLOCK + 1) * BLOCK;
            while end < position + rest.len() as u64 && layer.has(end / BLOCK) == here {
                end += BLOCK;
            }
            let len = usize::try_from(end - position)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (piece, behind) = rest.split_at_mut(len);
            if here {
                layer.file.read_exact_at(piece, position)?;
            } else {
                self.below.read(position, piece)?;
            }
            position += len as u64;
            rest = behind;
        }
        Ok(())
    }

    fn write(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        let mut layer = self.layer.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset + content.len() as u64;
        // The first and the last block may be written in part only: what is below fills them up first.
        for block in [offset / BLOCK, (end - 1) / BLOCK] {
            let start = block * BLOCK;
            let whole = start >= offset && (start + BLOCK).min(self.below.size()) <= end;
            if whole || layer.has(block) {
                continue;
            }
            let len = BLOCK.min(self.below.size() - start);
            let mut filled = vec![0; usize::try_from(len).unwrap_or(0)];
            self.below.read(start, &mut filled)?;
            layer.file.write_all_at(&filled, start)?;
            layer.mark(block);
        }
        layer.file.write_all_at(content, offset)?;
        for block in offset / BLOCK..=(end - 1) / BLOCK {
            layer.mark(block);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    struct Fixed(Vec<u8>);

    impl Export for Fixed {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn writable(&self) -> bool {
            false
        }

        fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let at = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            panic!("nothing goes through the overlay")
        }
    }

    proptest! {
        #[test]
        fn it_reads_as_if_it_had_been_written_and_below_stays(
            writes in vec((0_usize..40_000, 1_usize..9000, any::<u8>()), 0..20), at in 0_usize..40_000, len in 1_usize..40_000
        ) {
            let size = 40_960 + 512;
            let below: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut expected = below.clone();
            let overlay = Overlay::new(Arc::new(Fixed(below)), tempfile::tempfile().unwrap()).unwrap();
            for (at, len, byte) in writes {
                let len = len.min(size - at);
                overlay.write(at as u64, &vec![byte; len]).unwrap();
                expected[at..at + len].fill(byte);
            }
            let mut found = vec![0; len.min(size - at)];
            overlay.read(at as u64, &mut found).unwrap();
            prop_assert_eq!(&found[..], &expected[at..at + found.len()]);
        }
    }
}
