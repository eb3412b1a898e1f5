//! Bringing the disks of a machine to a point: blocking, in steps, with progress.

use std::time::Duration;

use jiff::Timestamp;
use mt_retention::{Consistency, EpochNumber, PointSpec, StoreError};

use super::error::MachineError;
use super::machine::Machine;

/// Bytes of a step: what is copied or compared while the lock is held.
const STEP_BYTES: u64 = 4 << 20;

/// What a roll is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Old contents are copied to the end of the log; the disks are not touched.
    Copying,
    /// The disks are written.
    Writing,
    /// The disks are compared with the point.
    Verifying,
}

/// How far a roll is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// Bytes that are to be gone over in this stage.
    pub total: u64,
    /// Bytes that were.
    pub done: u64,
}

/// What a roll came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rolled {
    /// The point that the disks are at.
    pub to: u64,
    /// The point at which they were before: the way back.
    pub before: u64,
    /// The point that the roll made.
    pub epoch: u64,
    /// Bytes that were brought to the disks.
    pub bytes: u64,
}

/// Makes a machine busy until it is dropped.
pub struct Busy<'a> {
    machine: &'a Machine,
}

impl Machine {
    /// Makes the machine busy: it takes no epochs and no other act meanwhile.
    ///
    /// # Errors
    /// When it is busy already, or an epoch is being received.
    pub fn make_busy(&self, with: &'static str) -> Result<Busy<'_>, MachineError> {
        let mut inner = self.lock();
        if let Some(busy) = inner.busy {
            return Err(MachineError::refused(
                "machine-busy",
                format!("cannot begin: {busy} on machine {}", self.name),
                "wait for it, see \"mt-agent jobs list\"",
            ));
        }
        if inner.epoch.as_ref().is_some_and(|epoch| epoch.in_session) {
            return Err(MachineError::refused(
                "epoch-under-way",
                format!("an epoch of machine {} is being received", self.name),
                "wait for it, or stop its source",
            ));
        }
        if inner.epoch.take().is_some()
            && let Some(store) = &mut inner.store
        {
            store.abort_epoch();
        }
        inner.busy = Some(with);
        Ok(Busy { machine: self })
    }

    /// Brings the disks to a point, and compares them with it. Cut anywhere, the disks are at the point before or
    /// at this one when the store is opened again, and the roll can be repeated.
    ///
    /// # Errors
    /// When the point is damaged, a disk is not what it was, or the store or a disk fails.
    pub fn roll(
        &self,
        to: EpochNumber,
        mut progress: impl FnMut(Progress) -> Result<(), MachineError>,
    ) -> Result<Rolled, MachineError> {
        self.recheck()?;
        self.wait_applied()?;
        let before = self.newest_epoch();
        let (name, consistency) = self.with_store(|store| {
            let point = store.point(to)?;
            Ok((point.name.clone(), point.consistency))
        })?;
        let spec = |name: String, consistency| {
            let now = Timestamp::now().as_millisecond();
            PointSpec {
                consistency,
                source_time_ms: now,
                received_time_ms: now,
                name,
                tags: Vec::new(),
            }
        };
        let mut roll = self.with_room(|store| {
            store.begin_roll(to, spec("before the roll".to_owned(), Consistency::Crash))
        })?;
        let copied = loop {
            let step = self.with_room(|store| store.roll_step(&mut roll, STEP_BYTES));
            let step = step.and_then(|step| {
                progress(Progress {
                    stage: Stage::Copying,
                    total: step.total,
                    done: step.done,
                })
                .map(|()| step)
            });
            match step {
                Ok(step) if step.complete => break step,
                Ok(_) => {}
                Err(error) => {
                    self.abandon();
                    return Err(self.not_taken(error));
                }
            }
        };
        // The last look before the disks are written: from the commit on the roll is decided.
        if let Err(error) = self.recheck() {
            self.abandon();
            return Err(error);
        }
        let name = if name.is_empty() {
            format!("point {to}")
        } else {
            name
        };
        let made =
            self.with_room(|store| store.finish_roll(&roll, spec(format!("rolled to {name}"), consistency)));
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                self.abandon();
                return Err(self.not_taken(error));
            }
        };
        self.notify();
        self.follow_applier(made.bytes, &mut progress)?;
        self.verify(to, progress)?;
        Ok(Rolled {
            to: to.0,
            before: before.0,
            epoch: made.epoch.0,
            bytes: copied.total,
        })
    }

    fn follow_applier(
        &self,
        total: u64,
        progress: &mut impl FnMut(Progress) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        loop {
            {
                let inner = self.lock();
                if let Some(stopped) = &inner.failed {
                    return Err(stopped.error(&self.name));
                }
                let Some(store) = &inner.store else { return Ok(()) };
                let left = store.lag_bytes();
                if store.applied() == store.committed() {
                    return Ok(());
                }
                if inner.waits_for_room {
                    let status = store.status();
                    return Err(self.store_error(StoreError::Full {
                        used: status.used,
                        capacity: status.capacity,
                    }));
                }
                drop(self.wait(inner, Duration::from_millis(200)));
                progress(Progress {
                    stage: Stage::Writing,
                    total,
                    done: total.saturating_sub(left),
                })?;
            }
        }
    }

    /// Compares the disks with a point, for the blocks that changed since.
    ///
    /// # Errors
    /// When a block differs, or the store or a disk fails.
    pub fn verify(
        &self,
        point: EpochNumber,
        mut progress: impl FnMut(Progress) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let targets = self.targets();
        let mut verify = self.with_store(|store| store.begin_verify(point))?;
        loop {
            let step = self.with_store(|store| store.verify_step(&mut verify, &targets, STEP_BYTES))?;
            progress(Progress {
                stage: Stage::Verifying,
                total: step.total,
                done: step.done,
            })?;
            if step.complete {
                return Ok(());
            }
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.machine.lock().busy = None;
        self.machine.notify();
    }
}
