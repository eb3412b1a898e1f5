//! The job that carries a failover out, step by step, and the ways back. What may follow what is in
//! [`crate::failover::table`]; where a machine is, is stored before each step, so that a step that was cut is done again.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use mt_retention::{EpochNumber, Origin, StoreError, TargetDisk};

use super::disk::MachineDisk;
use super::error::MachineError;
use super::exports::Exports;
use super::jobs::{self, Jobs, Teller};
use super::machine::FileStore;
use super::points::Wanted;
use super::registry::Machines;
use super::revive::Fallen;
use crate::error::{ExitCode, Explain};
use crate::failover::table::{Illegal, Next, State, Verb};
use crate::model::{Job, JobKind, PairName};
use crate::state::machines::MachineRecord;

/// How long the epoch that is under way is waited for.
pub const FINAL_SYNC: Duration = Duration::from_secs(60);

/// For how long a committed failover can be undone unless told otherwise.
const KEEP_UNDO: SignedDuration = SignedDuration::from_hours(72);

/// What an act came to.
#[derive(Debug)]
pub enum Answer {
    /// A job carries it out.
    Job(Job),
    /// It is done.
    Done(MachineRecord),
    /// It was so already.
    Already(MachineRecord),
}

/// The operator's hand on failovers.
#[derive(Clone)]
pub struct Failovers {
    pub(super) machines: Machines,
    pub(super) jobs: Jobs,
    pub(super) exports: Exports,
    pub(super) fallen: Fallen,
}

impl Failovers {
    /// The hand on these machines.
    pub fn new(machines: Machines, jobs: Jobs, exports: Exports) -> Self {
        Self {
            machines,
            jobs,
            exports,
            fallen: Fallen::default(),
        }
    }

    /// Lets go of a machine, so that one of its pairs can be removed. Nothing of it may be under way.
    ///
    /// # Errors
    /// When a failover, a job, an export or an epoch needs it.
    pub fn let_go(&self, name: &str) -> Result<(), MachineError> {
        let record = self.machines.hub().state().machine(name)?;
        let hint =
            format!("\"mt-agent reprotect {name} --drop-points-of {name}\" ends that; then remove its pairs");
        match record.failover {
            State::Replicating => {}
            State::Committed => {
                if let Some(until) = record.undo_until.filter(|until| *until > Timestamp::now()) {
                    return Err(MachineError::refused(
                        "failover-under-way",
                        format!("the failover of machine {name} can be undone until {until}, with its pairs"),
                        hint,
                    ));
                }
            }
            state => {
                return Err(MachineError::refused(
                    "failover-under-way",
                    format!("machine {name} is {state}"),
                    format!("\"mt-agent cancel {name}\" goes back to replication; {hint}"),
                ));
            }
        }
        let _claim = self.jobs.claim(name)?;
        if self.exports.uses(name) {
            return Err(MachineError::refused(
                "points-exported",
                format!("points of machine {name} are exported"),
                "end that with \"mt-agent points unexport\"",
            ));
        }
        if let Some(machine) = self.machines.get(name) {
            drop(machine.make_busy("a pair is removed")?);
        }
        self.machines.let_go(name)
    }

    /// Fails a machine over to a point.
    ///
    /// # Errors
    /// When there is no such point, or the state of the machine does not allow it.
    pub fn failover(&self, name: &str, to: &Wanted) -> Result<Answer, MachineError> {
        let record = self.machines.hub().state().machine(name)?;
        if let Ok(Next::Already) = record.failover.next(Verb::Failover) {
            // Its disks may have been let go of; what is meant is found in the store alone. Whoever is told that it is so
            // already goes on to commit: in doubt the answer is no.
            let same = match to {
                Wanted::Epoch(epoch) => record.to == Some(*epoch),
                _ => {
                    let found = self
                        .machines
                        .look(name, |store| Ok(to.find(name, store.points(), Timestamp::now())))?;
                    record.to == Some(found?.0)
                }
            };
            if same {
                return Ok(Answer::Already(record));
            }
            return Err(MachineError::refused(
                "failover-under-way",
                format!(
                    "machine {name} is being failed over to point {} ({})",
                    record.to.unwrap_or(0),
                    record.failover
                ),
                "\"mt-agent cancel\" takes that back; then fail over to the other point",
            ));
        }
        record
            .failover
            .next(Verb::Failover)
            .map_err(|illegal| refused(name, illegal))?;
        if let Some(why) = &record.in_doubt {
            return Err(MachineError::refused(
                "disks-in-doubt",
                format!("the disks of machine {name} may hold a part of an epoch, of no one instant: {why}"),
                "send an epoch first, which compares all of them: \"mt-agent source send --machine\" on the source",
            ));
        }
        let claim = self.jobs.claim(name)?;
        self.revive(name)?;
        let to = self.point(name, to)?;
        self.change(name, Verb::Failover, |record| {
            record.to = Some(to);
            // A failover that is repeated has rolled, perhaps: the way back leads to where replication was.
            if record.failover == State::Replicating {
                record.before = None;
            }
            record.failure = None;
        })?;
        self.run(claim, name, JobKind::Failover)
    }

