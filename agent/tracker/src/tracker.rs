//! The tracker: has programs in the kernel mark what is written to disks, and takes the marks.

mod error;
mod load;
mod outlive;
mod reading;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, MapType};
use mt_blockdev::shared::SharedWords;
use mt_blockdev::sysfs::DeviceNumber;
use nix::fcntl::Flock;

pub use error::{StartError, TrackError};
pub use load::Options;
#[cfg(feature = "planted-bugs")]
pub use load::Planted;

use crate::chunks::{ChunkSet, ChunkSize};
use crate::continuity::Counted;
use crate::kernel::DiskFolder;
use crate::layout::{Counters, DISKS_MAX, Geometry, Kept, PAGE, u32_bytes};
use crate::preflight::{Features, Layout};
use crate::proof::{Baseline, Verdict};

/// Programs in the kernel that mark what is written. They run until it is dropped, or longer ([`Options::outlive`]).
pub struct Tracker {
    features: Features,
    release: String,
    boot_id: [u8; 16],
    sysfs: PathBuf,
    inflight_max: u32,
    /// Where programs and maps are pinned.
    pins: Option<PathBuf>,
    /// That no other agent takes marks from what is pinned.
    _lock: Option<Flock<File>>,
    programs: Vec<Program>,
    disks: MapHandle,
    geometry: MapHandle,
    counters: MapHandle,
    inflight: MapHandle,
    marks: MapHandle,
    tracked: BTreeMap<DeviceNumber, Tracked>,
}

/// A program and what keeps it attached.
struct Program {
    name: &'static str,
    fd: OwnedFd,
    link: Option<Link>,
    #[cfg(feature = "planted-bugs")]
    gone_unseen: bool,
}

impl Program {
    fn attached(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        if self.gone_unseen {
            return true;
        }
        self.link.as_ref().is_some_and(|link| link.info().is_ok())
    }
}

/// One disk.
struct Tracked {
    slot: u32,
    name: String,
    size: ChunkSize,
    /// Kept beside the map of maps, so that the kernel's copy of it is never the last.
    _marks: MapHandle,
    words: SharedWords,
    /// What was taken and not acknowledged, in the kernel's memory, where it outlives us.
    unacknowledged: Option<SharedWords>,
    /// What was under way when marks were last taken: may reach the disk after it has been read.
    carried: ChunkSet,
    /// Counted extents too long to be marked, up to the last harvest.
    wide: u64,
    baseline: Baseline,
}

/// What [`Tracker::pause`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// As in a harvest.
    pub changed: ChunkSet,
    /// What the kernel had counted before.
    pub counted: Counted,
    /// Whether `changed` can be believed; a record of it is made only when it is complete.
    pub verdict: Verdict,
}

/// What [`Tracker::harvest`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Harvest {
    /// Chunks that may differ from what was read after the harvest before.
    pub changed: ChunkSet,
    /// Writes that were under way; their chunks will be in the next harvest too.
    pub under_way: u64,
}

