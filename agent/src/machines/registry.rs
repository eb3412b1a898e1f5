//! The machines that are open, and how one is opened.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mt_retention::files::FileStorage;
use mt_retention::policy::LIVE_PERCENT_IDLE;
use mt_retention::{
    Checked, Consistency, CreateOptions, OpenOptions, PointSpec, SEGMENT_SIZE_DEFAULT, Store, StoreError,
};

use super::catalogue::{self, Catalogue};
use super::disk::MachineDisk;
use super::error::MachineError;
use super::folder::{self, Opened};
use super::forecast::Forecast;
use super::lag::StoreSettings;
use super::machine::{FileStore, Machine, Manner, Steps};
use super::volume::{self, Volume};
use crate::disks::access::DiskAccess;
use crate::disks::gate::{PairedDisk, Purpose};
use crate::error::Explain as _;
use crate::hub::{Alarm, Hub, Severity};
use crate::model::Pair;
use crate::state::machines::MachineRecord;

/// Smallest segments that a store is made with when its space is limited, bytes.
const SEGMENT_SIZE_SMALL: u64 = 1 << 20;

/// What all stores together may keep in memory of epochs that are not on the disks yet, bytes. What does not fit is read back
/// from the log.
const STORES_MEMORY: usize = 16 << 20;

/// How long letting go of a machine is waited for: a source that is gone is noticed after 30 s.
const LET_GO: Duration = Duration::from_secs(45);

/// The open machines of a target. Clones are the same.
#[derive(Clone)]
pub struct Machines {
    hub: Hub,
    disks: DiskAccess,
    /// Folder of the retention volume; none where no points are kept.
    retention: Option<PathBuf>,
    manner: Manner,
    open: Arc<Mutex<HashMap<String, Arc<Machine>>>>,
    forecast: Arc<Mutex<Forecast>>,
    /// Held while the store of a machine that is not open is opened for one look: the next one waits instead of finding
    /// it locked.
    one_look: Arc<Mutex<()>>,
}

impl Machines {
    /// No machine is open.
    pub fn new(hub: Hub, disks: DiskAccess, retention: Option<PathBuf>, settings: StoreSettings) -> Self {
        Self {
            hub,
            disks,
            retention,
            manner: Manner {
                settings,
                steps: Steps::default(),
            },
            open: Arc::default(),
            forecast: Arc::default(),
            one_look: Arc::default(),
        }
    }

    fn one_look(&self) -> MutexGuard<'_, ()> {
        self.one_look.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folder of the retention volume.
    pub fn retention(&self) -> Option<&PathBuf> {
        self.retention.as_ref()
    }

