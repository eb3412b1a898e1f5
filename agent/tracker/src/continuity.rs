//! Whether a set of changes from before may be gone on with. Pure.
//!
//! Between the end of a tracking and the beginning of the next nobody marks. What was written in between shows in what the
//! kernel has counted, within one boot. Over a boot the counts begin at zero: then nothing may have been written since, and
//! nobody may have been able to write after the set was taken. A disk from which the machine boots is not gone on with:
//! boot loaders write to it (GRUB its `grubenv`) where no kernel counts.
//!
//! What cannot be known here: whether the disk was written elsewhere while the machine was down, by another system that was
//! started on it, or by whoever restored it from a snapshot.

use crate::record::{DiskIdentity, Record, State};

/// Sectors that the kernel has counted of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Written.
    pub write: u64,
    /// Discarded.
    pub discard: u64,
}

/// What is true when the tracking has begun again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// The boot.
    pub boot_id: [u8; 16],
    /// The disk.
    pub disk: DiskIdentity,
    /// Its size, bytes.
    pub size: u64,
    /// Whether the machine boots from it: it holds `/boot`, an ESP or a boot loader.
    pub boots: bool,
    /// State of the replica, as its keeper says.
    pub generation: u64,
    /// What the kernel had counted when the tracking began ([`crate::tracker::Tracker::counted_when_added`]).
    pub counted: Option<Counted>,
}

/// Why a set is not gone on with: the disk is compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// The agent or the machine died.
    #[error("the record of changes was open when the agent ended: it was killed, or the machine crashed")]
    Open,
    /// Another disk is there.
    #[error("the record of changes is of disk {was:?}, this is {is:?}")]
    OtherDisk {
        /// In the record.
        was: String,
        /// Now.
        is: String,
    },
    /// The disk has no identity that outlives the boot.
    #[error("the disk has neither SCSI ID nor serial number, so it is not known to be the same after a boot")]
    Nameless,
    /// It was detached and attached.
    #[error("the disk was detached and attached since the record of changes was made")]
    Reattached,
    /// It has another size.
    #[error("the disk had {was} bytes when the record of changes was made, now {is}")]
    Resized {
        /// In the record.
        was: u64,
        /// Now.
        is: u64,
    },
    /// The replica is in another state.
    #[error("the record of changes belongs to generation {was} of the replica, which has {is}")]
    OtherGeneration {
        /// In the record.
        was: u64,
        /// Now.
        is: u64,
    },
    /// The kernel's counts are not known.
    #[error("what the kernel has counted of the disk could not be read")]
    Unreadable,
    /// Written while nobody marked.
    #[error("{write} sectors were written and {discard} discarded while changes were not tracked")]
    WrittenBetween {
        /// Sectors.
        write: u64,
        /// Sectors.
        discard: u64,
    },
    /// The disk could be written after the record was made, up to the end of the boot.
    #[error(
        "the machine was started anew, and the disk could still be written after the record of changes was made"
    )]
    NotSealed,
    /// The machine boots from it.
    #[error("the machine was started from this disk, and a boot loader may have written to it")]
    BootDisk,
    /// Written before the tracking began.
    #[error("{write} sectors were written and {discard} discarded in this boot before the tracking began")]
    WrittenBeforeAttach {
        /// Sectors.
        write: u64,
        /// Sectors.
        discard: u64,
    },
}