    /// Makes a failover final; what is needed to undo it is kept for a time. Said again with a time, that counts from now.
    ///
    /// # Errors
    /// When the state of the machine or the time does not allow it.
    pub fn commit(&self, name: &str, keep_undo: Option<SignedDuration>) -> Result<Answer, MachineError> {
        self.machines.pairs_of(name)?;
        let now = Timestamp::now();
        let until = now
            .saturating_add(keep_undo.unwrap_or(KEEP_UNDO))
            .unwrap_or(Timestamp::MAX);
        // Said before it is final: whoever commits should know what he cannot take back.
        let can_undo = self.can_undo(name);
        let changed = self.machines.hub().state().change_machine(name, |record| {
            let next = record
                .failover
                .next(Verb::Commit)
                .map_err(|illegal| refused(name, illegal))?;
            if next == Next::Already && keep_undo.is_none() {
                return Ok((next, record.clone()));
            }
            if let Some(before) = record.undo_until.filter(|_| next == Next::Already)
                && before < now
            {
                return Err(too_late(name, before));
            }
            record.undo_until = can_undo.then_some(until);
            record.undo_ended = !can_undo;
            record.failover = State::Committed;
            Ok((Next::Goes(State::Committed), record.clone()))
        })?;
        let (next, record) = changed?;
        if next == Next::Already {
            return Ok(Answer::Already(record));
        }
        match record.undo_until {
            Some(until) => tracing::info!(
                machine = name,
                "failover committed; it can be undone until {until}"
            ),
            None => tracing::info!(
                machine = name,
                "failover committed; it cannot be undone: there is no point before-failback"
            ),
        }
        Ok(Answer::Done(record))
    }

    /// Begins anew: a new generation, no points, and all of the disks is compared with the next epoch.
    ///
    /// # Errors
    /// When the state of the machine does not allow it.
    pub fn reprotect(&self, name: &str) -> Result<Answer, MachineError> {
        self.machines.pairs_of(name)?;
        let claim = self.jobs.claim(name)?;
        match self.change(name, Verb::Reprotect, |record| record.failure = None)? {
            (Next::Already, record) => Ok(Answer::Already(record)),
            (Next::Goes(_), _) => self.run(claim, name, JobKind::Reprotect),
        }
    }

    /// Takes a failover back, and goes on replicating.
    ///
    /// # Errors
    /// When the state of the machine does not allow it.
    pub fn cancel(&self, name: &str) -> Result<Answer, MachineError> {
        self.machines.pairs_of(name)?;
        match self.change(name, Verb::Cancel, |record| record.failure = None)? {
            (Next::Already, record) => Ok(Answer::Already(record)),
            (Next::Goes(_), _) => {
                // A failover that runs sees the new state at its next step and ends.
                let begin = Instant::now();
                let claim = loop {
                    match self.jobs.claim(name) {
                        Ok(claim) => break claim,
                        Err(error) if begin.elapsed() > FINAL_SYNC => return Err(error),
                        Err(_) => std::thread::sleep(Duration::from_millis(50)),
                    }
                };
                self.run(claim, name, JobKind::Cancel)
            }
        }
    }

