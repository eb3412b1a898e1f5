//! What is going on, in one place: sessions report into it, the local socket reads from it.
//!
//! Nothing here blocks on a disk but what says so (`state()`), and no lock is held across such a call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::disks::facts::Inventory;
use crate::model::{Job, JobId, PairName};
use crate::state::State;

/// Events that a slow reader may be behind before it misses some; it is told when it did.
const EVENTS_MAX: usize = 1024;

/// How bad an alarm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Notice,
    /// Needs somebody soon.
    Warning,
    /// Something asked for does not happen.
    Critical,
}

/// Something that is wrong until it is cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Alarm {
    /// What kind: one alarm of a kind for each subject. Part of the interface.
    pub id: String,
    /// What it is about: a pair, a disk, the agent.
    pub subject: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub hint: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// The session of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PairSession {
    /// Address of the source.
    pub peer: String,
    /// The job this session is.
    pub job: JobId,
    /// Bytes a second over the last seconds, of disk gone over.
    pub rate: u64,
    /// Seconds that are left at this rate.
    pub seconds_left: Option<u64>,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// A job began.
    JobStarted {
        /// The job.
        job: Job,
    },
    /// A job went on.
    JobProgress {
        /// The job.
        job: Job,
    },
    /// A job ended.
    JobEnded {
        /// The job.
        job: Job,
    },
    /// Something is wrong.
    AlarmRaised {
        /// The alarm.
        alarm: Alarm,
    },
    /// It is no longer.
    AlarmCleared {
        /// The alarm.
        alarm: Alarm,
    },
    /// A pair was added.
    PairAdded {
        /// `MACHINE/DISK`.
        pair: String,
    },
    /// A pair was removed.
    PairRemoved {
        /// `MACHINE/DISK`.
        pair: String,
    },
    /// Disks came, went or changed.
    DisksChanged {
        /// In words, one line a disk.
        changes: Vec<String>,
    },
}

/// An event as the socket sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct HubEvent {
    /// Counts up from 1 since the agent was started.
    pub sequence: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// What.
    #[serde(flatten)]
    pub happening: Happening,
}

/// Totals since the agent was started, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Content written to target disks, bytes.
    pub bytes_written: u64,
    /// Made zero on target disks, bytes.
    pub bytes_zeroed: u64,
    /// On the wire in both directions, bytes.
    pub bytes_on_wire: u64,
    /// Jobs that came to their end.
    pub jobs_done: u64,
    /// Jobs that failed or were cut off.
    pub jobs_failed: u64,
}

/// What is going on right now.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Sessions, by pair.
    pub sessions: BTreeMap<PairName, PairSession>,
    /// Jobs that run.
    pub running: BTreeMap<JobId, Job>,
    /// What is wrong, worst first.
    pub alarms: Vec<Alarm>,
    /// The newest inventory.
    pub inventory: Option<Arc<Inventory>>,
    /// Totals.
    pub totals: Totals,
}

#[derive(Default)]
struct Live {
    sessions: BTreeMap<PairName, PairSession>,
    running: BTreeMap<JobId, Job>,
    alarms: BTreeMap<(String, String), Alarm>,
    inventory: Option<Arc<Inventory>>,
    totals: Totals,
    sequence: u64,
}

/// The place. Clones are the same place.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    state: State,
    started: Timestamp,
    live: Mutex<Live>,
    events: broadcast::Sender<HubEvent>,
}