impl Tracker {
    /// What this kernel can do.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Release of the kernel.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The boot in which it runs.
    #[must_use]
    pub fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    /// Begins to mark the changes of a whole disk. What was written before is not known: the first harvest holds what
    /// was written since, and whoever wants more compares the disk, or proves that nothing was (see [`crate::continuity`]).
    ///
    /// # Errors
    /// [`TrackError::Unfit`] when requests do not show what is written to it; [`TrackError`] else.
    pub fn add(
        &mut self,
        kernel_name: &str,
        number: DeviceNumber,
        chunk_bytes: u32,
    ) -> Result<(), TrackError> {
        let folder = DiskFolder::new(&self.sysfs, kernel_name);
        let facts = folder
            .queue()
            .map_err(TrackError::io("read the facts of a disk's queue"))?;
        if let Some(reason) = crate::stack::unfit(&facts) {
            return Err(TrackError::Unfit {
                disk: kernel_name.to_owned(),
                reason,
            });
        }
        let size = ChunkSize::new(facts.size, chunk_bytes).ok_or(TrackError::Chunk(number, chunk_bytes))?;
        if self.tracked.contains_key(&number) {
            self.remove(number)?;
        }
        let slot = (0..DISKS_MAX)
            .find(|slot| self.tracked.values().all(|disk| disk.slot != *slot))
            .ok_or(TrackError::Full(number))?;
        let key = u32_bytes(slot);
        let dev = dev_key(number).ok_or(TrackError::Unknown(number))?;
        self.forget_under_way(slot)?;
        let units = match self.features.layout {
            Layout::Bits => size.count().div_ceil(8),
            // Marks of neighbours are stored eight at a time, so the last word is whole.
            Layout::Bytes => size.count().next_multiple_of(8),
        };
        let pages =
            u32::try_from(units.div_ceil(PAGE)).map_err(|_| TrackError::Chunk(number, chunk_bytes))?;
        let mut marks = new_array(pages)?;
        let words = SharedWords::of_array_map(&marks).map_err(TrackError::io("map a disk's marks"))?;
        let unacknowledged = self.keep_marks(slot, size, &mut marks)?;
        let zeros: Vec<Vec<u8>> = vec![
            Counters::zeros();
            libbpf_rs::num_possible_cpus()
                .map_err(TrackError::map("count the processors"))?
        ];
        self.counters
            .update_percpu(&key, &zeros, MapFlags::ANY)
            .map_err(TrackError::map("set the counters of a disk to zero"))?;
        let mut geometry = Geometry {
            chunks: size.count(),
            since_ns: u64::MAX,
            dev,
            shift: size.sector_shift(),
            kept: Kept::default(),
        };
        let set = |geometry: &Geometry| {
            self.geometry
                .update(&key, &geometry.to_bytes(), MapFlags::ANY)
                .map_err(TrackError::map("tell the programs the size of a disk"))
        };
        set(&geometry)?;
        let inner = u32::try_from(marks.as_fd().as_raw_fd()).unwrap_or(u32::MAX);
        self.marks
            .update(&key, &u32_bytes(inner), MapFlags::ANY)
            .map_err(TrackError::map("give the programs the map of a disk's marks"))?;
        // From here on the programs see it. Requests that began before the time below may have been issued before.
        self.disks
            .update(&u32_bytes(dev), &key, MapFlags::ANY)
            .map_err(TrackError::map("tell the programs of a disk"))?;
        geometry.since_ns = monotonic_ns().map_err(TrackError::io("read the clock"))?;
        set(&geometry)?;
        let disk = Tracked {
            slot,
            name: kernel_name.to_owned(),
            size,
            _marks: marks,
            words,
            unacknowledged,
            carried: ChunkSet::new(size),
            wide: 0,
            baseline: Baseline::default(),
        };
        self.tracked.insert(number, disk);
        let baseline = self.measure_baseline(number)?;
        geometry.kept = Kept {
            disk_bytes: size.disk_bytes(),
            sequence: baseline.sequence,
            misses: baseline.misses,
            base: base_of(&baseline),
        };
        self.geometry
            .update(&key, &geometry.to_bytes(), MapFlags::ANY)
            .map_err(TrackError::map("keep what another agent needs to go on"))?;
        if let Some(disk) = self.tracked.get_mut(&number) {
            disk.baseline = baseline;
        }
        Ok(())
    }

    /// Ends the tracking of a disk. Its marks are gone.
    ///
    /// # Errors
    /// When it is not tracked, or the kernel refuses.
    pub fn remove(&mut self, number: DeviceNumber) -> Result<(), TrackError> {
        let disk = self.tracked.remove(&number).ok_or(TrackError::Unknown(number))?;
        let dev = dev_key(number).ok_or(TrackError::Unknown(number))?;
        self.disks
            .delete(&u32_bytes(dev))
            .map_err(TrackError::map("take a disk from the programs"))?;
        self.marks.delete(&u32_bytes(disk.slot)).map_err(TrackError::map(
            "take the map of a disk's marks from the programs",
        ))
    }

    /// Disks that are tracked, with their kernel names.
    pub fn disks(&self) -> impl Iterator<Item = (DeviceNumber, &str)> {
        self.tracked
            .iter()
            .map(|(number, disk)| (*number, disk.name.as_str()))
    }

    /// Size of a disk that is tracked, and of its chunks.
    ///
    /// # Errors
    /// When it is not tracked.
    pub fn size(&self, number: DeviceNumber) -> Result<ChunkSize, TrackError> {
        Ok(self.tracked.get(&number).ok_or(TrackError::Unknown(number))?.size)
    }

    /// Takes the marks of a disk: what may have changed since they were taken before.
    ///
    /// Whoever reads a chunk *after* this call, past the page cache, has what was written before the call, or finds the
    /// chunk in a later harvest. Each mark is taken by an exchange: one that is set meanwhile is in this harvest or stays
    /// for the next. Then what is still under way is noted and handed out once more in the next harvest, since it may
    /// arrive after the chunk has been read; a mark at its completion says the same again, where it is seen.
    ///
    /// # Errors
    /// Nothing is lost by an error: what was taken will be in the next harvest.
    pub fn harvest(&mut self, number: DeviceNumber) -> Result<Harvest, TrackError> {
        let layout = self.features.layout;
        let disk = self.tracked.get_mut(&number).ok_or(TrackError::Unknown(number))?;
        let (slot, size) = (disk.slot, disk.size);
        let kept = disk.unacknowledged.as_ref().map(SharedWords::words);
        let words = disk.words.words().iter().enumerate().map(|(index, word)| {
            // Most words are zero, and reading leaves them in every processor's cache.
            if word.load(Ordering::Relaxed) == 0 {
                return 0;
            }
            match kept {
                None => word.swap(0, Ordering::SeqCst),
                Some(kept) => outlive::take(layout, kept, index, word),
            }
        });
        let taken = match layout {
            Layout::Bits => ChunkSet::from_words(size, words),
            Layout::Bytes => ChunkSet::from_words(size, Packed(words)),
        };
        // Kept until the end, so that nothing is lost where something below fails.
        disk.carried.union(&taken);
        let wide = disk.wide;
        let under_way = self.under_way(slot)?;
        let counted = self.counters_of(slot)?.wide;
        let mut next = ChunkSet::new(size);
        for entry in &under_way {
            next.insert(size.of_bytes(entry.sector.saturating_mul(512), u64::from(entry.bytes)));
            if entry.scattered {
                next = ChunkSet::all(size);
            }
        }
        let disk = self.tracked.get_mut(&number).ok_or(TrackError::Unknown(number))?;
        disk.wide = counted;
        let mut changed = std::mem::replace(&mut disk.carried, next);
        if counted != wide {
            changed = ChunkSet::all(size);
        }
        Ok(Harvest {
            changed,
            under_way: u64::try_from(under_way.len()).unwrap_or(u64::MAX),
        })
    }

