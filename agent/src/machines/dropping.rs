//! How the store of a machine goes for good, or what was kept in it to undo a failover. Cut anywhere, each is done again.

use std::path::Path;

use jiff::Timestamp;
use mt_retention::{EpochNumber, Origin};

use super::error::MachineError;
use super::failover::release_pins;
use super::machine::FileStore;
use super::points::in_words_of_store;
use super::registry::Machines;
use crate::failover::table::State;
use crate::state::machines::MachineRecord;

impl Machines {
    /// Drops the store of a machine with all of its points; the disks are not touched.
    ///
    /// # Errors
    /// When a failover or a session is under way, or the store cannot be removed.
    pub fn reset(&self, name: &str) -> Result<(), MachineError> {
        let record = self.hub().state().machine(name)?;
        if !record.failover.takes_epochs() {
            return Err(MachineError::refused(
                "failover-under-way",
                format!("machine {name} is {}", record.failover),
                record.failover.way_back(),
            ));
        }
        if let Some(machine) = self.get(name) {
            drop(machine.make_busy("its points are dropped")?);
        }
        if self.retention().is_none() {
            return Err(MachineError::NoStore(name.to_owned()));
        }
        if let Some(why) = self.half_applied(name, &record) {
            self.note(name, |record| record.in_doubt = Some(why))?;
        }
        self.let_go(name)?;
        self.drop_store(name)
    }

    /// Why the disks of a machine may hold a part of an epoch once its store has gone.
    fn half_applied(&self, name: &str, record: &MachineRecord) -> Option<String> {
        record.store.as_ref()?;
        match self.look(name, |store| Ok((store.applied(), store.committed()))) {
            Ok((applied, committed)) if applied == committed => None,
            Ok((applied, committed)) => Some(format!(
                "epoch {committed} of its store was complete, and the disks are only known to have epoch {applied}"
            )),
            Err(error) => Some(format!("what its store held could not be seen: {error}")),
        }
    }

    /// Begins anew with a machine whose disks somebody else may have written: fences what is older, and drops its points.
    /// Cut anywhere, it is done again.
    ///
    /// # Errors
    /// When the state or the store cannot be written.
    pub fn begin_anew(&self, name: &str) -> Result<(), MachineError> {
        self.let_go(name)?;
        self.hub().state().raise_generation(name)?;
        if self.retention().is_some() {
            self.drop_store(name)?;
        }
        self.note(name, |record| {
            record.to = None;
            record.before = None;
            record.failure = None;
            record.undo_until = None;
            record.undo_ended = false;
            record.pinned.clear();
            record.store = None;
        })
    }

    /// Lets go of what is kept to undo a committed failover: its pins, and the point before failback. Its disks are not here
    /// any more, and are not needed for it.
    ///
    /// # Errors
    /// When the store cannot be opened or written.
    pub fn end_undo(&self, name: &str, record: &MachineRecord, now: Timestamp) -> Result<(), MachineError> {
        if record.store.is_some() {
            let policy = in_words_of_store(&record.policy);
            let end = |store: &mut FileStore| {
                let newest = store.points().next_back().map(|point| point.epoch);
                release_pins(store, &record.pinned)?;
                let initial: Vec<EpochNumber> = store
                    .points()
                    .filter(|point| point.origin == Origin::Initial && !point.pinned)
                    .map(|point| point.epoch)
                    .filter(|epoch| Some(*epoch) != newest)
                    .collect();
                store.drop_points(&initial)?;
                store.thin_points(now.as_millisecond(), &policy)
            };
            self.with_store(name, |store| {
                end(store).map_err(|source| MachineError::Store {
                    machine: name.to_owned(),
                    source,
                })
            })?;
        }
        self.note(name, |record| {
            record.pinned.clear();
            record.undo_ended = true;
        })
    }

    /// Forgets a machine that has no pair any more and whose failover is final, with its points.
    ///
    /// # Errors
    /// When the state or the store cannot be written.
    pub fn forget_committed(&self, name: &str) -> Result<(), MachineError> {
        if self.hub().state().machine(name)?.failover != State::Committed {
            return Ok(());
        }
        if self.retention().is_some() {
            self.drop_store(name)?;
        }
        self.hub().state().forget_machine(name)?;
        Ok(())
    }

    fn drop_store(&self, name: &str) -> Result<(), MachineError> {
        let Some(volume) = self.volume()? else {
            return Ok(());
        };
        let folder = volume.machine(name);
        // The state first: what is half removed, or not at all, is no store any more, whatever it looks like.
        self.note(name, |record| {
            record.store = None;
            record.dropped = true;
        })?;
        self.remove_dropped(name, &folder)?;
        let now = Timestamp::now();
        for alarm in [
            crate::target::report::ALARM_RESYNC,
            super::machine::ALARM_FULL,
            super::house::ALARM_POINT,
            super::house::ALARM_SPACE,
            super::house::ALARM_LATE,
            super::house::ALARM_LAG,
        ] {
            self.hub().clear(alarm, name, now);
        }
        Ok(())
    }

    /// Removes a store that was dropped, durably.
    pub(super) fn remove_dropped(&self, name: &str, folder: &Path) -> Result<(), MachineError> {
        let remove = || -> std::io::Result<()> {
            if folder.is_dir() {
                std::fs::remove_dir_all(folder)?;
            }
            match folder.parent() {
                Some(parent) if parent.is_dir() => std::fs::File::open(parent)?.sync_all(),
                _ => Ok(()),
            }
        };
        remove().map_err(|source| MachineError::Io {
            attempted: "remove the dropped retention store",
            path: folder.to_owned(),
            source,
        })?;
        self.note(name, |record| record.dropped = false)
    }
}
