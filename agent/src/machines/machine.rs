//! One open machine: its disks, its store, its applier.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mt_retention::files::FileStorage;
use mt_retention::{Disk, Store, StoreAccess, StoreError, TargetDisk, apply_step_of};

use super::catalogue::Catalogue;
use super::disk::MachineDisk;
use super::error::MachineError;
use super::lag::StoreSettings;
use super::stopped::{Cause, Stopped};
use crate::hub::{Alarm, Hub, Severity};
use crate::state::machines::Policy;
use crate::target::report::ALARM_RESYNC;

/// Most bytes that an applier brings to the disks in one step: it holds them, and as much of before-images.
const APPLY_BYTES: u64 = 4 << 20;
/// About as much for all appliers together, though no step is smaller than the least: sixteen take no more memory than two.
const APPLY_BYTES_OF_ALL: u64 = 8 << 20;
const APPLY_BYTES_MIN: u64 = 512 << 10;

/// How many steps of applying are under way, in all machines.
#[derive(Debug, Clone, Default)]
pub struct Steps(Arc<AtomicU64>);

/// How machines are held: what is configured, and what they share.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// What is configured.
    pub settings: StoreSettings,
    /// Their appliers at work.
    pub steps: Steps,
}

/// A step that is under way.
struct StepUnderWay<'a> {
    of: &'a Steps,
    budget: u64,
}

impl Steps {
    fn begin(&self) -> StepUnderWay<'_> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        StepUnderWay {
            of: self,
            budget: (APPLY_BYTES_OF_ALL / count).clamp(APPLY_BYTES_MIN, APPLY_BYTES),
        }
    }
}

impl Drop for StepUnderWay<'_> {
    fn drop(&mut self) {
        self.of.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Raised while complete epochs cannot be brought to the disks, since the store has no room for before-images.
pub const ALARM_FULL: &str = "retention-full";

/// The store as the agent has it.
pub type FileStore = Store<FileStorage>;

/// An epoch that a source has begun.
#[derive(Debug, Clone)]
pub struct OpenEpoch {
    /// Its name, for a source that comes back.
    pub id: [u8; 16],
    /// Its number.
    pub number: u64,
    /// Whether a session works on it.
    pub in_session: bool,
    /// When its session was lost.
    pub lost: Option<Instant>,
}

/// How far an epoch was received.
#[derive(Debug, Default)]
pub struct Received {
    /// Which epoch.
    pub epoch_id: [u8; 16],
    /// Up to where each disk was received, bytes.
    pub settled: Vec<u64>,
}

/// The store of a machine, one lock at a time.
struct Shared<'a>(&'a Machine);

impl StoreAccess<FileStorage> for Shared<'_> {
    fn with<T>(&mut self, work: impl FnOnce(&mut FileStore) -> T) -> Option<T> {
        self.0.lock().store.as_mut().map(work)
    }
}

/// What the lock guards.
pub struct Inner {
    /// The store; none where epochs go straight to the disks.
    pub store: Option<FileStore>,
    /// The epoch that is open.
    pub epoch: Option<OpenEpoch>,
    /// Number of the newest epoch, where there is no store.
    pub direct_epoch: u64,
    /// What the machine is busy with, when it takes no epochs and no second act.
    pub busy: Option<&'static str>,
    /// Why nothing more is applied or acknowledged.
    pub failed: Option<Stopped>,
    /// Whether the applier waits for room.
    pub waits_for_room: bool,
    /// Whether room was wanted, and none could be made.
    pub is_full: bool,
    /// Which points are kept.
    pub policy: Policy,
    stop: bool,
}

/// An open machine. Its methods block on disks.
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its disks, in the order of the store.
    pub disks: Vec<MachineDisk>,
    pub(super) hub: Hub,
    pub(super) settings: StoreSettings,
    steps: Steps,
    /// Whether complete epochs may not be on the disks yet. True before any epoch is complete that they lack.
    pub(super) lags: AtomicBool,
    /// Held by whoever has content of the log that lies over a disk.
    pub(super) laying: Mutex<()>,
    inner: Mutex<Inner>,
    /// How far the open epoch is. Its lock is never held while anything else is waited for: tasks that must not block take it.
    received: Mutex<Received>,
    /// Taken before the store's lock where both are held.
    catalogue: Mutex<Option<Catalogue>>,
    changed: Condvar,
    /// Held by whoever makes room.
    pub(super) making_room: Mutex<()>,
    /// The generation. Held for reading while something is written for a source.
    fence: RwLock<u64>,
}