/// Decides whether the set of a record, together with what has been marked since the tracking began again, is all that
/// differs from the replica.
///
/// # Errors
/// The first reason why not.
pub fn resume(record: &Record, now: &Now) -> Result<(), Gap> {
    if record.state == State::Open {
        return Err(Gap::Open);
    }
    if record.disk.name != now.disk.name {
        return Err(Gap::OtherDisk {
            was: record.disk.name.clone(),
            is: now.disk.name.clone(),
        });
    }
    let was = record.changed.size().disk_bytes();
    if was != now.size {
        return Err(Gap::Resized { was, is: now.size });
    }
    if record.generation != now.generation {
        return Err(Gap::OtherGeneration {
            was: record.generation,
            is: now.generation,
        });
    }
    let counted = now.counted.ok_or(Gap::Unreadable)?;
    if record.boot_id == now.boot_id {
        if record.disk.sequence != now.disk.sequence {
            return Err(Gap::Reattached);
        }
        // Counts below those of the record are no less wrong: the kernel's statistics were begun anew.
        let (write, discard) = (
            counted.write.abs_diff(record.counted.write),
            counted.discard.abs_diff(record.counted.discard),
        );
        if (write, discard) != (0, 0) {
            return Err(Gap::WrittenBetween { write, discard });
        }
        return Ok(());
    }
    if record.state != State::Sealed {
        return Err(Gap::NotSealed);
    }
    if now.disk.name.is_empty() {
        return Err(Gap::Nameless);
    }
    if now.boots {
        return Err(Gap::BootDisk);
    }
    if counted != Counted::default() {
        return Err(Gap::WrittenBeforeAttach {
            write: counted.write,
            discard: counted.discard,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunks::{ChunkSet, ChunkSize};

    const COUNTED: Counted = Counted {
        write: 800,
        discard: 40,
    };

    fn record(state: State) -> Record {
        Record {
            state,
            generation: 5,
            boot_id: [1; 16],
            disk: DiskIdentity {
                name: "naa.1".to_owned(),
                sequence: 3,
            },
            counted: COUNTED,
            changed: ChunkSet::new(ChunkSize::new(1 << 30, 65_536).unwrap()),
        }
    }

    fn same_boot() -> Now {
        Now {
            boot_id: [1; 16],
            disk: DiskIdentity {
                name: "naa.1".to_owned(),
                sequence: 3,
            },
            size: 1 << 30,
            boots: false,
            generation: 5,
            counted: Some(COUNTED),
        }
    }

    fn next_boot() -> Now {
        Now {
            boot_id: [2; 16],
            counted: Some(Counted::default()),
            ..same_boot()
        }
    }

    fn now(from: fn() -> Now, change: impl FnOnce(&mut Now)) -> Now {
        let mut now = from();
        change(&mut now);
        now
    }

    #[test]
    fn what_can_be_proved_is_gone_on_with() {
        assert_eq!(resume(&record(State::Paused), &same_boot()), Ok(()));
        assert_eq!(resume(&record(State::Sealed), &same_boot()), Ok(()));
        assert_eq!(resume(&record(State::Sealed), &next_boot()), Ok(()));
        // Numbers of attachments begin anew with a boot; within one the disk may be the boot disk.
        assert_eq!(
            resume(
                &record(State::Sealed),
                &now(next_boot, |now| now.disk.sequence = 8)
            ),
            Ok(())
        );
        assert_eq!(
            resume(&record(State::Paused), &now(same_boot, |now| now.boots = true)),
            Ok(())
        );
    }

    #[test]
    fn every_gap_is_told() {
        let nameless = |from: fn() -> Now| now(from, |now| now.disk.name.clear());
        let mut unnamed = record(State::Sealed);
        unnamed.disk.name.clear();
        assert_eq!(resume(&unnamed, &nameless(next_boot)), Err(Gap::Nameless));
        assert_eq!(resume(&unnamed, &nameless(same_boot)), Ok(()));
        let other = Gap::OtherDisk {
            was: "naa.1".to_owned(),
            is: "naa.2".to_owned(),
        };
        let table = [
            (State::Open, same_boot(), Gap::Open),
            (State::Open, next_boot(), Gap::Open),
            (
                State::Sealed,
                now(same_boot, |now| now.disk.name = "naa.2".to_owned()),
                other,
            ),
            (
                State::Sealed,
                now(same_boot, |now| now.size += 512),
                Gap::Resized {
                    was: 1 << 30,
                    is: (1 << 30) + 512,
                },
            ),
            (
                State::Sealed,
                now(next_boot, |now| now.generation = 6),
                Gap::OtherGeneration { was: 5, is: 6 },
            ),
            (
                State::Sealed,
                now(next_boot, |now| now.counted = None),
                Gap::Unreadable,
            ),
            (
                State::Paused,
                now(same_boot, |now| now.disk.sequence = 4),
                Gap::Reattached,
            ),
            (
                State::Paused,
                now(same_boot, |now| {
                    now.counted = Some(Counted {
                        write: 808,
                        discard: 40,
                    })
                }),
                Gap::WrittenBetween { write: 8, discard: 0 },
            ),
            (
                State::Paused,
                now(same_boot, |now| {
                    now.counted = Some(Counted {
                        write: 800,
                        discard: 0,
                    })
                }),
                Gap::WrittenBetween {
                    write: 0,
                    discard: 40,
                },
            ),
            (State::Paused, next_boot(), Gap::NotSealed),
            (
                State::Sealed,
                now(next_boot, |now| now.boots = true),
                Gap::BootDisk,
            ),
            (
                State::Sealed,
                now(next_boot, |now| {
                    now.counted = Some(Counted { write: 2, discard: 0 })
                }),
                Gap::WrittenBeforeAttach { write: 2, discard: 0 },
            ),
        ];
        for (state, now, gap) in table {
            assert_eq!(resume(&record(state), &now), Err(gap.clone()), "{gap}");
        }
    }
}
