//! What a session does with its machine: epochs come in.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mt_retention::{Consistency, DiskIndex, EpochNumber, Offered, PointSpec, StoreError};
use mt_wire::{EndEpoch, EpochBegun, EpochDurable, Extent, Range};

use super::error::MachineError;
use super::machine::{Machine, OpenEpoch, Received};

/// How long an epoch whose session was lost is kept for its source to come back.
const RESUME_TIME: Duration = Duration::from_secs(120);

impl Machine {
    /// Opens an epoch, or goes on with the one that is named, when the disks are near enough to the newest complete one.
    ///
    /// # Errors
    /// When the machine is busy, has failed, or the store refuses.
    pub fn begin_epoch(&self, session: u64, resume: [u8; 16]) -> Result<EpochBegun, MachineError> {
        self.wait_for_lag(0)?;
        let _pass = self.pass(session)?;
        let mut inner = self.lock();
        if let Some(busy) = inner.busy {
            return Err(MachineError::refused(
                "machine-busy",
                format!("machine {} takes no epochs while {busy}", self.name),
                "send it again when that is done, see \"mt-agent jobs list\" on the target",
            ));
        }
        if let Some(epoch) = &mut inner.epoch {
            if epoch.in_session {
                return Err(MachineError::refused(
                    "machine-busy",
                    format!("an epoch of machine {} is being received already", self.name),
                    "wait for the other source, or stop it; one that is gone is noticed after 30 s",
                ));
            }
            if resume != [0; 16] && epoch.id == resume {
                epoch.in_session = true;
                epoch.lost = None;
                return Ok(EpochBegun {
                    epoch_id: epoch.id,
                    epoch: epoch.number,
                });
            }
            if let Some(store) = &mut inner.store {
                store.abort_epoch();
            }
            inner.epoch = None;
        }
        let number = match &mut inner.store {
            Some(store) => store.begin_epoch().map_err(|source| self.store_error(source))?.0,
            None => inner.direct_epoch + 1,
        };
        let id = crate::random::id().map_err(|source| MachineError::Io {
            attempted: "read random bytes for",
            path: self.name.clone().into(),
            source,
        })?;
        *self.received() = Received {
            epoch_id: id,
            settled: vec![0; self.disks.len()],
        };
        inner.epoch = Some(OpenEpoch {
            id,
            number,
            in_session: true,
            lost: None,
        });
        Ok(EpochBegun {
            epoch_id: id,
            epoch: number,
        })
    }

    /// The disk of this name, and its place in the store.
    pub fn find_disk(&self, name: &str) -> Option<(DiskIndex, &super::disk::MachineDisk)> {
        (0..)
            .map(DiskIndex)
            .zip(&self.disks)
            .find(|(_, disk)| disk.name == name)
    }

    /// Up to where a disk of the open epoch was received, bytes.
    pub fn settled(&self, epoch_id: [u8; 16], disk: DiskIndex) -> u64 {
        let received = self.received();
        let settled = received.settled.get(usize::from(disk.0)).copied();
        settled.filter(|_| received.epoch_id == epoch_id).unwrap_or(0)
    }

    /// Notes up to where a disk of an epoch was received, bytes. Does not block.
    pub fn note_settled(&self, epoch_id: [u8; 16], disk: DiskIndex, offset: u64) {
        let mut received = self.received();
        if received.epoch_id == epoch_id
            && let Some(place) = received.settled.get_mut(usize::from(disk.0))
        {
            *place = offset;
        }
    }

    /// Adds extents to the open epoch; their content was checked against their digests.
    ///
    /// # Errors
    /// When the session is fenced, or the store or the disk fails.
    pub fn write(
        &self,
        session: u64,
        disk: DiskIndex,
        extents: &[Extent],
        payload: &[u8],
    ) -> Result<(), MachineError> {
        // Before the fence: nobody who raises it should have to wait for the disks.
        self.wait_for_lag(payload.len() as u64)?;
        let _pass = self.pass(session)?;
        let mut rest = payload;
        for extent in extents {
            let (content, behind) = rest.split_at(extent.len as usize);
            rest = behind;
            self.put(disk, |store| {
                store.write(disk, extent.offset, content, extent.digest)
            })?
            .map_or(Ok(()), |device| {
                device
                    .write(extent.offset, content)
                    .map_err(|source| self.disk_error("writing", disk, extent.offset, source))
            })?;
        }
        Ok(())
    }

    /// Adds ranges of zeros to the open epoch.
    ///
    /// # Errors
    /// When the session is fenced, or the store or the disk fails.
    pub fn zero(&self, session: u64, disk: DiskIndex, ranges: &[Range]) -> Result<(), MachineError> {
        self.wait_for_lag(ranges.iter().map(|range| range.len).sum())?;
        let _pass = self.pass(session)?;
        for range in ranges {
            self.put(disk, |store| store.zero(disk, range.offset, range.len))?
                .map_or(Ok(()), |device| {
                    device
                        .zero(range.offset, range.len)
                        .map_err(|source| self.disk_error("zeroing", disk, range.offset, source))
                })?;
        }
        Ok(())
    }

    /// Hands something to the store; answers the disk where there is none. A store that is full drops the oldest points
    /// that may go, and tries again.
    fn put(
        &self,
        disk: DiskIndex,
        mut work: impl FnMut(&mut super::machine::FileStore) -> Result<(), StoreError>,
    ) -> Result<Option<&dyn mt_retention::TargetDisk>, MachineError> {
        {
            let inner = self.lock();
            self.epoch_is_open(&inner)?;
            if inner.store.is_none() {
                return Ok(self
                    .disks
                    .get(usize::from(disk.0))
                    .map(|disk| disk as &dyn mt_retention::TargetDisk));
            }
        }
        self.with_room(&mut work)
            .map(|()| None)
            .map_err(|error| self.not_taken(error))
    }