    /// Puts the disks back as they were before failback.
    ///
    /// # Errors
    /// When the state of the machine or the time does not allow it.
    pub fn undo(&self, name: &str) -> Result<Answer, MachineError> {
        self.machines.pairs_of(name)?;
        let record = self.machines.hub().state().machine(name)?;
        if let Some(until) = record.undo_until
            && record.failover == State::Committed
            && until < Timestamp::now()
        {
            return Err(too_late(name, until));
        }
        let claim = match record.failover.next(Verb::Undo) {
            Ok(Next::Already) => return Ok(Answer::Already(record)),
            Ok(Next::Goes(_)) if !self.can_undo(name) => {
                return Err(MachineError::refused(
                    "undo-impossible",
                    format!("machine {name} has no point before-failback any more; nothing was changed"),
                    "\"mt-agent points list\" shows what there is; \"mt-agent reprotect\" replicates to its disks anew",
                ));
            }
            Ok(Next::Goes(_)) => self.jobs.claim(name)?,
            Err(illegal) => return Err(refused(name, illegal)),
        };
        self.change(name, Verb::Undo, |record| record.failure = None)?;
        self.run(claim, name, JobKind::Undo)
    }

    /// Brings the disks to a point without a failover; the next epoch of the source brings them forth again.
    ///
    /// # Errors
    /// When there is no such point, or a failover or another job is under way.
    pub fn roll(&self, name: &str, to: &Wanted) -> Result<Answer, MachineError> {
        let record = self.machines.hub().state().machine(name)?;
        if record.failover != State::Replicating {
            return Err(MachineError::refused(
                "failover-under-way",
                format!("machine {name} is {}", record.failover),
                record.failover.way_back(),
            ));
        }
        let claim = self.jobs.claim(name)?;
        self.revive(name)?;
        let to = EpochNumber(self.point(name, to)?);
        let machine = self.machines.open(name)?;
        // Refused here rather than in the job: who asks should know at once.
        drop(machine.make_busy("a roll runs")?);
        let job = jobs::start(self.machines.hub(), claim, JobKind::Roll, move |teller| {
            let _busy = machine.make_busy("a roll runs")?;
            let rolled = machine.roll(to, |progress| {
                teller.roll(progress);
                Ok(())
            })?;
            teller.rolled(rolled);
            Ok(())
        })?;
        Ok(Answer::Job(job))
    }

    /// After a start of the agent: goes on with what was under way, and brings to the disks what is complete.
    pub fn resume_all(&self) {
        let records = match self.machines.hub().state().machines() {
            Ok(records) => records,
            Err(error) => {
                tracing::error!("cannot read the machines: {error}");
                return;
            }
        };
        for (name, record) in records {
            let kind = match record.failover {
                State::Cancelling => JobKind::Cancel,
                State::Undoing => JobKind::Undo,
                State::Reprotecting => JobKind::Reprotect,
                state if state.is_running() => JobKind::Failover,
                State::Replicating if record.store.is_some() => {
                    if let Err(error) = self.machines.open(&name) {
                        tracing::warn!("machine {name} cannot be opened: {error}");
                        if let MachineError::Disk { .. } = error {
                            self.fallen.note(&name);
                        }
                    }
                    continue;
                }
                _ => continue,
            };
            let begun = self
                .jobs
                .claim(&name)
                .and_then(|claim| self.run(claim, &name, kind));
            if let Err(error) = begun {
                tracing::error!("cannot go on with the {} of machine {name}: {error}", kind.word());
            }
        }
    }

    /// Whether the point that an undo goes to is there. A store that cannot be seen has it, perhaps: whoever undoes is told then.
    fn can_undo(&self, name: &str) -> bool {
        let has_it = self.machines.look(name, |store| {
            Ok(store.points().any(|point| point.origin == Origin::Initial))
        });
        match has_it {
            Ok(has_it) => has_it,
            Err(MachineError::NoStore(_)) => false,
            Err(_) => true,
        }
    }

    /// The point that is meant; it can be reached.
    fn point(&self, name: &str, wanted: &Wanted) -> Result<u64, MachineError> {
        self.machines.open(name)?.find_point(wanted).map(|epoch| epoch.0)
    }

    fn run(&self, claim: jobs::Claim, name: &str, kind: JobKind) -> Result<Answer, MachineError> {
        let (this, machine) = (self.clone(), name.to_owned());
        let job = jobs::start(self.machines.hub(), claim, kind, move |teller| {
            this.steps(&machine, teller)
        })?;
        Ok(Answer::Job(job))
    }

