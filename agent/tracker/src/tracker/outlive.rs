//! Lets the programs outlive the agent, and another agent go on with them.
//!
//! Programs and maps are pinned in a BPF file system: the kernel calls the programs as before when nobody has them open, so
//! nothing is missed while an agent is started anew, killed or exchanged. What the agent has taken and not yet brought to
//! the replica would be gone with its memory; so it is copied into a map of its own before the marks are cleared, and stays
//! there until [`Tracker::acknowledge`]. A boot ends all of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::{Link, MapCore, MapFlags, MapHandle};
use mt_blockdev::shared::SharedWords;
use mt_blockdev::sysfs::{DeviceNumber, Sysfs};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Program, StartError, TrackError, Tracked, Tracker, new_array, packed};
use crate::chunks::{ChunkSet, ChunkSize};
use crate::kernel::boot_id;
use crate::layout::{Geometry, PAGE, u32_bytes, u32_of};
use crate::preflight::{Facts, Layout, judge};
use crate::proof::Baseline;

/// Layout of the maps and meaning of the pins. Raised with every change of either; pins of another number are not adopted.
const FORMAT: &str = "tracker-1";
const PROGRAMS: [&str; 3] = ["complete", "requeue", "issue"];

/// Copies the marks of one word to where they are kept, then clears just these. A mark that is set in between stays.
pub(super) fn take(layout: Layout, kept: &[AtomicU64], index: usize, word: &AtomicU64) -> u64 {
    let marks = word.load(Ordering::SeqCst);
    let (place, bits) = match layout {
        Layout::Bits => (index, marks),
        Layout::Bytes => (index / 8, packed(marks) << (8 * (index % 8))),
    };
    if let Some(place) = kept.get(place) {
        place.fetch_or(bits, Ordering::SeqCst);
    }
    word.fetch_and(!marks, Ordering::SeqCst);
    marks
}

fn home(folder: &Path, layout: Layout) -> PathBuf {
    folder.join(FORMAT).join(match layout {
        Layout::Bits => "bits",
        Layout::Bytes => "bytes",
    })
}

/// Keeps other agents away. The kernel lets go of it when this process ends.
fn lock(home: &Path) -> Result<Flock<File>, StartError> {
    let io = |source| StartError::Io {
        what: "the folder of the tracker",
        source,
    };
    let folder = File::open(home).map_err(io)?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => StartError::InUse(home.to_owned()),
        errno => io(errno.into()),
    })
}