    fn epoch_is_open(&self, inner: &super::machine::Inner) -> Result<(), MachineError> {
        if inner.epoch.is_some() {
            return Ok(());
        }
        Err(MachineError::refused(
            "no-epoch",
            format!("no epoch of machine {} is open any more", self.name),
            "send it again",
        ))
    }

    /// An error of the store on the way in: says what follows from it to whoever looks at the machine.
    pub(super) fn not_taken(&self, error: MachineError) -> MachineError {
        if let MachineError::Store { source, .. } = &error {
            let mut inner = self.lock();
            if matches!(source, StoreError::Full { .. }) {
                self.raise_full(&mut inner, source);
            } else if inner
                .store
                .as_ref()
                .is_some_and(|store| store.latched().is_some())
            {
                self.fail(&mut inner, source);
            }
        }
        error
    }

    /// Commits the open epoch, durably, all disks at once.
    ///
    /// # Errors
    /// When the session is fenced, or the store or a disk fails: then nothing was acknowledged.
    pub fn commit(&self, session: u64, end: &EndEpoch) -> Result<EpochDurable, MachineError> {
        let _pass = self.pass(session)?;
        let now = Timestamp::now();
        let spec = PointSpec {
            consistency: match end.consistency {
                mt_wire::Consistency::Crash => Consistency::Crash,
                mt_wire::Consistency::FileSystem => Consistency::FileSystem,
                mt_wire::Consistency::Application => Consistency::Application,
            },
            source_time_ms: i64::try_from(end.time_ms).unwrap_or(i64::MAX),
            received_time_ms: now.as_millisecond(),
            name: end.name.clone(),
            tags: end
                .tags
                .iter()
                .map(|tag| format!("{}={}", tag.key, tag.value))
                .collect(),
        };
        let (number, has_store) = {
            let inner = self.lock();
            self.epoch_is_open(&inner)?;
            let number = inner.epoch.as_ref().map_or(0, |epoch| epoch.number);
            (number, inner.store.is_some())
        };
        let durable = if has_store {
            let acknowledged = self
                .with_room(|store| {
                    // Under the lock, like the applier's "no longer".
                    self.lags.store(true, Ordering::Release);
                    store.commit_epoch(spec.clone(), Offered::AsPoint)
                })
                .map_err(|error| self.not_taken(error))?;
            EpochDurable {
                epoch: acknowledged.epoch.0,
                point: acknowledged.epoch.0,
            }
        } else {
            for (index, disk) in (0..).map(DiskIndex).zip(self.targets()) {
                disk.flush()
                    .map_err(|source| self.disk_error("flushing", index, 0, source))?;
            }
            self.lock().direct_epoch = number;
            EpochDurable {
                epoch: number,
                point: 0,
            }
        };
        let mut inner = self.lock();
        inner.epoch = None;
        drop(inner);
        self.notify();
        self.end_doubt();
        Ok(durable)
    }

    /// All disks were compared with their source: what was unknown of them is known.
    fn end_doubt(&self) {
        let state = self.hub.state();
        if state
            .machine(&self.name)
            .is_ok_and(|record| record.in_doubt.is_none())
        {
            return;
        }
        let noted = state.change_machine(&self.name, |record| {
            record.in_doubt = None;
            Ok::<(), std::convert::Infallible>(())
        });
        if let Err(error) = noted {
            tracing::warn!(machine = %self.name, "cannot note that its disks are no longer in doubt: {error}");
        }
    }

    /// Drops the open epoch.
    pub fn abandon(&self) {
        let mut inner = self.lock();
        if let Some(store) = &mut inner.store {
            store.abort_epoch();
        }
        inner.epoch = None;
        drop(inner);
        self.notify();
    }

    /// The session that worked on the open epoch is over: it is kept for a while, for its source to come back.
    pub fn session_lost(&self) {
        let mut inner = self.lock();
        if let Some(epoch) = &mut inner.epoch {
            epoch.in_session = false;
            epoch.lost = Some(Instant::now());
        }
        drop(inner);
        self.notify();
    }

    /// Drops an open epoch whose source did not come back in time.
    pub fn drop_stale_epoch(&self) {
        let mut inner = self.lock();
        let stale = inner
            .epoch
            .as_ref()
            .and_then(|epoch| epoch.lost)
            .is_some_and(|lost| lost.elapsed() > RESUME_TIME);
        if stale {
            tracing::warn!(machine = %self.name, "half an epoch was dropped: its source did not come back");
            if let Some(store) = &mut inner.store {
                store.abort_epoch();
            }
            inner.epoch = None;
        }
    }

    /// The newest epoch that is durable; 0 when there is none.
    pub fn newest_epoch(&self) -> EpochNumber {
        let inner = self.lock();
        inner
            .store
            .as_ref()
            .map_or(EpochNumber(inner.direct_epoch), |store| store.committed())
    }

    pub(super) fn disk_error(
        &self,
        attempted: &'static str,
        disk: DiskIndex,
        offset: u64,
        source: std::io::Error,
    ) -> MachineError {
        self.store_error(StoreError::Disk {
            attempted,
            disk,
            id: self
                .disks
                .get(usize::from(disk.0))
                .map(|disk| disk.scsi_id.clone())
                .unwrap_or_default(),
            offset,
            source,
        })
    }
}