impl Hub {
    /// A hub above a state.
    pub fn new(state: State, now: Timestamp) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Self {
            shared: Arc::new(Shared {
                state,
                started: now,
                live: Mutex::default(),
                events,
            }),
        }
    }

    /// The durable state. Its methods block on the disk.
    pub fn state(&self) -> &State {
        &self.shared.state
    }

    /// When the agent was started.
    pub fn started(&self) -> Timestamp {
        self.shared.started
    }

    /// A copy of what is going on.
    pub fn snapshot(&self) -> Snapshot {
        let live = self.live();
        let mut alarms: Vec<Alarm> = live.alarms.values().cloned().collect();
        alarms.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.since.cmp(&b.since)));
        Snapshot {
            sessions: live.sessions.clone(),
            running: live.running.clone(),
            alarms,
            inventory: live.inventory.clone(),
            totals: live.totals,
        }
    }

    /// Events from now on. A reader that falls more than a thousand behind is told how many it missed.
    pub fn subscribe(&self) -> broadcast::Receiver<HubEvent> {
        self.shared.events.subscribe()
    }

    /// A session has opened a pair, and its job has begun.
    pub fn session_started(&self, pair: &PairName, session: PairSession, job: Job, now: Timestamp) {
        let mut live = self.live();
        live.sessions.insert(pair.clone(), session);
        live.running.insert(job.id, job.clone());
        self.tell(&mut live, now, Happening::JobStarted { job });
    }

    /// A session went on.
    pub fn session_progress(&self, pair: &PairName, session: PairSession, job: Job, now: Timestamp) {
        let mut live = self.live();
        Self::count(&mut live, &job);
        live.sessions.insert(pair.clone(), session);
        live.running.insert(job.id, job.clone());
        self.tell(&mut live, now, Happening::JobProgress { job });
    }

    /// A session is over, and its job with it.
    pub fn session_ended(&self, pair: &PairName, job: Job, now: Timestamp) {
        let mut live = self.live();
        Self::count(&mut live, &job);
        live.sessions.remove(pair);
        live.running.remove(&job.id);
        if job.error.is_none() {
            live.totals.jobs_done += 1;
        } else {
            live.totals.jobs_failed += 1;
        }
        self.tell(&mut live, now, Happening::JobEnded { job });
    }

    /// A job of the target's own has begun.
    pub fn job_started(&self, job: &Job, now: Timestamp) {
        let mut live = self.live();
        live.running.insert(job.id, job.clone());
        self.tell(&mut live, now, Happening::JobStarted { job: job.clone() });
    }

    /// A job of the target's own went on.
    pub fn job_progress(&self, job: &Job, now: Timestamp) {
        let mut live = self.live();
        live.running.insert(job.id, job.clone());
        self.tell(&mut live, now, Happening::JobProgress { job: job.clone() });
    }

    /// A job of the target's own is over.
    pub fn job_ended(&self, job: Job, now: Timestamp) {
        let mut live = self.live();
        live.running.remove(&job.id);
        if job.error.is_none() {
            live.totals.jobs_done += 1;
        } else {
            live.totals.jobs_failed += 1;
        }
        self.tell(&mut live, now, Happening::JobEnded { job });
    }

    /// Raises an alarm. One that is raised already keeps its time and takes the new words.
    pub fn raise(&self, mut alarm: Alarm) {
        let mut live = self.live();
        let key = (alarm.id.clone(), alarm.subject.clone());
        let now = alarm.since;
        if let Some(before) = live.alarms.get(&key) {
            alarm.since = before.since;
            if *before == alarm {
                return;
            }
        }
        let (id, subject, hint) = (&alarm.id, &alarm.subject, &alarm.hint);
        match alarm.severity {
            Severity::Critical => tracing::error!(alarm = id, subject, hint, "alarm: {}", alarm.text),
            Severity::Warning => tracing::warn!(alarm = id, subject, hint, "alarm: {}", alarm.text),
            Severity::Notice => tracing::info!(alarm = id, subject, hint, "alarm: {}", alarm.text),
        }
        live.alarms.insert(key, alarm.clone());
        self.tell(&mut live, now, Happening::AlarmRaised { alarm });
    }

    /// Clears an alarm, where it is raised.
    pub fn clear(&self, id: &str, subject: &str, now: Timestamp) {
        let mut live = self.live();
        if let Some(alarm) = live.alarms.remove(&(id.to_owned(), subject.to_owned())) {
            tracing::info!(alarm = id, subject, "alarm is over: {}", alarm.text);
            self.tell(&mut live, now, Happening::AlarmCleared { alarm });
        }
    }

    /// Takes the newest inventory, with what changed in words.
    pub fn set_inventory(&self, inventory: Arc<Inventory>, changes: Vec<String>, now: Timestamp) {
        let mut live = self.live();
        live.inventory = Some(inventory);
        if !changes.is_empty() {
            self.tell(&mut live, now, Happening::DisksChanged { changes });
        }
    }

    /// Tells that a pair was added or removed.
    pub fn pairs_changed(&self, happening: Happening, now: Timestamp) {
        let mut live = self.live();
        self.tell(&mut live, now, happening);
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what a job has moved since it was last seen to the totals.
    fn count(live: &mut Live, job: &Job) {
        let before = live.running.get(&job.id);
        let since = |now: u64, field: fn(&Job) -> u64| now.saturating_sub(before.map_or(0, field));
        let written = since(job.bytes_written, |job| job.bytes_written);
        let zeroed = since(job.bytes_zeroed, |job| job.bytes_zeroed);
        let on_wire = since(job.bytes_on_wire, |job| job.bytes_on_wire);
        live.totals.bytes_written += written;
        live.totals.bytes_zeroed += zeroed;
        live.totals.bytes_on_wire += on_wire;
    }

    fn tell(&self, live: &mut Live, time: Timestamp, happening: Happening) {
        live.sequence += 1;
        // No reader is no error.
        let _ = self.shared.events.send(HubEvent {
            sequence: live.sequence,
            time,
            happening,
        });
    }
}
