//! The tracker: loads the programs, and takes the marks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use libbpf_rs::btf::types::{FuncProto, Ptr, Typedef};
use libbpf_rs::{
    Btf, Link, MapCore, MapFlags, MapHandle, MapType, ObjectBuilder, OpenObject, ReferencesType,
};
use mt_blockdev::shared::SharedWords;
use mt_blockdev::sysfs::DeviceNumber;

use crate::chunks::{ChunkSet, ChunkSize};
use crate::continuity::Counted;
use crate::kernel::{DiskFolder, boot_id};
use crate::layout::{Counters, DISKS_MAX, Entry, Geometry, PAGE, u32_bytes};
use crate::preflight::{DIGEST_MODE, Facts, Features, Layout, Refusal, judge};
use crate::proof::{Baseline, Doubt, Evidence, Leftovers, Reading, Verdict};

/// The compiled programs, aligned as ELF wants it.
#[repr(align(8))]
struct Aligned<const N: usize>([u8; N]);
static BITS: &Aligned<{ include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bits.o")).len() }> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bits.o")));
static BYTES: &Aligned<{ include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bytes.o")).len() }> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tracker-bytes.o")));

/// Requests that can be noted, over all disks, where more is not asked for: 3 MB of the kernel's memory.
const INFLIGHT_DEFAULT: u32 = 32_768;
/// More is not asked of the kernel's memory: 2 million notes take 200 MB.
const INFLIGHT_MAX: u32 = 1 << 21;
/// Readings that [`Tracker::verdict`] takes before it gives up, and the time between two: half a second in all.
const READINGS_MAX: u32 = 500;
const READINGS_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// Why no tracker could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine does not allow one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The kernel refused the programs.
    #[error("the kernel (release {release}{lockdown}) refused {what} of the tracker: {source}")]
    Kernel {
        /// Which part.
        what: &'static str,
        /// What uname says.
        release: String,
        /// Empty, or that the kernel is locked down.
        lockdown: &'static str,
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
    /// This machine's sysfs or procfs is not as expected.
    #[error("cannot read {what}: {source}")]
    Io {
        /// What was read.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl StartError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.hint(),
            Self::Kernel { lockdown, .. } if !lockdown.is_empty() => {
                format!(
                    "a kernel locked down to confidentiality may forbid it; boot with lockdown=integrity; {DIGEST_MODE}"
                )
            }
            Self::Kernel { .. } => format!(
                "look into the kernel's log and the limits of the container, if it is one; {DIGEST_MODE}"
            ),
            Self::Io { .. } => format!("mount /proc and /sys; {DIGEST_MODE}"),
        }
    }
}

/// What went wrong with a tracker that runs.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The disk cannot be tracked.
    #[error("disk {disk} cannot be tracked: {reason}; it is compared by digests instead")]
    Unfit {
        /// Kernel name.
        disk: String,
        /// Why not.
        reason: crate::stack::Unfit,
    },
    /// The disk is not tracked.
    #[error("disk {0} is not tracked")]
    Unknown(DeviceNumber),
    /// All places are taken.
    #[error("disk {0} cannot be tracked: {DISKS_MAX} disks are tracked already")]
    Full(DeviceNumber),
    /// The size of its chunks makes no sense, or it is empty.
    #[error(
        "disk {0} cannot be tracked in chunks of {1} bytes: a chunk is a power of two from 4096 bytes to 64 MiB"
    )]
    Chunk(DeviceNumber, u32),
    /// The kernel refused an operation on the maps.
    #[error("cannot {what}: {source}")]
    Map {
        /// What was attempted.
        what: &'static str,
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
    /// Sysfs or procfs could not be read, or memory not be mapped.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel did not list the notes of writes under way.
    #[error("cannot list the writes under way: the kernel gave no list")]
    Unlisted,
}

