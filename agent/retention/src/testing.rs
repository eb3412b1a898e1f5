//! Simulated storage and disks with a volatile cache, and a power switch.
//!
//! What was not flushed survives a crash in any part and any order, torn at 512 bytes: [`SimStorage::crash`] and
//! [`SimDisk::crash`] decide by numbers that the caller hands in, so that a seed says all. A [`Power`] that several of them
//! share cuts at the n-th operation that changes anything.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{u64_of, usize_of};
use crate::storage::{ObjectName, Storage, StorageError, StorageOp, TargetDisk};

/// Unit that a write is torn at, bytes.
pub const SECTOR: usize = 512;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A small random generator whose seed is all its state (SplitMix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator; equal seeds give equal numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug, Default)]
struct PowerState {
    changes: u64,
    cut_at: Option<u64>,
    dead: bool,
    fail_sync_at: Option<u64>,
    syncs: u64,
}

/// The power of a machine: what shares it dies together.
#[derive(Debug, Clone, Default)]
pub struct Power(Arc<Mutex<PowerState>>);

impl Power {
    /// Power that is never cut.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cuts at the n-th change, counted from 0: it fails, and everything after it.
    pub fn cut_at(&self, change: u64) {
        lock(&self.0).cut_at = Some(change);
    }

    /// Lets the n-th flush of storage fail, counted from 0, without cutting; what it should have flushed is lost for the
    /// kernel, as after a write error.
    pub fn fail_sync_at(&self, sync: u64) {
        lock(&self.0).fail_sync_at = Some(sync);
    }

    /// Changes so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        lock(&self.0).changes
    }

    /// Flushes of storage so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        lock(&self.0).syncs
    }

    /// Whether it was cut.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        lock(&self.0).dead
    }

    fn check(&self) -> io::Result<()> {
        if self.is_dead() { Err(gone()) } else { Ok(()) }
    }

    /// Counts a change; the one at which power is cut may still leave a part of itself.
    fn change(&self) -> io::Result<bool> {
        let mut state = lock(&self.0);
        if state.dead {
            return Err(gone());
        }
        let now = state.changes;
        state.changes += 1;
        state.dead = state.cut_at == Some(now);
        Ok(state.dead)
    }

    fn sync_fails(&self) -> bool {
        let mut state = lock(&self.0);
        let now = state.syncs;
        state.syncs += 1;
        state.fail_sync_at == Some(now)
    }
}

fn gone() -> io::Error {
    io::Error::other("power is gone")
}

/// A range of bytes with a volatile cache over it.
#[derive(Debug, Clone, Default)]
struct Cached {
    // Shared until changed: most of what a crash leaves is what was there.
    durable: Arc<Vec<u8>>,
    live: Arc<Vec<u8>>,
    /// Writes since the last flush: offset and bytes.
    pending: Vec<(usize, Vec<u8>)>,
    cut: bool,
    /// A flush failed: the live content holds what will never be durable.
    lost: bool,
}

impl Cached {
    fn new(len: usize) -> Self {
        Self {
            durable: Arc::new(vec![0; len]),
            live: Arc::new(vec![0; len]),
            pending: Vec::new(),
            cut: false,
            lost: false,
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let Some(target) = Arc::make_mut(&mut self.live).get_mut(offset..offset + data.len()) else {
            return false;
        };
        target.copy_from_slice(data);
        self.pending.push((offset, data.to_vec()));
        true
    }

    fn read(&self, offset: usize, buf: &mut [u8]) -> bool {
        match self.live.get(offset..offset + buf.len()) {
            Some(source) => {
                buf.copy_from_slice(source);
                true
            }
            None => false,
        }
    }

    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if self.lost {
            // What a failed flush lost is seen by readers, and no later flush writes it.
            let durable = Arc::make_mut(&mut self.durable);
            durable.resize(self.live.len(), 0);
            for (offset, data) in pending {
                if let Some(target) = durable.get_mut(offset..offset + data.len()) {
                    target.copy_from_slice(&data);
                }
            }
        } else {
            self.durable = Arc::clone(&self.live);
        }
        self.cut = false;
    }