    /// Does step after step until none is under way, or the state is another's.
    fn steps(&self, name: &str, teller: &mut Teller) -> Result<(), MachineError> {
        loop {
            let record = self.machines.hub().state().machine(name)?;
            let state = record.failover;
            if !state.is_running() {
                return Ok(());
            }
            tracing::info!(machine = name, "failover: {state}");
            let outcome = self.step(name, &record, teller);
            let now = self.machines.hub().state().machine(name)?.failover;
            if now != state {
                // Cancelled meanwhile: whoever did that goes on.
                return outcome.and(Err(MachineError::refused(
                    "cancelled",
                    format!("the failover of machine {name} was cancelled"),
                    "see the job that cancels it",
                )));
            }
            match outcome {
                Ok(()) => {
                    self.change(name, Verb::StepDone, |_| {})?;
                }
                Err(error) => {
                    let text = error.to_string();
                    self.change(name, Verb::StepFailed, |record| record.failure = Some(text))?;
                    return Err(error);
                }
            }
        }
    }

    /// Drops the kernel's device of a disk, so that its VMDK can be detached.
    fn release(&self, machine: &str, disk: &MachineDisk) {
        let kernel_name = &disk.disk.facts.kernel_name;
        let released = PairName::new(machine, &disk.name)
            .map_err(std::io::Error::other)
            .and_then(|pair| self.machines.disks().release(&pair, kernel_name));
        match released {
            Ok(true) => tracing::info!(scsi_id = disk.scsi_id, "target disk {kernel_name} was released"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(
                    scsi_id = disk.scsi_id,
                    "cannot drop the kernel's device {kernel_name}: {error}; detach it by hand"
                );
            }
        }
    }

    fn step(&self, name: &str, record: &MachineRecord, teller: &mut Teller) -> Result<(), MachineError> {
        if record.failover == State::Reprotecting {
            // Its disks need not be attached yet.
            return self.machines.begin_anew(name);
        }
        self.revive(name)?;
        let machine = match self.machines.open(name) {
            Err(error @ MachineError::Disk { .. })
                if record.failover == State::Releasing && error.exit_code() == ExitCode::DiskMissing =>
            {
                // Cut between dropping the devices and noting that: the disks were compared, and are gone.
                tracing::warn!(machine = name, "released before: {error}");
                return Ok(());
            }
            opened => opened?,
        };
        let to = EpochNumber(record.to.unwrap_or(0));
        let state = record.failover;
        match state {
            State::FinalSync => {
                let begin = Instant::now();
                let mut inner = machine.lock();
                while inner.epoch.as_ref().is_some_and(|epoch| epoch.in_session) {
                    if begin.elapsed() > FINAL_SYNC {
                        tracing::warn!(
                            machine = name,
                            "the epoch under way did not end in time; it is dropped"
                        );
                        break;
                    }
                    inner = machine.wait(inner, Duration::from_millis(200));
                }
                Ok(())
            }
            State::Fencing => {
                machine.raise_generation()?;
                machine.wait_applied()?;
                let newest = machine.newest_epoch().0;
                self.note(name, |record| {
                    record.before.get_or_insert(newest);
                })
            }
            State::Rolling => {
                // What is needed to go back must not be dropped for room meanwhile. Noted before it is done: what an
                // operator pinned stays pinned when this is taken back.
                let keep: Vec<u64> = machine.with_store(|store| {
                    let keep = store.points().filter(|point| {
                        let needed = point.origin == Origin::Initial
                            || Some(point.epoch.0) == record.before
                            || point.epoch == to;
                        needed && !point.pinned
                    });
                    Ok(keep.map(|point| point.epoch.0).collect())
                })?;
                self.note(name, |record| record.pinned.extend(&keep))?;
                machine.with_store(|store| {
                    keep.iter()
                        .try_for_each(|epoch| store.set_pinned(EpochNumber(*epoch), true))
                })?;
                self.roll_to(name, &machine, to, state, teller)
            }
            State::Verifying => {
                let _busy = machine.make_busy("a failover runs")?;
                machine.verify(to, |progress| {
                    teller.roll(progress);
                    self.still(name, state)
                })
            }
            State::Releasing => {
                machine.recheck()?;
                for disk in &machine.disks {
                    disk.flush().map_err(|source| MachineError::Io {
                        attempted: "flush target disk",
                        path: disk.scsi_id.clone().into(),
                        source,
                    })?;
                }
                let disks = machine.disks.clone();
                drop(machine);
                // Whoever reads a point reads the disks; from here on somebody else writes them.
                self.exports.end_all_of(name);
                self.machines.let_go(name)?;
                for disk in &disks {
                    self.release(name, disk);
                }
                Ok(())
            }
            State::Cancelling => {
                if let Some(before) = record.before {
                    self.roll_to(name, &machine, EpochNumber(before), state, teller)?;
                    machine.with_store(|store| release_pins(store, &record.pinned))?;
                }
                self.note(name, |record| {
                    record.to = None;
                    record.before = None;
                    record.pinned.clear();
                })
            }
            State::Undoing => {
                let initial = machine.with_store(|store| {
                    Ok(store
                        .points()
                        .find(|point| point.origin == Origin::Initial)
                        .map(|point| point.epoch))
                })?;
                let Some(initial) = initial else {
                    return Err(MachineError::NoPoint {
                        what: format!("machine {name} has no point before-failback any more"),
                        hint: "see \"mt-agent points list\" for what can be rolled to".to_owned(),
                    });
                };
                self.roll_to(name, &machine, initial, state, teller)
            }
            _ => Ok(()),
        }
    }

