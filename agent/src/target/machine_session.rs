//! The part of a session that is about a machine and its epochs.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use mt_retention::DiskIndex;
use mt_wire::limits::REGION_SIZE;
use mt_wire::{ErrorCode, MachineOpened, OpenMachine, OpenPair, Refusal};

use super::opening::{HeldDisk, Opener, check_sizes, failover_under_way, internal};
use super::report::ALARM_RESYNC;
use super::session::{Answer, REGION_WINDOW, Session, check_digests};
use crate::epochs::target as epochs;
use crate::hub::{Hub, PairSession};
use crate::io::buffers::PooledBuf;
use crate::machines::machine::Machine;
use crate::machines::stopped::Stopped;
use crate::model::{Job, JobId, JobKind, JobState, PairName};
use crate::seeding::target::{Event, Opened, Outcome, Progress};

/// A rate is measured over this many reports, about a second each.
const RATE_SAMPLES: usize = 10;

/// A machine that a session has opened.
pub struct MachineSession {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Its disks in the order in which the source names them, each with the claim to its pair.
    pub disks: Vec<Arc<HeldDisk>>,
    /// For each of these its place in the machine and its store, which is another one.
    places: Vec<DiskIndex>,
    /// Its generation when the session began.
    pub generation: u64,
    /// The store's identity; all zero when there is none.
    store_id: [u8; 16],
    newest_epoch: u64,
    /// The epoch whose disks are gone over; all zero before the first.
    pub(super) epoch_id: [u8; 16],
}

impl MachineSession {
    /// The place in the machine of a disk that this session knows by this number.
    pub(super) fn place(&self, disk: usize) -> Option<DiskIndex> {
        self.places.get(disk).copied()
    }
}

/// Opens all disks of a machine for its source. Blocks on disks and on the state.
///
/// # Errors
/// The refusal that the source is told. Nothing has been written.
pub fn open_machine(
    opener: &Opener,
    open: &OpenMachine,
    peer: SocketAddr,
) -> Result<MachineSession, Refusal> {
    let state = opener.hub.state();
    if let Some(caller) = &opener.caller {
        // Before anything else is said: what exists here is nobody's business but its owner's.
        let pairs = state.pairs().map_err(|error| internal(&error))?;
        let of_machine = pairs.iter().filter(|pair| pair.name.machine == open.machine);
        let generation = of_machine.map(|pair| pair.generation).max();
        caller.authorise(&open.machine, generation, open.generation)?;
    }
    let record = state.machine(&open.machine).map_err(|error| internal(&error))?;
    if !record.failover.takes_epochs() {
        return Err(failover_under_way(&open.machine, record.failover));
    }
    let pairs = opener.machines.pairs_of(&open.machine).map_err(|error| Refusal {
        hint: format!(
            "on the target, as root: mt-agent pair add {}/DISK SCSI-ID (see \"mt-agent disks list\")",
            open.machine
        ),
        ..error.refusal()
    })?;
    let mut named: Vec<&str> = open.disks.iter().map(|disk| disk.name.as_str()).collect();
    let mut paired: Vec<&str> = pairs.iter().map(|pair| pair.name.disk.as_str()).collect();
    named.sort_unstable();
    paired.sort_unstable();
    if named != paired {
        return Err(Refusal {
            code: ErrorCode::MachineMismatch,
            text: format!(
                "machine {} has the disks {}, the source names {}; a point would not be consistent over all of them, \
                 and nothing was written",
                open.machine,
                paired.join(", "),
                named.join(", ")
            ),
            hint:
                "name every disk of the machine with --disk, or remove the pair of a disk that it has no more"
                    .to_owned(),
        });
    }
    let mut holds = Vec::new();
    for disk in &open.disks {
        let Some(pair) = pairs.iter().find(|pair| pair.name.disk == disk.name) else {
            continue;
        };
        let hold = opener.pairs.take(pair.id, peer).map_err(|holder| Refusal {
            code: ErrorCode::PairBusy,
            text: format!(
                "pair {} is in use by the source at {holder}; nothing was written by this one",
                pair.name
            ),
            hint: "wait for it, or stop it; a source that is gone is noticed after 30 s".to_owned(),
        })?;
        holds.push(hold);
        let as_pair = OpenPair {
            mode: mt_wire::Mode::Epoch,
            machine: open.machine.clone(),
            disk: disk.name.clone(),
            size: disk.size,
            logical_block_size: disk.logical_block_size,
            resume_seeding_id: [0; 16],
            resume_offset: 0,
            generation: open.generation,
        };
        check_sizes(pair, &pair.name, &as_pair)?;
        if pair.protected_size.is_none() {
            state
                .set_protected_size(pair.id, disk.size)
                .map_err(|error| internal(&error))?;
        }
    }
    let machine = opener
        .machines
        .open(&open.machine)
        .map_err(|error| error.refusal())?;
    let generation = machine.generation();
    let fenced = |now| Refusal {
        code: ErrorCode::Fenced,
        text: format!(
            "machine {} is at generation {now}, the source knows {}: it was left behind by a failover",
            open.machine, open.generation
        ),
        hint: "this source may not write any more; see \"mt-agent status\" on the target".to_owned(),
    };
    if open.generation > 0 && open.generation < generation {
        return Err(fenced(generation));
    }
    machine.recheck().map_err(|error| error.refusal())?;
    let newest_epoch = machine.newest_epoch().0;
    let store_id = machine
        .lock()
        .store
        .as_ref()
        .map_or([0; 16], |store| store.uuid());
    check_agreement(open, &machine, store_id, newest_epoch)?;
    let (mut disks, mut places) = (Vec::new(), Vec::new());
    for (disk, hold) in open.disks.iter().zip(holds) {
        let Some((place, known)) = machine.find_disk(&disk.name) else {
            return Err(Refusal {
                code: ErrorCode::MachineMismatch,
                text: format!(
                    "the pair {}/{} was added after machine {} was opened; nothing was written",
                    open.machine, disk.name, open.machine
                ),
                hint: "send it again; if it happens again, restart the agent on the target".to_owned(),
            });
        };
        // From here on the content is ours to overwrite, also after a restart.
        state.set_adopted(known.pair).map_err(|error| internal(&error))?;
        disks.push(Arc::new(HeldDisk::new(Arc::clone(&known.disk), hold)));
        places.push(place);
    }
    Ok(MachineSession {
        machine,
        disks,
        places,
        generation,
        store_id,
        newest_epoch,
        epoch_id: [0; 16],
    })
}

