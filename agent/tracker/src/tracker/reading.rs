//! Reads what the programs and the kernel have counted.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libbpf_rs::{MapCore, MapFlags};
use mt_blockdev::sysfs::DeviceNumber;

use super::{Program, TrackError, Tracked, Tracker};
use crate::continuity::Counted;
use crate::kernel::{DiskFolder, boot_id};
use crate::layout::{Counters, Entry, u32_bytes};
use crate::proof::{Baseline, Doubt, Evidence, Leftovers, Reading, Verdict};

/// Readings that [`Tracker::verdict`] takes before it gives up, and the time between two: half a second in all.
const READINGS_MAX: u32 = 500;
const READINGS_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

impl Tracker {
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
            sequence: folder.sequence(),
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

    pub(super) fn measure_baseline(&self, number: DeviceNumber) -> Result<Baseline, TrackError> {
        let disk = self.tracked.get(&number).ok_or(TrackError::Unknown(number))?;
        let mut baseline = Baseline {
            boot_id: self.boot_id,
            sequence: DiskFolder::new(&self.sysfs, &disk.name).sequence(),
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

    pub(super) fn counters_of(&self, slot: u32) -> Result<Counters, TrackError> {
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
    pub(super) fn under_way(&self, slot: u32) -> Result<Vec<Entry>, TrackError> {
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

    pub(super) fn forget_under_way(&self, slot: u32) -> Result<(), TrackError> {
        for (key, entry) in self.notes()? {
            if entry.slot == slot {
                // It may have been used again meanwhile, by another disk; that one's completion will count as unmatched.
                let _ = self.inflight.delete(&key);
            }
        }
        Ok(())
    }
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
