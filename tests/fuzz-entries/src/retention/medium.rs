// SPDX-License-Identifier: MIT OR Apache-2.0
//! Storage and disks in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mt_retention::{Catalogue, ObjectName, Storage, StorageError, StorageOp, TargetDisk, fuzz};

use super::{Patch, SIZE};

/// Most bytes of an object: what is written to a damaged store stays small.
const OBJECT_BYTES_MAX: u64 = 4 << 20;
const SECTOR: usize = 512;

/// The objects of a store and the summaries of its catalogue. Copies share what neither has changed.
#[derive(Debug, Clone, Default)]
pub(super) struct Medium {
    pub(super) objects: BTreeMap<ObjectName, Arc<Vec<u8>>>,
    pub(super) summaries: BTreeMap<u64, Vec<u8>>,
}

impl Medium {
    /// The object that a change is about; `None` for a summary.
    pub(super) fn object_of(&self, patch: &Patch) -> Option<ObjectName> {
        let (Patch::Write { object, .. }
        | Patch::Copy { object, .. }
        | Patch::Zero { object, .. }
        | Patch::Cut { object, .. }
        | Patch::Name { object, .. }
        | Patch::Remove { object }) = patch;
        self.name(*object)
    }

    fn name(&self, object: u8) -> Option<ObjectName> {
        let count = (self.objects.len() + self.summaries.len()).max(1);
        self.objects.keys().nth(usize::from(object) % count).copied()
    }

    fn bytes(&mut self, object: u8) -> Option<&mut Vec<u8>> {
        if let Some(name) = self.name(object) {
            return self.objects.get_mut(&name).map(Arc::make_mut);
        }
        let count = (self.objects.len() + self.summaries.len()).max(1);
        let at = (usize::from(object) % count).checked_sub(self.objects.len())?;
        self.summaries.values_mut().nth(at)
    }

    pub(super) fn apply(&mut self, patch: &Patch) {
        match patch {
            Patch::Write { object, at, bytes } => {
                if let Some(content) = self.bytes(*object).filter(|content| !content.is_empty()) {
                    let at = *at as usize % content.len();
                    for (place, byte) in content[at..].iter_mut().zip(bytes) {
                        *place = *byte;
                    }
                }
            }
            Patch::Copy {
                object,
                sector,
                from,
                from_sector,
            } => {
                let taken = self
                    .bytes(*from)
                    .and_then(|content| sector_of(content, *from_sector));
                let taken = taken.map(|sector| sector.to_vec());
                if let Some(taken) = taken
                    && let Some(place) = self
                        .bytes(*object)
                        .and_then(|content| sector_of(content, *sector))
                {
                    place.copy_from_slice(&taken);
                }
            }
            Patch::Zero { object, sector } => {
                if let Some(place) = self
                    .bytes(*object)
                    .and_then(|content| sector_of(content, *sector))
                {
                    place.fill(0);
                }
            }
            Patch::Cut { object, len } => {
                if let Some(content) = self.bytes(*object).filter(|content| !content.is_empty()) {
                    content.truncate(*len as usize % content.len());
                }
            }
            Patch::Name { object, segment } => {
                let content = self
                    .name(*object)
                    .and_then(|name| self.objects.get(&name).cloned());
                if let Some(content) = content {
                    self.objects
                        .entry(ObjectName::Segment(*segment))
                        .or_insert(content);
                }
            }
            Patch::Remove { object } => {
                if let Some(name) = self.name(*object) {
                    self.objects.remove(&name);
                }
            }
        }
    }

    /// Makes the checksums fit of what is not as in `before`.
    pub(super) fn reseal(&mut self, before: &Self) {
        for (name, bytes) in &mut self.objects {
            if before.objects.get(name) != Some(bytes) {
                let content: &mut Vec<u8> = Arc::make_mut(bytes);
                fuzz::reseal(*name, content);
            }
        }
        for (seq, summary) in &mut self.summaries {
            if before.summaries.get(seq) != Some(summary) {
                fuzz::reseal_summary(summary);
            }
        }
    }

    fn get(&self, op: StorageOp, object: ObjectName) -> Result<&Arc<Vec<u8>>, StorageError> {
        self.objects
            .get(&object)
            .ok_or_else(|| failed(op, object, 0, io::ErrorKind::NotFound))
    }

