//! The machines that are open, and how one is opened.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use mt_retention::files::FileStorage;
use mt_retention::{
    Consistency, CreateOptions, OpenOptions, PointSpec, SEGMENT_SIZE_DEFAULT, Store, StoreError,
};

use super::disk::MachineDisk;
use super::error::MachineError;
use super::machine::{FileStore, Machine};
use super::volume::{self, Volume};
use crate::disks::gate::{PairedDisk, Purpose};
use crate::disks::inventory::DiskScope;
use crate::disks::open::open_paired;
use crate::hub::Hub;
use crate::model::Pair;
use crate::state::machines::MachineRecord;

/// Smallest segments that a store is made with when its space is limited, bytes.
const SEGMENT_SIZE_SMALL: u64 = 1 << 20;

/// The open machines of a target. Clones are the same.
#[derive(Clone)]
pub struct Machines {
    hub: Hub,
    disks: DiskScope,
    /// Folder of the retention volume; none where no points are kept.
    retention: Option<PathBuf>,
    open: Arc<Mutex<HashMap<String, Arc<Machine>>>>,
}

impl Machines {
    /// No machine is open.
    pub fn new(hub: Hub, disks: DiskScope, retention: Option<PathBuf>) -> Self {
        Self {
            hub,
            disks,
            retention,
            open: Arc::default(),
        }
    }

    /// Folder of the retention volume.
    pub fn retention(&self) -> Option<&PathBuf> {
        self.retention.as_ref()
    }

    /// State and status.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The retention volume, checked a moment ago; none where no points are kept.
    ///
    /// # Errors
    /// When it is not what it should be.
    pub fn volume(&self) -> Result<Option<Volume>, MachineError> {
        self.retention
            .as_ref()
            .map(|folder| volume::check(folder, self.hub.state()))
            .transpose()
    }

    /// The machine, when it is open.
    pub fn get(&self, name: &str) -> Option<Arc<Machine>> {
        self.map().get(name).cloned()
    }

    /// Every machine that is open.
    pub fn all(&self) -> Vec<Arc<Machine>> {
        self.map().values().cloned().collect()
    }