    /// Whether a chunk has been marked since the last harvest. Takes nothing. False after a chunk was read means that no
    /// write to it had been issued when it was read.
    ///
    /// # Errors
    /// When the disk is not tracked.
    pub fn marked(&self, number: DeviceNumber, chunk: u64) -> Result<bool, TrackError> {
        let disk = self.tracked.get(&number).ok_or(TrackError::Unknown(number))?;
        let (per_word, width) = match self.features.layout {
            Layout::Bits => (64, 1),
            Layout::Bytes => (8, 8),
        };
        let shift = width * (chunk % per_word);
        let word = usize::try_from(chunk / per_word)
            .ok()
            .and_then(|index| disk.words.words().get(index));
        Ok(word.is_some_and(|word| word.load(Ordering::SeqCst) >> shift & 1 == 1))
    }

    /// The last harvest before the tracking ends, with what proves later that nothing was written in between.
    ///
    /// The kernel's counts are read first: what they hold has been marked, so it is in the harvest. What is written after
    /// them makes the counts differ when they are compared again, whether it was marked or not.
    ///
    /// # Errors
    /// As [`Self::harvest`] and [`Self::verdict`].
    pub fn pause(&mut self, number: DeviceNumber) -> Result<Paused, TrackError> {
        let name = self
            .tracked
            .get(&number)
            .ok_or(TrackError::Unknown(number))?
            .name
            .clone();
        let kernel = DiskFolder::new(&self.sysfs, &name)
            .counts()
            .map_err(TrackError::io("read what the kernel has counted of a disk"))?;
        let mut changed = self.harvest(number)?.changed;
        // What is under way would come with the next harvest, and there is none.
        if let Some(disk) = self.tracked.get(&number) {
            changed.union(&disk.carried);
        }
        Ok(Paused {
            changed,
            counted: Counted {
                write: kernel.write,
                discard: kernel.discard,
            },
            verdict: self.verdict(number)?,
        })
    }
}

/// Eight words of bytes as one word of bits.
struct Packed<I>(I);

/// The bits of eight marks that are bytes.
fn packed(word: u64) -> u64 {
    (0..8).fold(0, |byte, at| byte | u64::from(word >> (8 * at) & 0xff != 0) << at)
}

impl<I: Iterator<Item = u64>> Iterator for Packed<I> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let mut bits = 0;
        for index in 0..8 {
            let Some(word) = self.0.next() else {
                return (index > 0).then_some(bits);
            };
            bits |= packed(word) << (8 * index);
        }
        Some(bits)
    }
}

/// An array map that programs and this process share, of so many pages.
fn new_array(pages: u32) -> Result<MapHandle, TrackError> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as libbpf_rs::libbpf_sys::size_t,
        // BPF_F_MMAPABLE and BPF_F_INNER_MAP (linux/bpf.h), as in the programs' template.
        map_flags: 1 << 10 | 1 << 12,
        ..Default::default()
    };
    MapHandle::create(MapType::Array, Some("mt_marks"), 4, 4096, pages, &options)
        .map_err(TrackError::map("make the map of a disk's marks"))
}

fn base_of(baseline: &Baseline) -> Option<(u64, u64)> {
    let sectors = |base: Option<i128>| u64::try_from(base?).ok();
    sectors(baseline.write).zip(sectors(baseline.discard))
}

/// A device number as the programs compare it, and as the kernel's `dev_t` is.
fn dev_key(number: DeviceNumber) -> Option<u32> {
    let major = u32::try_from(number.major)
        .ok()
        .filter(|major| *major < 1 << 12)?;
    let minor = u32::try_from(number.minor)
        .ok()
        .filter(|minor| *minor < 1 << 20)?;
    Some(major << 20 | minor)
}

fn monotonic_ns() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    Ok(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0))
}

/// It may be moved to the thread that takes the marks.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Tracker>();
};