    /// When the retention volume will be full.
    pub fn forecast(&self) -> MutexGuard<'_, Forecast> {
        self.forecast.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// State and status.
    pub fn disks(&self) -> &DiskAccess {
        &self.disks
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
        // Asked again for a machine that is open: a volume that was unmounted under it can still be written, and nobody
        // would find there what is promised now.
        let volume = self.volume()?;
        if let Some(machine) = open.get(name) {
            return Ok(Arc::clone(machine));
        }
        let pairs = self.pairs_of(name)?;
        let disks = pairs
            .iter()
            .map(|pair| self.open_disk(pair))
            .collect::<Result<Vec<_>, _>>()?;
        let record = self.hub.state().machine(name)?;
        let known: HashSet<String> = self
            .hub
            .state()
            .pairs()?
            .into_iter()
            .map(|pair| pair.name.machine)
            .collect();
        let memory = STORES_MEMORY / known.len().max(1);
        let mut generation = pairs.iter().map(|pair| pair.generation).max().unwrap_or(1);
        let mut store = volume
            .map(|volume| self.open_store(name, &volume, &disks, &record, generation))
            .transpose()
            .inspect_err(|error| self.raise_resync(name, error))?;
        self.hub
            .clear(crate::target::report::ALARM_RESYNC, name, Timestamp::now());
        if let Some((store, _)) = &mut store {
            generation = self.agree_on_generation(name, store, generation)?;
            store.set_memory(memory);
            store.set_packing(self.manner.settings.packing);
        }
        let machine = Machine::start(
            name.to_owned(),
            disks,
            store,
            generation,
            record.policy,
            self.manner.clone(),
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

    /// Lets go of a machine, and waits until its disks are closed: its applier, and whoever looks at it, ends first.
    ///
    /// # Errors
    /// When somebody still holds it after 45 seconds.
    pub fn let_go(&self, name: &str) -> Result<(), MachineError> {
        let Some(machine) = self.map().remove(name) else {
            return Ok(());
        };
        machine.stop();
        let held = Arc::downgrade(&machine);
        drop(machine);
        let begin = Instant::now();
        while held.strong_count() > 0 {
            if begin.elapsed() > LET_GO {
                return Err(MachineError::refused(
                    "machine-busy",
                    format!("machine {name} is still in use"),
                    "wait for what is under way with it, see \"mt-agent jobs list\", and try again",
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
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
        self.with_stored(name, &record, |opened| work(&opened.store))
    }

    /// Reads a segment of a machine's store from end to end, and marks the points that depend on damage in it.
    ///
    /// # Errors
    /// When there is no store, or it cannot be opened or read.
    pub fn check_segment(&self, name: &str, segment: u64) -> Result<Checked, MachineError> {
        if let Some(machine) = self.get(name) {
            return machine.check_segment(segment);
        }
        self.pairs_of(name)?;
        let record = self.hub.state().machine(name)?;
        if record.failover.takes_epochs() && record.store.is_some() {
            return self.open(name)?.check_segment(segment);
        }
        self.with_stored(name, &record, |opened| {
            folder::check(name, &mut opened.store, opened.catalogue.as_ref(), segment)
        })
    }

    /// Opens the store of a machine whose disks are not here, for one look.
    fn with_stored<T>(
        &self,
        name: &str,
        record: &MachineRecord,
        work: impl FnOnce(&mut Opened) -> Result<T, StoreError>,
    ) -> Result<T, MachineError> {
        let Some(volume) = self.volume()?.filter(|_| record.store.is_some()) else {
            return Err(MachineError::NoStore(name.to_owned()));
        };
        let _alone = self.one_look();
        let folder = volume.machine(name);
        let storage = FileStorage::open(&folder).map_err(|source| MachineError::Io {
            attempted: "open",
            path: folder.clone(),
            source,
        })?;
        let opened = folder::open(name, &folder, storage, OpenOptions::default());
        opened
            .and_then(|mut opened| work(&mut opened))
            .map_err(|source| MachineError::Store {
                machine: name.to_owned(),
                source,
            })
    }

    /// Works with the store of a machine, also where its disks were let go of and somebody else has them.
    ///
    /// # Errors
    /// When it has none, it cannot be opened, or `work` fails.
    pub fn with_store<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut FileStore) -> Result<T, MachineError>,
    ) -> Result<T, MachineError> {
        self.pairs_of(name)?;
        let record = self.hub.state().machine(name)?;
        if self.get(name).is_some() || record.failover.takes_epochs() {
            let machine = self.open(name)?;
            let mut inner = machine.lock();
            let store = inner.store.as_mut();
            return work(store.ok_or_else(|| MachineError::NoStore(name.to_owned()))?);
        }
        let Some(volume) = self.volume()?.filter(|_| record.store.is_some()) else {
            return Err(MachineError::NoStore(name.to_owned()));
        };
        let _alone = self.one_look();
        let folder = volume.machine(name);
        let storage = FileStorage::open(&folder).map_err(|source| MachineError::Io {
            attempted: "open",
            path: folder,
            source,
        })?;
        let options = OpenOptions {
            disks: None,
            capacity: record.policy.space,
        };
        let failed = |source| MachineError::Store {
            machine: name.to_owned(),
            source,
        };
        let (mut store, _) = Store::open(storage, options).map_err(failed)?;
        let answer = work(&mut store)?;
        // Nobody else looks after a store that is closed.
        store.reclaim(LIVE_PERCENT_IDLE).map_err(failed)?;
        Ok(answer)
    }

    /// Lets go of all machines.
    pub fn close_all(&self) {
        for (_, machine) in self.map().drain() {
            machine.stop();
        }
    }

    /// Makes the catalogue of a machine's store anew from its segments. The disks are not touched.
    ///
    /// # Errors
    /// When the machine has no store, or that cannot be opened or read.
    pub fn rebuild_catalogue(&self, name: &str) -> Result<(), MachineError> {
        self.pairs_of(name)?;
        let folder = match self.volume()?.map(|volume| volume.machine(name)) {
            Some(folder) if folder.is_dir() => folder,
            _ => return Err(MachineError::NoStore(name.to_owned())),
        };
        if let Some(machine) = self.get(name) {
            return machine.rebuild_catalogue(&folder);
        }
        let io = |attempted, source| MachineError::Io {
            attempted,
            path: folder.clone(),
            source,
        };
        catalogue::remove(&folder).map_err(|error| catalogue_error(&folder, error))?;
        let alone = self.one_look();
        let mut storage = FileStorage::open(&folder).map_err(|source| io("open", source))?;
        mt_retention::restore_superblocks(&mut storage).map_err(|source| MachineError::Store {
            machine: name.to_owned(),
            source,
        })?;
        drop((storage, alone));
        self.look(name, |_| Ok(()))
    }

    fn open_disk(&self, pair: &Pair) -> Result<MachineDisk, MachineError> {
        let paired = PairedDisk {
            scsi_id: pair.scsi_id,
            size: pair.size,
            logical_block_size: pair.logical_block_size,
            may_overwrite: pair.adopted || pair.overwrite,
        };
        let disk = self
            .disks
            .open_pair(&pair.name, &paired, Purpose::Write)
            .map_err(|source| MachineError::Disk {
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
    ) -> Result<(FileStore, Option<Catalogue>), MachineError> {
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
        if record.dropped {
            self.remove_dropped(name, &folder)?;
        }
        std::fs::create_dir_all(&folder).map_err(io)?;
        let table = Machine::table(disks);
        let alone = self.one_look();
        let storage = FileStorage::open(&folder).map_err(io)?;
        drop(alone);
        let options = OpenOptions {
            disks: Some(table.clone()),
            capacity: record.policy.space,
        };
        match folder::open(name, &folder, storage, options) {
            Ok(Opened {
                store,
                catalogue,
                recovered,
            }) => {
                let id = hex(&store.uuid());
                match &record.store {
                    Some(known) if *known != id => {
                        return Err(MachineError::Resync {
                            machine: name.to_owned(),
                            why: format!("its retention store is {id}, this appliance knows {known}"),
                        });
                    }
                    Some(_) if store.committed().0 < record.committed => {
                        return Err(MachineError::Resync {
                            machine: name.to_owned(),
                            why: format!(
                                "its retention store ends at epoch {}, and this appliance has acknowledged {}: the volume \
                                 was set back to an older state, while the disks were not",
                                store.committed(),
                                record.committed
                            ),
                        });
                    }
                    Some(_) => {}
                    None => self.note_store(name, &id)?,
                }
                for damage in &recovered.damage {
                    tracing::error!(machine = name, "retention store: {damage}");
                }
                for repaired in &recovered.repaired {
                    tracing::warn!(
                        machine = name,
                        "retention store: {repaired}; it was written again"
                    );
                }
                if !recovered.dropped_epochs.is_empty() || recovered.to_apply > 0 {
                    tracing::info!(
                        machine = name,
                        "retention store opened: {} epochs to apply, {} unfinished dropped",
                        recovered.to_apply,
                        recovered.dropped_epochs.len()
                    );
                }
                Ok((store, catalogue))
            }
            Err(StoreError::NotAStore { .. }) if record.store.is_none() => {
                let storage = empty(&folder)
                    .and_then(|()| FileStorage::open(&folder))
                    .map_err(io)?;
                let capacity = record.policy.space;
                let free = volume::space(&volume.folder)?.free;
                let room = if capacity == 0 { free } else { capacity.min(free) };
                // Sixteen segments at least, so that room can be made in small pieces.
                let segment_size = (room / 16 / SEGMENT_SIZE_SMALL * SEGMENT_SIZE_SMALL)
                    .clamp(SEGMENT_SIZE_SMALL, SEGMENT_SIZE_DEFAULT);
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
                let catalogue = Catalogue::open(&folder).ok().map(|(catalogue, _)| catalogue);
                Ok((store, catalogue))
            }
            Err(source) => Err(failed(source)),
        }
    }

    /// An alarm for a store that cannot be relied on any more.
    fn raise_resync(&self, name: &str, error: &MachineError) {
        if let MachineError::Resync { .. } = error {
            self.hub.raise(Alarm {
                id: crate::target::report::ALARM_RESYNC.to_owned(),
                subject: name.to_owned(),
                severity: Severity::Critical,
                text: error.to_string(),
                hint: error.hint().unwrap_or_default(),
                since: Timestamp::now(),
            });
        }
    }

    /// Brings the generation of pairs and store to the higher of the two. They differ when raising it was cut, or when the
    /// state of this appliance was set back: a fence that once stood must not fall by that.
    fn agree_on_generation(
        &self,
        name: &str,
        store: &mut FileStore,
        of_pairs: u64,
    ) -> Result<u64, MachineError> {
        let generation = of_pairs.max(store.generation());
        if of_pairs < generation {
            tracing::warn!(
                machine = name,
                "the pairs are at generation {of_pairs} and the retention store at {generation}: the state of this \
                 appliance was set back; sources that were fenced stay fenced"
            );
            self.hub.state().raise_generation_to(name, generation)?;
        }
        store
            .raise_generation(generation)
            .map_err(|source| MachineError::Store {
                machine: name.to_owned(),
                source,
            })?;
        Ok(generation)
    }

    fn note_store(&self, name: &str, id: &str) -> Result<(), MachineError> {
        self.note(name, |record| {
            record.store = Some(id.to_owned());
            record.committed = 0;
        })
    }

    pub(super) fn note(&self, name: &str, work: impl FnOnce(&mut MachineRecord)) -> Result<(), MachineError> {
        let noted = self.hub.state().change_machine(name, |record| {
            work(record);
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
fn empty(folder: &Path) -> std::io::Result<()> {
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

/// A catalogue that cannot be written.
pub fn catalogue_error(folder: &Path, error: rusqlite::Error) -> MachineError {
    MachineError::Io {
        attempted: "write the catalogue in",
        path: folder.to_owned(),
        source: std::io::Error::other(error),
    }
}