    /// The pairs of a machine, by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pairs_of(&self, name: &str) -> Result<Vec<Pair>, MachineError> {
        let pairs: Vec<Pair> = self
            .hub
            .state()
            .pairs()?
            .into_iter()
            .filter(|pair| pair.name.machine == name)
            .collect();
        if pairs.is_empty() {
            return Err(MachineError::Unknown(name.to_owned()));
        }
        Ok(pairs)
    }

    /// The machine, opened when it is not: its disks are checked and held, its store is opened, or made.
    ///
    /// # Errors
    /// When a disk or the store cannot be had. Nothing was written to a disk.
    pub fn open(&self, name: &str) -> Result<Arc<Machine>, MachineError> {
        // One at a time: two that open the same machine must not both try its disks.
        let mut open = self.map();
        if let Some(machine) = open.get(name) {
            return Ok(Arc::clone(machine));
        }
        let pairs = self.pairs_of(name)?;
        let volume = self.volume()?;
        let disks = pairs
            .iter()
            .map(|pair| self.open_disk(pair))
            .collect::<Result<Vec<_>, _>>()?;
        let record = self.hub.state().machine(name)?;
        let generation = pairs.iter().map(|pair| pair.generation).max().unwrap_or(1);
        let store = volume
            .map(|volume| self.open_store(name, &volume, &disks, &record, generation))
            .transpose()?;
        let machine = Machine::start(
            name.to_owned(),
            disks,
            store,
            generation,
            record.policy,
            self.hub.clone(),
        )?;
        open.insert(name.to_owned(), Arc::clone(&machine));
        Ok(machine)
    }

    /// Lets go of a machine and its disks. What is under way with it ends on its own.
    pub fn close(&self, name: &str) {
        if let Some(machine) = self.map().remove(name) {
            machine.stop();
        }
    }

    /// Looks at the store of a machine, also where its disks were let go of.
    ///
    /// # Errors
    /// When it has none, or it cannot be opened.
    pub fn look<T>(
        &self,
        name: &str,
        work: impl FnOnce(&FileStore) -> Result<T, StoreError>,
    ) -> Result<T, MachineError> {
        if let Some(machine) = self.get(name) {
            return machine.with_store(|store| work(store));
        }
        self.pairs_of(name)?;
        let record = self.hub.state().machine(name)?;
        if record.failover.takes_epochs() && record.store.is_some() {
            return self.open(name)?.with_store(|store| work(store));
        }
        let Some(volume) = self.volume()?.filter(|_| record.store.is_some()) else {
            return Err(MachineError::NoStore(name.to_owned()));
        };
        let folder = volume.machine(name);
        let storage = FileStorage::open(&folder).map_err(|source| MachineError::Io {
            attempted: "open",
            path: folder,
            source,
        })?;
        let opened = Store::open(storage, OpenOptions::default());
        opened
            .and_then(|(store, _)| work(&store))
            .map_err(|source| MachineError::Store {
                machine: name.to_owned(),
                source,
            })
    }

    /// Drops the store of a machine with all of its points; the disks are not touched.
    ///
    /// # Errors
    /// When a failover or a session is under way, or the store cannot be removed.
    pub fn reset(&self, name: &str) -> Result<(), MachineError> {
        let record = self.hub.state().machine(name)?;
        if !record.failover.takes_epochs() {
            return Err(MachineError::refused(
                "failover-under-way",
                format!("machine {name} is {}", record.failover),
                "\"mt-agent cancel\" goes back to replication",
            ));
        }
        if let Some(machine) = self.get(name) {
            drop(machine.make_busy("its points are dropped")?);
        }
        self.close(name);
        let Some(volume) = self.volume()? else {
            return Err(MachineError::NoStore(name.to_owned()));
        };
        let folder = volume.machine(name);
        // The state first: a store that it knows nothing of and that is half removed is begun anew.
        let forgotten = self.hub.state().change_machine(name, |record| {
            record.store = None;
            Ok::<(), std::convert::Infallible>(())
        })?;
        let Ok(()) = forgotten;
        if folder.is_dir() {
            std::fs::remove_dir_all(&folder).map_err(|source| MachineError::Io {
                attempted: "remove",
                path: folder,
                source,
            })?;
        }
        self.hub
            .clear(crate::target::report::ALARM_RESYNC, name, Timestamp::now());
        Ok(())
    }

    /// Lets go of all machines.
    pub fn close_all(&self) {
        for (_, machine) in self.map().drain() {
            machine.stop();
        }
    }

    fn open_disk(&self, pair: &Pair) -> Result<MachineDisk, MachineError> {
        let paired = PairedDisk {
            scsi_id: pair.scsi_id,
            size: pair.size,
            logical_block_size: pair.logical_block_size,
            may_overwrite: pair.adopted || pair.overwrite,
        };
        let disk =
            open_paired(&paired, &self.disks, Purpose::Write).map_err(|source| MachineError::Disk {
                machine: pair.name.machine.clone(),
                disk: pair.name.disk.clone(),
                source,
            })?;
        Ok(MachineDisk {
            pair: pair.id,
            name: pair.name.disk.clone(),
            scsi_id: pair.scsi_id.to_string(),
            size: pair.protected_size.unwrap_or(pair.size),
            logical_block_size: pair.logical_block_size,
            disk: Arc::new(disk),
        })
    }

    /// Opens the store of a machine, or makes it when there is none. A store that the state knows nothing of was made a
    /// moment before a crash, and is taken over when it is for these very disks.
    fn open_store(
        &self,
        name: &str,
        volume: &Volume,
        disks: &[MachineDisk],
        record: &MachineRecord,
        generation: u64,
    ) -> Result<FileStore, MachineError> {
        let failed = |source| MachineError::Store {
            machine: name.to_owned(),
            source,
        };
        let folder = volume.machine(name);
        let io = |source| MachineError::Io {
            attempted: "open",
            path: folder.clone(),
            source,
        };
        if record.store.is_some() && !folder.is_dir() {
            return Err(MachineError::Resync {
                machine: name.to_owned(),
                why: format!("its retention store {} is not there", folder.display()),
            });
        }
        std::fs::create_dir_all(&folder).map_err(io)?;
        let table = Machine::table(disks);
        let storage = FileStorage::open(&folder).map_err(io)?;
        let options = OpenOptions {
            disks: Some(table.clone()),
            capacity: record.policy.space,
        };
        match Store::open(storage, options) {
            Ok((store, recovered)) => {
                let id = hex(&store.uuid());
                match &record.store {
                    Some(known) if *known != id => {
                        return Err(MachineError::Resync {
                            machine: name.to_owned(),
                            why: format!("its retention store is {id}, this appliance knows {known}"),
                        });
                    }
                    Some(_) => {}
                    None => self.note_store(name, &id)?,
                }
                for damage in &recovered.damage {
                    tracing::error!(machine = name, "retention store: {damage}");
                }
                if !recovered.dropped_epochs.is_empty() || recovered.to_apply > 0 {
                    tracing::info!(
                        machine = name,
                        "retention store opened: {} epochs to apply, {} unfinished dropped",
                        recovered.to_apply,
                        recovered.dropped_epochs.len()
                    );
                }
                Ok(store)
            }
            Err(StoreError::NotAStore { .. }) if record.store.is_none() => {
                let storage = empty(&folder)
                    .and_then(|()| FileStorage::open(&folder))
                    .map_err(io)?;
                let capacity = record.policy.space;
                let segment_size = if capacity == 0 {
                    SEGMENT_SIZE_DEFAULT
                } else {
                    // Sixteen segments at least, so that room can be made in small pieces.
                    (capacity / 16 / SEGMENT_SIZE_SMALL * SEGMENT_SIZE_SMALL)
                        .clamp(SEGMENT_SIZE_SMALL, SEGMENT_SIZE_DEFAULT)
                };
                let now = Timestamp::now().as_millisecond();
                let store = Store::create(
                    storage,
                    CreateOptions {
                        uuid: crate::random::id().map_err(io)?,
                        generation,
                        disks: table,
                        segment_size,
                        capacity,
                        initial_point: Some(PointSpec {
                            consistency: Consistency::Crash,
                            source_time_ms: now,
                            received_time_ms: now,
                            name: "before-failback".to_owned(),
                            tags: Vec::new(),
                        }),
                    },
                )
                .map_err(failed)?;
                self.note_store(name, &hex(&store.uuid()))?;
                tracing::info!(machine = name, folder = %folder.display(), "retention store made");
                Ok(store)
            }
            Err(source) => Err(failed(source)),
        }
    }

    fn note_store(&self, name: &str, id: &str) -> Result<(), MachineError> {
        let noted = self.hub.state().change_machine(name, |record| {
            record.store = Some(id.to_owned());
            Ok::<(), std::convert::Infallible>(())
        })?;
        let Ok(()) = noted;
        Ok(())
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Machine>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what an interrupted creation left: segments without a superblock. There was no store, so nothing is lost.
fn empty(folder: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if mt_retention::ObjectName::parse(&entry.file_name().to_string_lossy()).is_some() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