/// A source that was promised an epoch which the store does not have was promised it by a later state of this appliance:
/// somebody set it back. What the disks hold now is in no log, and no point can be relied on.
fn check_agreement(
    open: &OpenMachine,
    machine: &Machine,
    store_id: [u8; 16],
    newest_epoch: u64,
) -> Result<(), Refusal> {
    let known = open.store_id != [0; 16] && store_id != [0; 16];
    if known && open.store_id == store_id && open.confirmed_epoch > newest_epoch {
        let why = format!(
            "the source was promised epoch {}, the newest of the retention store is {newest_epoch}: the appliance was set \
             back to an older state",
            open.confirmed_epoch
        );
        let error = machine.resync(&why);
        let mut inner = machine.lock();
        inner.failed.get_or_insert(Stopped::set_back(&open.machine, why));
        drop(inner);
        let refusal = error.refusal();
        machine.raise_resync(&refusal);
        return Err(refusal);
    }
    Ok(())
}

impl Session {
    /// Carries out what is about the machine and not about one disk.
    pub(super) fn act_on_machine(&mut self, action: epochs::Action<PooledBuf>) {
        match action {
            epochs::Action::Disk(_) => {}
            epochs::Action::OpenMachine(open) => {
                let (opener, peer) = (self.opener.clone(), self.peer);
                self.submit(move || Answer::MachineOpened(open_machine(&opener, &open, peer).map(Box::new)));
            }
            epochs::Action::BeginEpoch(begin) => self.on_machine(move |machine, session| {
                let begun = machine.begin_epoch(session, begin.resume_epoch_id);
                begun
                    .map(epochs::Event::EpochBegun)
                    .map_err(|error| error.refusal())
            }),
            epochs::Action::WriteChanged {
                disk,
                extents,
                payload,
            } => self.on_disk_of_machine(disk, move |machine, session, place| {
                check_digests(&extents, &payload)?;
                machine
                    .write(session, place, &extents, &payload)
                    .map_err(|error| error.refusal())?;
                Ok(epochs::Event::ChangedWritten)
            }),
            epochs::Action::ZeroChanged { disk, ranges } => {
                self.on_disk_of_machine(disk, move |machine, session, place| {
                    machine
                        .zero(session, place, &ranges)
                        .map_err(|error| error.refusal())?;
                    Ok(epochs::Event::ChangedWritten)
                });
            }
            epochs::Action::Commit(end) => self.on_machine(move |machine, session| {
                let durable = machine.commit(session, &end).map_err(|error| error.refusal())?;
                Ok(epochs::Event::Committed(durable))
            }),
            epochs::Action::Abandon => self.on_machine(move |machine, _| {
                machine.abandon();
                Ok(epochs::Event::Abandoned)
            }),
        }
    }