    /// Keeps a part of what was not flushed.
    fn crash(&mut self, rng: &mut Rng) {
        let mut pending = std::mem::take(&mut self.pending);
        // Order counts only where writes overlap; any order is possible.
        for at in (1..pending.len()).rev() {
            pending.swap(at, usize_of(rng.below(u64_of(at) + 1)));
        }
        if self.live.len() > self.durable.len() {
            Arc::make_mut(&mut self.durable).resize(self.live.len(), 0);
        }
        if self.cut && rng.one_in(2) {
            Arc::make_mut(&mut self.durable).truncate(self.live.len());
        }
        // Whole losses and whole survivals are as interesting as mixtures, and rarer by chance.
        let mood = rng.below(4);
        for (offset, data) in pending {
            let fate = match mood {
                0 => 0,
                1 => 1,
                _ => rng.below(3),
            };
            if fate == 0 {
                continue;
            }
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if fate == 1 || rng.one_in(2) {
                    let at = offset + index * SECTOR;
                    if let Some(target) = Arc::make_mut(&mut self.durable).get_mut(at..at + sector.len()) {
                        target.copy_from_slice(sector);
                    }
                }
            }
        }
        self.live = Arc::clone(&self.durable);
        self.cut = false;
        self.lost = false;
    }
}

#[derive(Debug, Clone)]
enum DirChange {
    Created(ObjectName, u64),
    Removed(ObjectName, u64),
}

#[derive(Debug, Clone, Default)]
struct Folder {
    inodes: BTreeMap<u64, Cached>,
    live: BTreeMap<ObjectName, u64>,
    durable: BTreeMap<ObjectName, u64>,
    pending: Vec<DirChange>,
    next_inode: u64,
    capacity: Option<u64>,
}

/// Storage in memory. Clones share it, as a second open of the same folder would.
#[derive(Debug, Clone, Default)]
pub struct SimStorage {
    folder: Arc<Mutex<Folder>>,
    power: Power,
}

impl SimStorage {
    /// Empty storage.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty storage on a power that is shared.
    #[must_use]
    pub fn with_power(power: &Power) -> Self {
        Self {
            folder: Arc::default(),
            power: power.clone(),
        }
    }

    /// The same content, on another power.
    #[must_use]
    pub fn copy(&self, power: &Power) -> Self {
        Self {
            folder: Arc::new(Mutex::new(lock(&self.folder).clone())),
            power: power.clone(),
        }
    }