fn os(error: &io::Error) -> libbpf_rs::Error {
    libbpf_rs::Error::from_raw_os_error(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

impl Tracker {
    /// Pins everything in this folder, or nothing. The links come last: without all of them nobody adopts.
    pub(super) fn pin(&mut self, folder: &Path) -> Result<(), StartError> {
        let home = home(folder, self.features.layout);
        let keep = |source| StartError::Keep {
            folder: folder.to_owned(),
            source,
        };
        // What is there belongs to another tracker, which goes on.
        if home.exists() {
            return Err(keep(libbpf_rs::Error::from_raw_os_error(nix::libc::EEXIST)));
        }
        fs::create_dir_all(&home).map_err(|error| keep(os(&error)))?;
        let pinned = lock(&home).and_then(|lock| {
            self._lock = Some(lock);
            self.pin_parts(&home).map_err(keep)
        });
        match pinned {
            Ok(()) => self.pins = Some(home),
            Err(error) => {
                let _ = fs::remove_dir_all(&home);
                return Err(error);
            }
        }
        Ok(())
    }

    fn pin_parts(&mut self, home: &Path) -> libbpf_rs::Result<()> {
        self.disks.pin(home.join("disks"))?;
        self.geometry.pin(home.join("geometry"))?;
        self.counters.pin(home.join("counters"))?;
        self.inflight.pin(home.join("inflight"))?;
        self.marks.pin(home.join("marks"))?;
        for (program, name) in self.programs.iter_mut().zip(PROGRAMS) {
            if let Some(link) = &mut program.link {
                link.pin(home.join(name))?;
            }
        }
        Ok(())
    }

    /// Goes on with a tracker that outlived its agent; `None` when there is none in this folder that this agent understands.
    /// Then [`Self::discard`] makes room for a new one.
    ///
    /// The first harvest of each disk holds what the other agent had taken and not acknowledged.
    ///
    /// # Errors
    /// When there is one and it cannot be opened, or another agent uses it.
    pub fn adopt(folder: &Path) -> Result<Option<Self>, StartError> {
        let facts = Facts::gather();
        let mut features = judge(&facts)?;
        let found = [Layout::Bits, Layout::Bytes].into_iter().find(|layout| {
            let home = home(folder, *layout);
            PROGRAMS.iter().all(|name| home.join(name).exists())
        });
        let Some(layout) = found else { return Ok(None) };
        features.layout = layout;
        let home = home(folder, layout);
        let lock = lock(&home)?;
        let release = facts.release.clone();
        let refused = |source| StartError::Kernel {
            what: "to hand over the parts",
            release,
            lockdown: "",
            source,
        };
        let boot_id = boot_id().map_err(|source| StartError::Io {
            what: "the boot id",
            source,
        })?;
        let open = || -> libbpf_rs::Result<Self> {
            let map = |name: &str| MapHandle::from_pinned_path(home.join(name));
            let inflight = map("inflight")?;
            let mut tracker = Self {
                features,
                release: facts.release.clone(),
                boot_id,
                sysfs: PathBuf::from("/sys"),
                inflight_max: inflight.max_entries(),
                pins: Some(home.clone()),
                _lock: None,
                programs: Vec::new(),
                disks: map("disks")?,
                geometry: map("geometry")?,
                counters: map("counters")?,
                inflight,
                marks: map("marks")?,
                tracked: BTreeMap::new(),
            };
            for name in PROGRAMS {
                let link = Link::open(home.join(name))?;
                let fd = libbpf_rs::Program::fd_from_id(link.info()?.prog_id)?;
                tracker.programs.push(Program {
                    name,
                    fd,
                    link: Some(link),
                    #[cfg(feature = "planted-bugs")]
                    gone_unseen: false,
                });
            }
            tracker.adopt_disks()?;
            Ok(tracker)
        };
        let mut tracker = open().map_err(refused)?;
        tracker._lock = Some(lock);
        Ok(Some(tracker))
    }

    fn adopt_disks(&mut self) -> libbpf_rs::Result<()> {
        let invalid = || libbpf_rs::Error::from_raw_os_error(nix::libc::EINVAL);
        for key in self.disks.keys().collect::<Vec<_>>() {
            let slot = self.disks.lookup(&key, MapFlags::ANY)?;
            let slot = slot.as_deref().and_then(u32_of).ok_or_else(invalid)?;
            let geometry = self.geometry.lookup(&u32_bytes(slot), MapFlags::ANY)?;
            let geometry = geometry
                .as_deref()
                .and_then(Geometry::from_bytes)
                .ok_or_else(invalid)?;
            let number = DeviceNumber {
                major: u64::from(geometry.dev >> 20),
                minor: u64::from(geometry.dev & 0xf_ffff),
            };
            let chunk_bytes = 512_u32.checked_shl(geometry.shift).ok_or_else(invalid)?;
            let size = ChunkSize::new(geometry.kept.disk_bytes, chunk_bytes);
            // One that is gone, or whose adding was cut before it was whole, is not tracked any more.
            let name = Sysfs::default().name_of(number).map(|(name, _)| name);
            let (Some(size), Some(name), Some((write, discard))) = (size, name, geometry.kept.base) else {
                self.disks.delete(&key)?;
                self.drop_marks(slot);
                continue;
            };
            let marks = MapHandle::from_pinned_path(self.pin_of("marks", slot))?;
            let words = SharedWords::of_array_map(&marks).map_err(|error| os(&error))?;
            let kept = MapHandle::from_pinned_path(self.pin_of("taken", slot))?;
            let kept = SharedWords::of_array_map(kept.as_fd()).map_err(|error| os(&error))?;
            let carried =
                ChunkSet::from_words(size, kept.words().iter().map(|word| word.load(Ordering::SeqCst)));
            let disk = Tracked {
                slot,
                name,
                size,
                _marks: marks,
                words,
                unacknowledged: Some(kept),
                carried,
                wide: 0,
                baseline: Baseline {
                    // Pins do not outlive a boot.
                    boot_id: self.boot_id,
                    sequence: geometry.kept.sequence,
                    size: geometry.kept.disk_bytes,
                    misses: geometry.kept.misses,
                    write: Some(i128::from(write)),
                    discard: Some(i128::from(discard)),
                },
            };
            self.tracked.insert(number, disk);
        }
        Ok(())
    }

    /// Ends what was left in this folder, of whatever format. Nothing is tracked by it any more.
    ///
    /// # Errors
    /// When it cannot be removed. That there is nothing is no error.
    pub fn discard(folder: &Path) -> io::Result<()> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Tells that everything harvested of a disk has reached the replica durably, but for `pending`. What is pending comes
    /// again when another agent adopts the tracker.
    ///
    /// # Errors
    /// When the disk is not tracked.
    pub fn acknowledge(&mut self, number: DeviceNumber, pending: &ChunkSet) -> Result<(), TrackError> {
        let disk = self.tracked.get(&number).ok_or(TrackError::Unknown(number))?;
        let Some(kept) = &disk.unacknowledged else {
            return Ok(());
        };
        let words = pending.words().iter().copied().chain(std::iter::repeat(0));
        for (place, word) in kept.words().iter().zip(words) {
            place.store(word, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Makes the map for what is taken and not acknowledged, and pins it and the marks; nothing where nothing outlives us.
    pub(super) fn keep_marks(
        &self,
        slot: u32,
        size: ChunkSize,
        marks: &mut MapHandle,
    ) -> Result<Option<SharedWords>, TrackError> {
        if self.pins.is_none() {
            return Ok(None);
        }
        self.drop_marks(slot);
        let keep = TrackError::map;
        let pages = u32::try_from(size.count().div_ceil(8 * PAGE)).unwrap_or(u32::MAX);
        let mut kept = new_array(pages)?;
        marks
            .pin(self.pin_of("marks", slot))
            .map_err(keep("keep the map of a disk's marks"))?;
        kept.pin(self.pin_of("taken", slot))
            .map_err(keep("keep the map of what was taken"))?;
        let words = SharedWords::of_array_map(&kept).map_err(TrackError::io("map what was taken"))?;
        Ok(Some(words))
    }

    pub(super) fn drop_marks(&self, slot: u32) {
        if self.pins.is_some() {
            let _ = fs::remove_file(self.pin_of("marks", slot));
            let _ = fs::remove_file(self.pin_of("taken", slot));
        }
    }

    fn pin_of(&self, what: &str, slot: u32) -> PathBuf {
        self.pins
            .clone()
            .unwrap_or_default()
            .join(format!("{what}-{slot}"))
    }
}