    /// As [`Session::on_machine`], for a disk of this session: `work` is given its place in the machine.
    pub(super) fn on_disk_of_machine(
        &self,
        disk: usize,
        work: impl FnOnce(&Machine, u64, DiskIndex) -> Result<epochs::Event<PooledBuf>, Refusal> + Send + 'static,
    ) {
        let place = self.machine.as_ref().and_then(|session| session.place(disk));
        self.on_machine(move |machine, session| match place {
            Some(place) => work(machine, session, place),
            None => Err(Refusal {
                code: ErrorCode::Internal,
                text: format!(
                    "machine {} has no disk number {disk} in this session",
                    machine.name
                ),
                hint: "report this message; nothing was written".to_owned(),
            }),
        });
    }

    /// Runs `work` on a disk thread with the machine and the generation of this session.
    pub(super) fn on_machine(
        &self,
        work: impl FnOnce(&Machine, u64) -> Result<epochs::Event<PooledBuf>, Refusal> + Send + 'static,
    ) {
        let Some(session) = &self.machine else { return };
        let (machine, generation) = (Arc::clone(&session.machine), session.generation);
        // Whoever works for the session keeps its claims: no other session begins before the last late write has come back.
        let disks = session.disks.clone();
        let refused = Arc::clone(&self.refused);
        self.submit(move || {
            // Once something was refused the session ends, and nothing of what waits behind it will be acknowledged. Where the
            // store is full each of these would look for room again, and hold up the next session for all that time.
            let answer = match refused
                .get()
                .map_or_else(|| work(&machine, generation), |first| Err(first.clone()))
            {
                Ok(event) => event,
                Err(refusal) => Event::Failed(refused.get_or_init(|| refusal).clone()).into(),
            };
            drop(disks);
            Answer::Epoch(answer)
        });
    }

    pub(super) fn machine_opened(&mut self, session: Box<MachineSession>) -> epochs::Event<PooledBuf> {
        let opened = MachineOpened {
            generation: session.generation,
            store_id: session.store_id,
            newest_epoch: session.newest_epoch,
        };
        self.machine_report = Some(MachineReport::begin(
            &self.hub,
            &session.machine,
            self.peer,
            Timestamp::now(),
        ));
        self.machine = Some(session);
        epochs::Event::MachineOpened(opened)
    }

    /// A disk of the epoch is gone over next: from its beginning, or from where it was received before.
    pub(super) fn open_disk_of_epoch(&mut self, disk: usize, open: &OpenPair) {
        let Some(session) = &mut self.machine else { return };
        session.epoch_id = open.resume_seeding_id;
        let settled = session
            .place(disk)
            .map_or(0, |place| session.machine.settled(open.resume_seeding_id, place));
        let start = settled.min(open.resume_offset);
        let opened = Opened {
            seeding_id: open.resume_seeding_id,
            start: start - start % REGION_SIZE,
            generation: session.generation,
            region_window: REGION_WINDOW,
            scsi_id: session
                .disks
                .get(disk)
                .map(|disk| disk.paired.scsi_id.to_string())
                .unwrap_or_default(),
        };
        self.submit(move || Answer::Event(Event::Opened(opened)));
    }

    /// The session is over: an epoch that was not ended waits for its source to come back.
    pub(super) async fn machine_over(&mut self, outcome: &Outcome) {
        if let Some(session) = &self.machine {
            let machine = Arc::clone(&session.machine);
            // It waits for the machine's lock. The claims to the disks are held until it is through.
            let noted = tokio::task::spawn_blocking(move || machine.session_lost()).await;
            if let Err(error) = noted {
                tracing::error!("the end of a session was not noted by a fault of ours: {error}");
            }
        }
        if let Some(report) = self.machine_report.take() {
            report.end(&self.hub, outcome, Timestamp::now());
        }
    }
}