    /// Rolls, unless the disks are there already: a step that was cut after its roll is not done twice.
    fn roll_to(
        &self,
        name: &str,
        machine: &super::machine::Machine,
        to: EpochNumber,
        state: State,
        teller: &mut Teller,
    ) -> Result<(), MachineError> {
        let _busy = machine.make_busy("a failover runs")?;
        machine.wait_applied()?;
        let there = machine.with_store(|store| {
            let newest = store.committed();
            let rolled = store
                .points()
                .next_back()
                .is_some_and(|point| point.epoch == newest && point.origin == Origin::Roll { to });
            Ok(newest == to || rolled)
        })?;
        if there {
            return Ok(());
        }
        let rolled = machine.roll(to, |progress| {
            teller.roll(progress);
            self.still(name, state)
        })?;
        teller.rolled(rolled);
        Ok(())
    }

    /// Whether the machine is still where the running step found it.
    fn still(&self, name: &str, state: State) -> Result<(), MachineError> {
        if self.machines.hub().state().machine(name)?.failover == state {
            return Ok(());
        }
        Err(MachineError::refused(
            "cancelled",
            format!("the failover of machine {name} was cancelled"),
            "see the job that cancels it",
        ))
    }

    fn note(&self, name: &str, work: impl FnOnce(&mut MachineRecord)) -> Result<(), MachineError> {
        let noted = self.machines.hub().state().change_machine(name, |record| {
            work(record);
            Ok::<(), std::convert::Infallible>(())
        })?;
        let Ok(()) = noted;
        Ok(())
    }

    /// Asks the table, and stores where the machine is from now on: one act.
    fn change(
        &self,
        name: &str,
        verb: Verb,
        work: impl FnOnce(&mut MachineRecord),
    ) -> Result<(Next, MachineRecord), MachineError> {
        let changed = self.machines.hub().state().change_machine(name, |record| {
            let next = record.failover.next(verb)?;
            if let Next::Goes(state) = next {
                work(record);
                record.failover = state;
            }
            Ok::<_, Illegal>((next, record.clone()))
        })?;
        changed.map_err(|illegal| refused(name, illegal))
    }
}

/// Lets go of what a failover pinned.
///
/// # Errors
/// When the store fails.
pub fn release_pins(store: &mut FileStore, pinned: &[u64]) -> Result<(), StoreError> {
    for epoch in pinned {
        let epoch = EpochNumber(*epoch);
        if store.points().any(|point| point.epoch == epoch) {
            store.set_pinned(epoch, false)?;
        }
    }
    Ok(())
}

fn too_late(name: &str, until: Timestamp) -> MachineError {
    MachineError::refused(
        "undo-too-late",
        format!("what was needed to undo the failover of machine {name} was kept until {until}"),
        "\"mt-agent reprotect\" replicates to its disks anew",
    )
}

fn refused(name: &str, illegal: Illegal) -> MachineError {
    MachineError::refused(
        "not-now",
        format!("machine {name} is {}: {illegal}", illegal.state),
        illegal.hint,
    )
}