    /// Most bytes that all objects may have together.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        lock(&self.folder).capacity = bytes;
    }

    /// What power loss leaves: a part of what was not flushed, on a new power.
    #[must_use]
    pub fn crash(&self, rng: &mut Rng, power: &Power) -> Self {
        let copy = self.copy(power);
        {
            let mut folder = lock(&copy.folder);
            let pending = std::mem::take(&mut folder.pending);
            let mood = rng.below(3);
            for change in pending {
                let kept = mood == 1 || (mood == 2 && rng.one_in(2));
                match change {
                    DirChange::Created(object, inode) if kept => {
                        folder.durable.insert(object, inode);
                    }
                    DirChange::Removed(object, inode)
                        if kept && folder.durable.get(&object) == Some(&inode) =>
                    {
                        folder.durable.remove(&object);
                    }
                    _ => {}
                }
            }
            folder.live = folder.durable.clone();
            let named: Vec<u64> = folder.live.values().copied().collect();
            folder.inodes.retain(|inode, _| named.contains(inode));
            for cached in folder.inodes.values_mut() {
                cached.crash(rng);
            }
        }
        copy
    }

    /// Changes bytes of an object behind everybody's back, on the medium itself.
    pub fn damage(&self, object: ObjectName, change: impl FnOnce(&mut Vec<u8>)) {
        let mut folder = lock(&self.folder);
        if let Some(inode) = folder.live.get(&object).copied()
            && let Some(cached) = folder.inodes.get_mut(&inode)
        {
            cached.flush();
            change(Arc::make_mut(&mut cached.durable));
            cached.live = Arc::clone(&cached.durable);
        }
    }

    /// Gives an object's content another name as well, durably.
    pub fn duplicate(&self, from: ObjectName, to: ObjectName) {
        let mut folder = lock(&self.folder);
        let inode = folder.next_inode;
        folder.next_inode += 1;
        let found = folder.live.get(&from).copied();
        if let Some(mut cached) = found.and_then(|inode| folder.inodes.get(&inode).cloned()) {
            cached.flush();
            folder.inodes.insert(inode, cached);
            folder.live.insert(to, inode);
            folder.durable.insert(to, inode);
        }
    }

    /// Takes an object away behind everybody's back.
    pub fn lose(&self, object: ObjectName) {
        let mut folder = lock(&self.folder);
        folder.live.remove(&object);
        folder.durable.remove(&object);
    }

    fn with<T>(
        &self,
        op: StorageOp,
        object: ObjectName,
        offset: u64,
        call: impl FnOnce(&mut Cached) -> io::Result<T>,
    ) -> Result<T, StorageError> {
        let mut folder = lock(&self.folder);
        let found = folder.live.get(&object).copied();
        let cached = found.and_then(|inode| folder.inodes.get_mut(&inode));
        cached
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .and_then(call)
            .map_err(|source| error(op, object, offset, source))
    }

    fn change(&self, op: StorageOp, object: ObjectName, offset: u64) -> Result<bool, StorageError> {
        self.power
            .change()
            .map_err(|source| error(op, object, offset, source))
    }
}

fn error(op: StorageOp, object: ObjectName, offset: u64, source: io::Error) -> StorageError {
    StorageError {
        op,
        object,
        offset,
        source,
    }
}