impl TrackError {
    fn map(what: &'static str) -> impl FnOnce(libbpf_rs::Error) -> Self {
        move |source| Self::Map { what, source }
    }

    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// How a tracker is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How marks are kept; what suits the kernel when nothing is said.
    pub layout: Option<Layout>,
    /// Requests that can be noted, over all disks: at least the sum of [`crate::kernel::QueueFacts::requests_max`], better
    /// twice as many, since a disk whose queue is set up anew gets new requests.
    pub inflight_max: Option<u32>,
    /// What is wrong with this tracker on purpose.
    #[cfg(feature = "planted-bugs")]
    pub planted: Planted,
}

/// Faults of a tracker that its tests must find.
#[cfg(feature = "planted-bugs")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    /// Marks nothing when a request is issued.
    pub no_issue_marks: bool,
    /// Marks nothing when a request completes.
    pub no_completion_marks: bool,
    /// Does not note what is under way.
    pub no_inflight: bool,
    /// Throws every so many issues away; 0 for none.
    pub skip_issue_each: u32,
    /// Throws every so many completions away; 0 for none.
    pub skip_completion_each: u32,
    /// Sees nothing of requests whose first sector is a multiple of this; 0 for none.
    pub skip_sector_each: u32,
}

/// Programs in the kernel that mark what is written. They run until it is dropped.
pub struct Tracker {
    features: Features,
    release: String,
    boot_id: [u8; 16],
    sysfs: PathBuf,
    inflight_max: u32,
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
    /// Loads the programs and has them called. No disk is tracked yet.
    ///
    /// # Errors
    /// [`StartError`] says what is missing; its hint says what to do.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let facts = Facts::gather();
        let mut features = judge(&facts)?;
        if let Some(layout) = options.layout {
            features.layout = layout;
        }
        let refused = |what: &'static str| {
            let (release, confidential) = (facts.release.clone(), facts.confidential());
            move |source| StartError::Kernel {
                what,
                release,
                lockdown: if confidential {
                    ", locked down to confidentiality"
                } else {
                    ""
                },
                source,
            }
        };
        let boot_id = boot_id().map_err(|source| StartError::Io {
            what: "the boot id",
            source,
        })?;
        let queue_first = queue_comes_first().map_err(refused("to tell the types"))?;
        // What libbpf prints is for those who write programs; the errors say what can be acted on.
        libbpf_rs::set_print(None);
        let object: &[u8] = match features.layout {
            Layout::Bits => &BITS.0,
            Layout::Bytes => &BYTES.0,
        };
        let mut open = ObjectBuilder::default()
            .open_memory(object)
            .map_err(refused("to open the object"))?;
        let inflight_max = options
            .inflight_max
            .unwrap_or(INFLIGHT_DEFAULT)
            .clamp(1, INFLIGHT_MAX)
            + 1;
        prepare(&mut open, queue_first, inflight_max, options).map_err(refused("the settings"))?;
        let object = open.load().map_err(refused("the programs"))?;
        let map = |name: &str| {
            let found = object.maps().find(|map| map.name() == name);
            let found = found.ok_or_else(|| libbpf_rs::Error::from_raw_os_error(nix::libc::ENOENT))?;
            MapHandle::try_from(&found)
        };
        let take = |name: &str| map(name).map_err(refused("the maps"));
        let mut tracker = Self {
            features,
            release: facts.release.clone(),
            boot_id,
            sysfs: PathBuf::from("/sys"),
            inflight_max,
            programs: Vec::new(),
            disks: take("disks")?,
            geometry: take("geometry")?,
            counters: take("counters")?,
            inflight: take("inflight")?,
            marks: take("marks")?,
            tracked: BTreeMap::new(),
        };
        tracker
            .inflight
            .update(&Entry::SENTINEL, &Entry::zeros(), MapFlags::ANY)
            .map_err(refused("the maps"))?;
        // Issues last: what is issued before completions are seen would stay under way for ever.
        let names = if queue_first {
            ["complete", "requeue_5_10", "issue_5_10"]
        } else {
            ["complete", "requeue", "issue"]
        };
        for name in names {
            let program = object.progs_mut().find(|program| program.name() == name);
            let program = program
                .ok_or_else(|| libbpf_rs::Error::from_raw_os_error(nix::libc::ENOENT))
                .map_err(refused("the programs"))?;
            let link = program
                .attach_trace()
                .map_err(refused("to attach the programs"))?;
            let fd = program.as_fd().try_clone_to_owned();
            let fd = fd.map_err(|source| StartError::Io {
                what: "a descriptor of a program",
                source,
            })?;
            tracker.programs.push(Program {
                name,
                fd,
                link: Some(link),
                #[cfg(feature = "planted-bugs")]
                gone_unseen: false,
            });
        }
        Ok(tracker)
    }

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
        let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as libbpf_rs::libbpf_sys::size_t,
            // BPF_F_MMAPABLE and BPF_F_INNER_MAP (linux/bpf.h), as in the template.
            map_flags: 1 << 10 | 1 << 12,
            ..Default::default()
        };
        let marks = MapHandle::create(MapType::Array, Some("mt_marks"), 4, 4096, pages, &options)
            .map_err(TrackError::map("make the map of a disk's marks"))?;
        let words = SharedWords::of_array_map(&marks).map_err(TrackError::io("map a disk's marks"))?;
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
            carried: ChunkSet::new(size),
            wide: 0,
            baseline: Baseline::default(),
        };
        self.tracked.insert(number, disk);
        let baseline = self.measure_baseline(number)?;
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
        let words = disk.words.words().iter().map(|word| {
            // Most words are zero, and reading leaves them in every processor's cache.
            if word.load(Ordering::Relaxed) == 0 {
                0
            } else {
                word.swap(0, Ordering::SeqCst)
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

    /// What the programs have counted for a disk since it was added.
    ///
    /// # Errors
    /// When the disk is not tracked, or the kernel refuses.
    pub fn counters(&self, number: DeviceNumber) -> Result<Counters, TrackError> {
        self.counters_of(self.tracked.get(&number).ok_or(TrackError::Unknown(number))?.slot)
    }

    /// Whether the marks of a disk can be believed: compares what the programs have seen with what the kernel has counted
    /// since the disk was added. Waits up to half a second for a moment in which both can be compared exactly.
    ///
    /// # Errors
    /// When the disk is not tracked; what cannot be read is a doubt, not an error.
    pub fn verdict(&self, number: DeviceNumber) -> Result<Verdict, TrackError> {
        let disk = self.tracked.get(&number).ok_or(TrackError::Unknown(number))?;
        let mut verdict = Verdict::Doubt(Doubt::Unreadable);
        for _ in 0..READINGS_MAX {
            let Some(evidence) = self.evidence(disk) else {
                return Ok(Verdict::Doubt(Doubt::Unreadable));
            };
            verdict = crate::proof::judge(&disk.baseline, &evidence);
            match verdict {
                Verdict::Unsettled(_) => std::thread::sleep(READINGS_PAUSE),
                Verdict::Complete | Verdict::Doubt(_) => return Ok(verdict),
            }
        }
        Ok(match verdict {
            Verdict::Unsettled(unsettled) => Verdict::Doubt(Doubt::NeverSettled(unsettled)),
            other => other,
        })
    }

    /// What the kernel had counted of a disk when it was added; `None` when that could not be read.
    ///
    /// # Errors
    /// When the disk is not tracked.
    pub fn counted_when_added(&self, number: DeviceNumber) -> Result<Option<Counted>, TrackError> {
        let baseline = self
            .tracked
            .get(&number)
            .ok_or(TrackError::Unknown(number))?
            .baseline;
        let counted = |sectors: Option<i128>| u64::try_from(sectors?).ok();
        Ok(counted(baseline.write)
            .zip(counted(baseline.discard))
            .map(|(write, discard)| Counted { write, discard }))
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

    /// Takes a program away and leaves the others, as a mishap would.
    #[cfg(feature = "planted-bugs")]
    pub fn detach(&mut self, name: &str) -> bool {
        self.programs
            .iter_mut()
            .filter(|program| program.name.starts_with(name))
            .any(|program| program.link.take().is_some())
    }

    /// Takes a program away behind the tracker's back, as it would look if the kernel did not call it any more.
    #[cfg(feature = "planted-bugs")]
    pub fn detach_unseen(&mut self, name: &str) -> bool {
        self.programs
            .iter_mut()
            .filter(|program| program.name.starts_with(name))
            .any(|program| {
                program.gone_unseen = true;
                program.link.take().is_some()
            })
    }

    /// Runs of the programs and nanoseconds spent in them, where the kernel counts them (`kernel.bpf_stats_enabled`).
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn cost(&self) -> io::Result<Vec<(&'static str, u64, u64)>> {
        let one = |program: &Program| {
            let text = fs::read_to_string(fdinfo(&program.fd))?;
            let field = |name| fdinfo_field(&text, name).unwrap_or(0);
            Ok((program.name, field("run_cnt:"), field("run_time_ns:")))
        };
        self.programs.iter().map(one).collect()
    }

    fn evidence(&self, disk: &Tracked) -> Option<Evidence> {
        let folder = DiskFolder::new(&self.sysfs, &disk.name);
        let queue = folder.queue().ok()?;
        Some(Evidence {
            boot_id: boot_id().ok()?,
            size: queue.size,
            iostats: queue.iostats,
            misses: self.misses()?,
            attached: self.programs.iter().all(Program::attached),
            reading: self.reading(disk).ok()?,
        })
    }

    fn reading(&self, disk: &Tracked) -> Result<Reading, TrackError> {
        let before = self.counters_of(disk.slot)?;
        let mut leftovers = Leftovers::default();
        for entry in self.under_way(disk.slot)? {
            let sectors = u64::from(entry.bytes) / 512;
            *if entry.discard {
                &mut leftovers.discard
            } else {
                &mut leftovers.write
            } += sectors;
        }
        let kernel = DiskFolder::new(&self.sysfs, &disk.name)
            .counts()
            .map_err(TrackError::io("read what the kernel has counted of a disk"))?;
        Ok(Reading {
            before,
            leftovers,
            kernel,
            after: self.counters_of(disk.slot)?,
        })
    }

    fn measure_baseline(&self, number: DeviceNumber) -> Result<Baseline, TrackError> {
        let disk = self.tracked.get(&number).ok_or(TrackError::Unknown(number))?;
        let mut baseline = Baseline {
            boot_id: self.boot_id,
            size: disk.size.disk_bytes(),
            misses: self.misses().unwrap_or(0),
            write: None,
            discard: None,
        };
        for _ in 0..READINGS_MAX {
            if baseline.improve(&self.reading(disk)?) {
                break;
            }
        }
        Ok(baseline)
    }

    /// How often the kernel skipped one of the programs; 0 where it does not count that.
    fn misses(&self) -> Option<u64> {
        let mut sum = 0_u64;
        for program in &self.programs {
            let text = fs::read_to_string(fdinfo(&program.fd)).ok()?;
            sum += fdinfo_field(&text, "recursion_misses:").unwrap_or(0);
        }
        Some(sum)
    }

    fn counters_of(&self, slot: u32) -> Result<Counters, TrackError> {
        let values = self
            .counters
            .lookup_percpu(&u32_bytes(slot), MapFlags::ANY)
            .map_err(TrackError::map("read the counters of a disk"))?;
        values.as_deref().and_then(Counters::sum).ok_or(TrackError::Io {
            what: "read the counters of a disk",
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    /// Writes under way on a disk.
    ///
    /// All notes come in one call of the kernel, bucket by bucket under its lock, so that one which is there all the time is
    /// never missed (kernel/bpf/hashtab.c, `__htab_map_lookup_and_delete_batch`).
    fn under_way(&self, slot: u32) -> Result<Vec<Entry>, TrackError> {
        let notes = self.notes()?.into_iter().map(|(_, entry)| entry);
        Ok(notes
            .filter(|entry| entry.slot == slot && entry.bytes > 0)
            .collect())
    }

    fn notes(&self) -> Result<Vec<(Vec<u8>, Entry)>, TrackError> {
        let batch = self
            .inflight
            .lookup_batch(self.inflight_max, MapFlags::ANY, MapFlags::ANY)
            .map_err(TrackError::map("list the writes under way"))?;
        let mut found = Vec::new();
        let mut whole = false;
        for (key, value) in batch {
            whole |= key == Entry::SENTINEL;
            let Some(entry) = Entry::from_bytes(&value) else {
                continue;
            };
            if key != Entry::SENTINEL {
                found.push((key, entry));
            }
        }
        // The list ends in the same way after an error and when all was told; after an error nothing was.
        if whole {
            Ok(found)
        } else {
            Err(TrackError::Unlisted)
        }
    }

    fn forget_under_way(&self, slot: u32) -> Result<(), TrackError> {
        for (key, entry) in self.notes()? {
            if entry.slot == slot {
                // It may have been used again meanwhile, by another disk; that one's completion will count as unmatched.
                let _ = self.inflight.delete(&key);
            }
        }
        Ok(())
    }
}

/// Eight words of bytes as one word of bits.
struct Packed<I>(I);

impl<I: Iterator<Item = u64>> Iterator for Packed<I> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let mut bits = 0;
        for index in 0..8 {
            let Some(word) = self.0.next() else {
                return (index > 0).then_some(bits);
            };
            let byte = (0..8).fold(0, |byte, at| byte | u64::from(word >> (8 * at) & 0xff != 0) << at);
            bits |= byte << (8 * index);
        }
        Some(bits)
    }
}

/// Sets what the programs cannot find out by themselves.
fn prepare(
    open: &mut OpenObject,
    queue_first: bool,
    inflight_max: u32,
    options: &Options,
) -> libbpf_rs::Result<()> {
    for mut program in open.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        // The programs on issue and requeue are there for both orders of arguments.
        let wanted = name == "complete" || name.ends_with("_5_10") == queue_first;
        program.set_autoload(wanted);
    }
    for mut map in open.maps_mut() {
        if map.name() == "inflight" {
            map.set_max_entries(inflight_max)?;
        }
        #[cfg(feature = "planted-bugs")]
        if map.name().to_string_lossy().ends_with(".rodata")
            && let Some(bytes) = map.initial_value_mut()
        {
            let planted = &options.planted;
            let values = [
                u32::from(planted.no_issue_marks),
                u32::from(planted.no_completion_marks),
                u32::from(planted.no_inflight),
                planted.skip_issue_each,
                planted.skip_completion_each,
                planted.skip_sector_each,
            ];
            for (place, value) in bytes.chunks_mut(4).zip(values) {
                place.copy_from_slice(&u32_bytes(value));
            }
        }
    }
    let _ = options;
    Ok(())
}

/// Whether this kernel hands the queue to its tracepoints before the request, as it did until 5.10.
fn queue_comes_first() -> libbpf_rs::Result<bool> {
    let btf = Btf::from_vmlinux()?;
    let arguments = btf
        .type_by_name::<Typedef<'_>>("btf_trace_block_rq_issue")
        .and_then(|name| Ptr::try_from(name.referenced_type()).ok())
        .and_then(|pointer| FuncProto::try_from(pointer.referenced_type()).ok())
        .map(|function| function.iter().len())
        .ok_or_else(|| libbpf_rs::Error::from_raw_os_error(nix::libc::ENOENT))?;
    // The first is the program's own.
    Ok(arguments > 2)
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

fn fdinfo(fd: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fdinfo").join(fd.as_raw_fd().to_string())
}

fn fdinfo_field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .trim()
        .parse()
        .ok()
}