impl Machine {
    /// A machine with these disks and this store. The applier is started.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        name: String,
        disks: Vec<MachineDisk>,
        store: Option<(FileStore, Option<Catalogue>)>,
        generation: u64,
        policy: Policy,
        manner: Manner,
        hub: Hub,
    ) -> Result<Arc<Self>, MachineError> {
        let (store, catalogue) = store.map_or((None, None), |(store, catalogue)| (Some(store), catalogue));
        let machine = Arc::new(Self {
            settings: manner.settings,
            steps: manner.steps,
            lags: AtomicBool::new(store.is_some()),
            catalogue: Mutex::new(catalogue),
            inner: Mutex::new(Inner {
                store,
                epoch: None,
                direct_epoch: 0,
                busy: None,
                failed: None,
                waits_for_room: false,
                is_full: false,
                policy,
                stop: false,
            }),
            changed: Condvar::new(),
            making_room: Mutex::default(),
            fence: RwLock::new(generation),
            name,
            disks,
            hub,
            received: Mutex::default(),
            laying: Mutex::default(),
        });
        if machine.lock().store.is_some() {
            let weak = Arc::downgrade(&machine);
            std::thread::Builder::new()
                .name("applier".to_owned())
                .spawn(move || {
                    // The machine may go away between two steps; it does not wait for its applier.
                    while let Some(machine) = weak.upgrade() {
                        if !machine.apply_or_wait() {
                            return;
                        }
                    }
                })
                .map_err(|source| MachineError::Io {
                    attempted: "start the applier of",
                    path: machine.name.clone().into(),
                    source,
                })?;
        }
        Ok(machine)
    }

    /// The disks as the store wants them.
    pub fn targets(&self) -> Vec<&dyn TargetDisk> {
        self.disks.iter().map(|disk| disk as &dyn TargetDisk).collect()
    }

    /// The disks as the store's table has them.
    pub fn table(disks: &[MachineDisk]) -> Vec<Disk> {
        disks
            .iter()
            .map(|disk| Disk {
                id: disk.scsi_id.clone(),
                size: disk.size,
            })
            .collect()
    }

    /// Takes the lock.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the open epoch is.
    pub(super) fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for a change.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change for a while, and takes the lock again.
    pub fn wait<'a>(&self, guard: MutexGuard<'a, Inner>, time: Duration) -> MutexGuard<'a, Inner> {
        self.changed
            .wait_timeout(guard, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// The generation.
    pub fn generation(&self) -> u64 {
        *self.fence.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to write for a session of this generation; nobody can raise it while it is held.
    ///
    /// # Errors
    /// When the generation has been raised since.
    pub fn pass(&self, session: u64) -> Result<RwLockReadGuard<'_, u64>, MachineError> {
        let guard = self.fence.read().unwrap_or_else(PoisonError::into_inner);
        if *guard == session {
            return Ok(guard);
        }
        Err(MachineError::Fenced {
            machine: self.name.clone(),
            now: *guard,
            session,
        })
    }

    /// Raises the generation, durably: in the state, in the store, and for every session that is under way. When this
    /// returns, nothing of an older session is being written.
    ///
    /// # Errors
    /// When it cannot be stored. Sessions are fenced all the same.
    pub fn raise_generation(&self) -> Result<u64, MachineError> {
        let mut fence = self.fence.write().unwrap_or_else(PoisonError::into_inner);
        // Whatever happens next, no session goes on.
        let before = std::mem::replace(&mut *fence, u64::MAX);
        let generation = self.hub.state().raise_generation(&self.name)?.max(before + 1);
        let mut inner = self.lock();
        if let Some(store) = &mut inner.store {
            store.abort_epoch();
            let now = store.generation();
            store
                .raise_generation(generation.max(now + 1))
                .map_err(|source| self.store_error(source))?;
        }
        inner.epoch = None;
        *fence = generation;
        Ok(generation)
    }

    /// Lets the catalogue follow the store. The store's lock is held only while summaries are copied.
    pub fn keep_catalogue(&self) {
        let mut catalogue = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(known) = catalogue.as_mut() {
            let news = self.lock().store.as_ref().and_then(|store| known.news(store));
            let Some(news) = news else { return };
            if let Err(error) = known.take(&news) {
                tracing::warn!(machine = %self.name, "the catalogue of the retention store cannot be written: {error}");
                *catalogue = None;
            }
        }
    }

    /// Makes the catalogue anew from the footers of the segments, a segment at a time.
    ///
    /// # Errors
    /// When there is no store, a footer cannot be read, or the catalogue cannot be written.
    pub fn rebuild_catalogue(&self, folder: &std::path::Path) -> Result<(), MachineError> {
        let fail = |error| super::registry::catalogue_error(folder, error);
        let mut catalogue = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        *catalogue = None;
        super::catalogue::remove(folder).map_err(fail)?;
        let (mut anew, _) = Catalogue::open(folder).map_err(fail)?;
        for segment in self.with_store(|store| Ok(store.sealed_segments()))? {
            self.with_store(|store| store.reread_footer(segment))?;
        }
        while let Some(news) = self.with_store(|store| Ok(anew.news(store)))? {
            anew.take(&news).map_err(fail)?;
        }
        *catalogue = Some(anew);
        Ok(())
    }

    /// Notes in the state up to where the store is complete, so that a volume that was set back is noticed at its next
    /// opening.
    pub fn note_committed(&self) {
        let committed = self.lock().store.as_ref().map_or(0, |store| store.committed().0);
        let known = self
            .hub
            .state()
            .machine(&self.name)
            .map(|record| record.committed);
        if known.is_ok_and(|known| known >= committed) {
            return;
        }
        let noted = self.hub.state().change_machine(&self.name, |record| {
            record.committed = committed;
            Ok::<(), std::convert::Infallible>(())
        });
        if let Err(error) = noted {
            tracing::warn!(machine = %self.name, "cannot note the newest epoch in the state: {error}");
        }
    }

    /// Reads a segment of the store from end to end, and marks the points that depend on what is damaged in it.
    ///
    /// # Errors
    /// When there is no store, or its storage fails.
    pub fn check_segment(&self, segment: u64) -> Result<mt_retention::Checked, MachineError> {
        let catalogue = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_store(|store| super::folder::check(&self.name, store, catalogue.as_ref(), segment))
    }

    /// Ends the applier; complete epochs that are not on the disks are brought there when the store is opened again.
    pub fn stop(&self) {
        self.keep_catalogue();
        self.note_committed();
        // Closed in order it needs no write-ahead log beside it.
        *self.catalogue.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.lock().stop = true;
        self.notify();
    }

    /// Does one step of applying, or waits for something to apply. Says whether to go on.
    fn apply_or_wait(&self) -> bool {
        let inner = self.lock();
        if inner.stop {
            return false;
        }
        let up_to_date = inner
            .store
            .as_ref()
            .is_none_or(|store| store.applied() == store.committed());
        if up_to_date {
            self.lags.store(false, Ordering::Release);
        }
        let idle = inner.failed.is_some() || up_to_date;
        if idle || inner.waits_for_room {
            let mut inner = self.wait(inner, Duration::from_secs(1));
            if inner.waits_for_room {
                inner.waits_for_room = false;
            }
            return !inner.stop;
        }
        drop(inner);
        // The lock is taken for what is done with the log only: a disk that is slow or hangs keeps nobody from the store.
        let step = self.steps.begin();
        let done = apply_step_of(&mut Shared(self), &self.targets(), step.budget);
        drop(step);
        let mut inner = self.lock();
        match done {
            // Whoever waits for the disks to come nearer looks again.
            Ok(_) => self.notify(),
            Err(error @ StoreError::Full { .. }) => {
                drop(inner);
                let made = self.make_room();
                inner = self.lock();
                if !made {
                    inner.waits_for_room = true;
                    self.raise_full(&mut inner, &error);
                    self.notify();
                }
            }
            Err(error) => {
                self.fail(&mut inner, &error);
            }
        }
        !inner.stop
    }

    /// Nothing is applied or acknowledged any more, and an alarm says why.
    pub fn fail(&self, inner: &mut Inner, error: &StoreError) {
        let stopped = Stopped::by(error);
        tracing::error!(machine = %self.name, "{}", stopped.why);
        self.hub.raise(Alarm {
            id: ALARM_RESYNC.to_owned(),
            subject: self.name.clone(),
            severity: Severity::Critical,
            text: format!("nothing more is acknowledged: {}", stopped.why),
            hint: stopped.hint.clone(),
            since: Timestamp::now(),
        });
        inner.failed = Some(stopped);
        self.notify();
    }

    /// Tells that disks and store have to be compared anew.
    pub fn raise_resync(&self, refusal: &mt_wire::Refusal) {
        self.hub.raise(Alarm {
            id: ALARM_RESYNC.to_owned(),
            subject: self.name.clone(),
            severity: Severity::Critical,
            text: refusal.text.clone(),
            hint: refusal.hint.clone(),
            since: Timestamp::now(),
        });
    }

    /// Tells that there is no room.
    pub fn raise_full(&self, inner: &mut Inner, error: &StoreError) {
        inner.is_full = true;
        self.hub.raise(Alarm {
            id: ALARM_FULL.to_owned(),
            subject: self.name.clone(),
            severity: Severity::Critical,
            text: error.to_string(),
            hint: format!(
                "replication waits, and no point is lost; {}",
                error.hint().unwrap_or_default()
            ),
            since: Timestamp::now(),
        });
    }

    /// An error of the store, with the machine's name.
    pub fn store_error(&self, source: StoreError) -> MachineError {
        MachineError::Store {
            machine: self.name.clone(),
            source,
        }
    }

    /// Whether a target disk failed, and nothing more is done until the machine is opened anew.
    pub fn is_stopped_by_disk(&self) -> bool {
        let inner = self.lock();
        inner
            .failed
            .as_ref()
            .is_some_and(|stopped| stopped.cause == Cause::Disk)
    }

    /// What its source or its operator is told when its points cannot be relied on.
    pub fn resync(&self, why: &str) -> MachineError {
        MachineError::Resync {
            machine: self.name.clone(),
            why: why.to_owned(),
        }
    }

    /// Runs `work` with the store.
    ///
    /// # Errors
    /// When there is none, or `work` fails.
    pub fn with_store<T>(
        &self,
        work: impl FnOnce(&mut FileStore) -> Result<T, StoreError>,
    ) -> Result<T, MachineError> {
        let mut inner = self.lock();
        let store = inner
            .store
            .as_mut()
            .ok_or_else(|| MachineError::NoStore(self.name.clone()))?;
        work(store).map_err(|source| self.store_error(source))
    }

    /// The point that is meant.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn find_point(
        &self,
        wanted: &super::points::Wanted,
    ) -> Result<mt_retention::EpochNumber, MachineError> {
        let inner = self.lock();
        let store = inner
            .store
            .as_ref()
            .ok_or_else(|| MachineError::NoStore(self.name.clone()))?;
        let epoch = wanted.find(&self.name, store.points(), Timestamp::now())?;
        match store.damage_of(epoch) {
            None => Ok(epoch),
            Some(why) => Err(self.store_error(StoreError::PointDamaged {
                epoch,
                why: why.to_owned(),
            })),
        }
    }

    /// Asks every disk who it is.
    ///
    /// # Errors
    /// What is wrong with the first that is not what it was.
    pub fn recheck(&self) -> Result<(), MachineError> {
        for disk in &self.disks {
            disk.disk.recheck().map_err(|refusal| MachineError::Disk {
                machine: self.name.clone(),
                disk: disk.name.clone(),
                source: refusal.into(),
            })?;
        }
        Ok(())
    }
}