impl Storage for SimStorage {
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StorageError> {
        let fail = |source| error(StorageOp::List, ObjectName::Super(0), 0, source);
        self.power.check().map_err(fail)?;
        let folder = lock(&self.folder);
        Ok(folder
            .live
            .iter()
            .map(|(object, inode)| {
                (
                    *object,
                    folder.inodes.get(inode).map_or(0, |c| u64_of(c.live.len())),
                )
            })
            .collect())
    }

    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let op = StorageOp::Create;
        let dies = self.change(op, object, len)?;
        let mut folder = lock(&self.folder);
        if folder.live.contains_key(&object) {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(error(op, object, len, source));
        }
        let used: u64 = folder
            .live
            .values()
            .filter_map(|inode| folder.inodes.get(inode))
            .map(|cached| u64_of(cached.live.len()))
            .sum();
        if folder.capacity.is_some_and(|capacity| used + len > capacity) {
            return Err(error(
                op,
                object,
                len,
                io::Error::from(io::ErrorKind::StorageFull),
            ));
        }
        let inode = folder.next_inode;
        folder.next_inode += 1;
        let mut cached = Cached::new(usize_of(len));
        // Its length is not durable either.
        cached.durable = Arc::default();
        folder.inodes.insert(inode, cached);
        folder.live.insert(object, inode);
        folder.pending.push(DirChange::Created(object, inode));
        if dies {
            Err(error(op, object, len, gone()))
        } else {
            Ok(())
        }
    }

    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let op = StorageOp::Read;
        self.power
            .check()
            .map_err(|source| error(op, object, offset, source))?;
        self.with(op, object, offset, |cached| {
            if cached.read(usize_of(offset), buf) {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof))
            }
        })
    }

    fn write(&mut self, object: ObjectName, offset: u64, parts: &[&[u8]]) -> Result<(), StorageError> {
        let op = StorageOp::Write;
        let dies = self.change(op, object, offset)?;
        self.with(op, object, offset, |cached| {
            if cached.write(usize_of(offset), &parts.concat()) {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
        })?;
        if dies {
            Err(error(op, object, offset, gone()))
        } else {
            Ok(())
        }
    }

    fn sync(&mut self, object: ObjectName) -> Result<(), StorageError> {
        let op = StorageOp::Sync;
        if self.change(op, object, 0)? {
            return Err(error(op, object, 0, gone()));
        }
        if self.power.sync_fails() {
            // As the kernel does: told once, then the pages are clean and their content is nowhere.
            self.with(op, object, 0, |cached| {
                cached.pending.clear();
                cached.lost = true;
                Ok(())
            })?;
            return Err(error(op, object, 0, io::Error::from_raw_os_error(5)));
        }
        self.with(op, object, 0, |cached| {
            cached.flush();
            Ok(())
        })
    }

    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let op = StorageOp::Cut;
        let dies = self.change(op, object, len)?;
        self.with(op, object, len, |cached| {
            Arc::make_mut(&mut cached.live).truncate(usize_of(len));
            cached.cut = true;
            Ok(())
        })?;
        if dies {
            Err(error(op, object, len, gone()))
        } else {
            Ok(())
        }
    }

    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError> {
        let op = StorageOp::Remove;
        let dies = self.change(op, object, 0)?;
        let mut folder = lock(&self.folder);
        let Some(inode) = folder.live.remove(&object) else {
            return Err(error(op, object, 0, io::Error::from(io::ErrorKind::NotFound)));
        };
        folder.pending.push(DirChange::Removed(object, inode));
        if dies {
            Err(error(op, object, 0, gone()))
        } else {
            Ok(())
        }
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        let op = StorageOp::SyncDir;
        let object = ObjectName::Super(0);
        if self.change(op, object, 0)? {
            return Err(error(op, object, 0, gone()));
        }
        let mut folder = lock(&self.folder);
        folder.pending.clear();
        folder.durable = folder.live.clone();
        Ok(())
    }
}

/// A disk in memory with a volatile cache.
#[derive(Debug, Clone)]
pub struct SimDisk {
    bytes: Arc<Mutex<Cached>>,
    power: Power,
}

impl SimDisk {
    /// A disk of zeros.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self::with_power(size, &Power::new())
    }

    /// A disk of zeros on a power that is shared.
    #[must_use]
    pub fn with_power(size: usize, power: &Power) -> Self {
        Self {
            bytes: Arc::new(Mutex::new(Cached::new(size))),
            power: power.clone(),
        }
    }

    /// What power loss leaves, on a new power.
    #[must_use]
    pub fn crash(&self, rng: &mut Rng, power: &Power) -> Self {
        let copy = self.copy(power);
        lock(&copy.bytes).crash(rng);
        copy
    }

    /// The same content and cache, on another power.
    #[must_use]
    pub fn copy(&self, power: &Power) -> Self {
        Self {
            bytes: Arc::new(Mutex::new(lock(&self.bytes).clone())),
            power: power.clone(),
        }
    }

    /// What a reader sees.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        lock(&self.bytes).live.to_vec()
    }

    /// Fills the disk, durably, without counting as a change.
    pub fn fill(&self, content: &[u8]) {
        let mut bytes = lock(&self.bytes);
        bytes.write(0, content);
        bytes.flush();
    }
}

impl TargetDisk for SimDisk {
    fn size(&self) -> u64 {
        u64_of(lock(&self.bytes).live.len())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.power.check()?;
        if lock(&self.bytes).read(usize_of(offset), buf) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let dies = self.power.change()?;
        if !lock(&self.bytes).write(usize_of(offset), data) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        if dies { Err(gone()) } else { Ok(()) }
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write(offset, &vec![0; usize_of(len)])
    }

    fn flush(&self) -> io::Result<()> {
        if self.power.change()? {
            return Err(gone());
        }
        lock(&self.bytes).flush();
        Ok(())
    }
}