/// Tells the hub, the state and the log how an epoch goes.
pub struct MachineReport {
    pairs: Vec<PairName>,
    job: Job,
    since: Timestamp,
    samples: VecDeque<(Timestamp, u64)>,
}

impl MachineReport {
    fn begin(hub: &Hub, machine: &Machine, peer: SocketAddr, now: Timestamp) -> Self {
        let job = Job {
            bytes_total: machine.disks.iter().map(|disk| disk.size).sum(),
            peer: peer.to_string(),
            ..Job::new(JobKind::Epoch, &machine.name, now)
        };
        let job = store(hub, job);
        let pairs = machine
            .disks
            .iter()
            .filter_map(|disk| PairName::new(&machine.name, &disk.name).ok())
            .collect();
        tracing::info!(machine = %machine.name, job = job.id.0, peer = %peer, "epoch begins");
        let report = Self {
            pairs,
            job,
            since: now,
            samples: VecDeque::new(),
        };
        for pair in &report.pairs {
            hub.session_started(pair, report.session(), report.job.clone(), now);
        }
        report
    }

    /// Tells how far the session is.
    pub fn progress(&mut self, hub: &Hub, progress: Progress, on_wire: u64, now: Timestamp) {
        self.job.bytes_done = progress.settled;
        self.job.bytes_written = progress.bytes_written;
        self.job.bytes_zeroed = progress.bytes_zeroed;
        self.job.bytes_on_wire = on_wire;
        self.samples.push_back((now, progress.settled));
        if self.samples.len() > RATE_SAMPLES {
            self.samples.pop_front();
        }
        for pair in &self.pairs {
            hub.session_progress(pair, self.session(), self.job.clone(), now);
        }
    }

    fn end(mut self, hub: &Hub, outcome: &Outcome, now: Timestamp) {
        let machine = self.job.pair.clone();
        self.job.ended = Some(now);
        match outcome {
            Outcome::Complete => {
                self.job.state = JobState::Done;
                self.job.bytes_done = self.job.bytes_total;
                self.job.bytes_durable = self.job.bytes_total;
                tracing::info!(machine, job = self.job.id.0, "epoch is durable");
                hub.clear(ALARM_RESYNC, &machine, now);
            }
            Outcome::Closed => {
                self.job.state = JobState::Interrupted;
                self.job.error = Some("the source ended the session before its epoch".to_owned());
            }
            Outcome::Failed(refusal) => {
                let cut = matches!(
                    refusal.code,
                    ErrorCode::Other(0) | ErrorCode::TimedOut | ErrorCode::ShuttingDown
                );
                self.job.state = if cut {
                    JobState::Interrupted
                } else {
                    JobState::Failed
                };
                self.job.error = Some(refusal.text.clone());
                self.job.hint = Some(refusal.hint.clone()).filter(|hint| !hint.is_empty());
                tracing::warn!(
                    machine,
                    job = self.job.id.0,
                    code = refusal.code.word(),
                    "epoch failed: {}",
                    refusal.text
                );
            }
        }
        if let Err(error) = hub.state().update_job(&self.job) {
            tracing::error!("cannot store the job: {error}");
        }
        for pair in &self.pairs {
            hub.session_ended(pair, self.job.clone(), now);
        }
    }

    fn session(&self) -> PairSession {
        let rate = match (self.samples.front(), self.samples.back()) {
            (Some((first, from)), Some((last, to))) => {
                let millis = u64::try_from(last.as_millisecond() - first.as_millisecond()).unwrap_or(0);
                to.saturating_sub(*from)
                    .saturating_mul(1000)
                    .checked_div(millis)
                    .unwrap_or(0)
            }
            _ => 0,
        };
        let left = self.job.bytes_total.saturating_sub(self.job.bytes_done);
        PairSession {
            peer: self.job.peer.clone(),
            job: self.job.id,
            rate,
            seconds_left: left.checked_div(rate),
            since: self.since,
        }
    }
}

fn store(hub: &Hub, job: Job) -> Job {
    hub.state().insert_job(&job).unwrap_or_else(|error| {
        tracing::error!("cannot store the job: {error}");
        Job { id: JobId(0), ..job }
    })
}