    fn get_mut(&mut self, op: StorageOp, object: ObjectName) -> Result<&mut Vec<u8>, StorageError> {
        let content = self.objects.get_mut(&object);
        content
            .map(Arc::make_mut)
            .ok_or_else(|| failed(op, object, 0, io::ErrorKind::NotFound))
    }
}

/// A whole sector of an object; counted around, so that every number is one.
fn sector_of(content: &mut [u8], sector: u16) -> Option<&mut [u8]> {
    let count = content.len() / SECTOR;
    let at = usize::from(sector).checked_rem(count)? * SECTOR;
    content.get_mut(at..at + SECTOR)
}

fn failed(op: StorageOp, object: ObjectName, offset: u64, kind: io::ErrorKind) -> StorageError {
    StorageError {
        op,
        object,
        offset,
        source: kind.into(),
    }
}

fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len)?)
}

impl Storage for Medium {
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StorageError> {
        Ok(self
            .objects
            .iter()
            .map(|(name, bytes)| (*name, bytes.len() as u64))
            .collect())
    }

    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        if self.objects.contains_key(&object) {
            return Err(failed(
                StorageOp::Create,
                object,
                len,
                io::ErrorKind::AlreadyExists,
            ));
        }
        let bytes = usize::try_from(len.min(OBJECT_BYTES_MAX + 1)).unwrap_or(usize::MAX);
        if len > OBJECT_BYTES_MAX {
            return Err(failed(StorageOp::Create, object, len, io::ErrorKind::StorageFull));
        }
        self.objects.insert(object, Arc::new(vec![0; bytes]));
        Ok(())
    }

    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let content = self.get(StorageOp::Read, object)?;
        let found = range(offset, buf.len()).and_then(|range| content.get(range));
        let found =
            found.ok_or_else(|| failed(StorageOp::Read, object, offset, io::ErrorKind::UnexpectedEof))?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn write(&mut self, object: ObjectName, offset: u64, parts: &[&[u8]]) -> Result<(), StorageError> {
        let bytes = parts.concat();
        let content = self.get_mut(StorageOp::Write, object)?;
        let place = range(offset, bytes.len()).and_then(|range| content.get_mut(range));
        let place =
            place.ok_or_else(|| failed(StorageOp::Write, object, offset, io::ErrorKind::UnexpectedEof))?;
        place.copy_from_slice(&bytes);
        Ok(())
    }

    fn sync(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.get(StorageOp::Sync, object).map(|_| ())
    }

    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let content = self.get_mut(StorageOp::Cut, object)?;
        content.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(())
    }

    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.get(StorageOp::Remove, object)?;
        self.objects.remove(&object);
        Ok(())
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

impl Catalogue for Medium {
    fn summary(&self, segment: u64) -> Option<Vec<u8>> {
        self.summaries.get(&segment).cloned()
    }
}

/// A medium that its store writes and somebody else looks at afterwards.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Medium>>);

impl Shared {
    /// What is there now.
    pub(super) fn medium(&self) -> Medium {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for Shared {
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StorageError> {
        self.lock().list()
    }

    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        self.lock().create(object, len)
    }

    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.lock().read(object, offset, buf)
    }

    fn write(&mut self, object: ObjectName, offset: u64, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.lock().write(object, offset, parts)
    }

    fn sync(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.lock().sync(object)
    }

    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        self.lock().cut(object, len)
    }

    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.lock().remove(object)
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        self.lock().sync_dir()
    }
}

/// A disk in memory.
#[derive(Debug)]
pub(super) struct Ram(Mutex<Vec<u8>>);

impl Ram {
    /// A disk full of one byte.
    pub(super) fn filled(byte: u8) -> Self {
        Self(Mutex::new(vec![byte; SIZE]))
    }

    /// What is on it.
    pub(super) fn content(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetDisk for Ram {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let content = self.lock();
        let found = range(offset, buf.len()).and_then(|range| content.get(range));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.lock();
        let place = range(offset, data.len()).and_then(|range| content.get_mut(range));
        place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut content = self.lock();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let place = range(offset, len).and_then(|range| content.get_mut(range));
        place.ok_or(io::ErrorKind::UnexpectedEof)?.fill(0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
