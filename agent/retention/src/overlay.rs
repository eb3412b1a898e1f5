//! Storage that is only read: what would be written stays in memory.
//!
//! Opening a store puts right what a crash left: it seals a segment, removes files. Over an [`Overlay`] the same happens, and
//! nothing reaches the storage below, so that a store can be looked at while its owner has it open, or on a volume
//! that must not be touched.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::codec::u64_of;
use crate::storage::{ObjectName, Storage, StorageError, StorageOp};
use crate::types::{BLOCK, BLOCK_SIZE};

#[derive(Debug, Default)]
struct Changed {
    /// Length, when it is not that of the object below.
    len: Option<u64>,
    /// Whether the object below shows where no block was written.
    over: bool,
    blocks: BTreeMap<u64, Vec<u8>>,
}

/// Storage over another one that is only read.
#[derive(Debug)]
pub struct Overlay<S> {
    below: S,
    changed: BTreeMap<ObjectName, Changed>,
    removed: BTreeSet<ObjectName>,
}

impl<S: Storage> Overlay<S> {
    /// Nothing is changed yet.
    pub fn new(below: S) -> Self {
        Self {
            below,
            changed: BTreeMap::new(),
            removed: BTreeSet::new(),
        }
    }

    /// The storage below.
    pub fn below(&self) -> &S {
        &self.below
    }

    fn exists(&self, object: ObjectName) -> bool {
        self.changed.contains_key(&object) || !self.removed.contains(&object)
    }
}

fn failed(op: StorageOp, object: ObjectName, offset: u64, kind: io::ErrorKind) -> StorageError {
    StorageError {
        op,
        object,
        offset,
        source: kind.into(),
    }
}

impl<S: Storage> Storage for Overlay<S> {
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StorageError> {
        let below = self.below.list()?;
        let mut objects: BTreeMap<ObjectName, u64> = below
            .into_iter()
            .filter(|(object, _)| !self.removed.contains(object))
            .collect();
        for (object, changed) in &self.changed {
            let known = objects.get(object).copied().unwrap_or_default();
            objects.insert(*object, changed.len.unwrap_or(known));
        }
        Ok(objects.into_iter().collect())
    }

    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let there = self.list()?.iter().any(|(name, _)| *name == object);
        if there {
            return Err(failed(
                StorageOp::Create,
                object,
                len,
                io::ErrorKind::AlreadyExists,
            ));
        }
        let made = Changed {
            len: Some(len),
            ..Changed::default()
        };
        self.changed.insert(object, made);
        Ok(())
    }

    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let Some(changed) = self.changed.get(&object) else {
            if !self.exists(object) {
                return Err(failed(StorageOp::Read, object, offset, io::ErrorKind::NotFound));
            }
            return self.below.read(object, offset, buf);
        };
        if changed.len.is_some_and(|len| offset + u64_of(buf.len()) > len) {
            return Err(failed(
                StorageOp::Read,
                object,
                offset,
                io::ErrorKind::UnexpectedEof,
            ));
        }
        for (at, piece) in (offset / BLOCK..).zip(buf.chunks_mut(BLOCK_SIZE)) {
            match changed.blocks.get(&at) {
                Some(block) => piece.copy_from_slice(&block[..piece.len()]),
                None if changed.over => self.below.read(object, at * BLOCK, piece)?,
                None => piece.fill(0),
            }
        }
        Ok(())
    }

    fn write(&mut self, object: ObjectName, offset: u64, parts: &[&[u8]]) -> Result<(), StorageError> {
        if !self.exists(object) {
            return Err(failed(StorageOp::Write, object, offset, io::ErrorKind::NotFound));
        }
        let changed = self.changed.entry(object).or_insert_with(|| Changed {
            over: true,
            ..Changed::default()
        });
        for (at, block) in (offset / BLOCK..).zip(parts.concat().chunks(BLOCK_SIZE)) {
            changed.blocks.insert(at, block.to_vec());
        }
        Ok(())
    }

    fn sync(&mut self, _object: ObjectName) -> Result<(), StorageError> {
        Ok(())
    }

    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let changed = self.changed.entry(object).or_insert_with(|| Changed {
            over: true,
            ..Changed::default()
        });
        changed.len = Some(len);
        changed.blocks.retain(|at, _| at * BLOCK < len);
        Ok(())
    }

    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.changed.remove(&object);
        self.removed.insert(object);
        Ok(())
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}
