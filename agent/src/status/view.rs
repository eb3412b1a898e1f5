//! Makes documents of what the hub and the state know. Pure, but for the state, which is read once a document.

use jiff::Timestamp;

use super::model::{
    AgentDoc, AlarmDoc, DisksSummary, LabDiskDoc, PairDoc, PairPhase, ProblemDoc, SCHEMA, SeedingDoc,
    SessionDoc, StatusDoc, TotalsDoc,
};
use crate::config::Config;
use crate::disks::facts::Inventory;
use crate::disks::gate::{PairedDisk, Purpose, admit};
use crate::error::Explain;
use crate::hub::{Alarm, Hub, Snapshot};
use crate::model::{Job, JobId, JobKind, JobState, Pair, SeedingMark};
use crate::state::StateError;
use crate::target::report::ALARM_RESYNC;

/// Ended jobs that status shows; `jobs list` has all.
const JOBS_ENDED_SHOWN: usize = 5;

/// What status says now. Blocks on the state.
///
/// # Errors
/// When the state cannot be read.
pub fn status(hub: &Hub, config: &Config, host: &str, now: Timestamp) -> Result<StatusDoc, StateError> {
    let snapshot = hub.snapshot();
    let pairs = pairs_in(hub, &snapshot)?;
    let ended = hub
        .state()
        .jobs()?
        .into_iter()
        .filter(|job| job.state != JobState::Running);
    Ok(StatusDoc {
        schema: SCHEMA,
        time: now,
        agent: AgentDoc {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            host: host.to_owned(),
            started: hub.started(),
            listen: config.listen.to_string(),
            state_dir: config.state_dir.display().to_string(),
        },
        lab: config.lab,
        plain: config.plain,
        lab_disks: config
            .lab_disks
            .iter()
            .map(|disk| LabDiskDoc {
                scsi_id: disk.scsi_id,
                path: disk.path.display().to_string(),
            })
            .collect(),
        alarms: snapshot.alarms.iter().map(alarm).collect(),
        disks: disks_summary(snapshot.inventory.as_deref(), &pairs),
        pairs,
        jobs_running: snapshot.running.values().rev().cloned().collect(),
        jobs_ended: ended.take(JOBS_ENDED_SHOWN).collect(),
        totals: TotalsDoc {
            bytes_written: snapshot.totals.bytes_written,
            bytes_zeroed: snapshot.totals.bytes_zeroed,
            bytes_on_wire: snapshot.totals.bytes_on_wire,
            jobs_done: snapshot.totals.jobs_done,
            jobs_failed: snapshot.totals.jobs_failed,
        },
    })
}

/// All pairs as they are now. Blocks on the state.
///
/// # Errors
/// When the state cannot be read.
pub fn pairs(hub: &Hub) -> Result<Vec<PairDoc>, StateError> {
    pairs_in(hub, &hub.snapshot())
}

/// All jobs, newest first; those that run as they are now and not as they were last stored. Blocks on the state.
///
/// # Errors
/// When the state cannot be read.
pub fn jobs(hub: &Hub) -> Result<Vec<Job>, StateError> {
    let running = hub.snapshot().running;
    let jobs = hub.state().jobs()?.into_iter();
    Ok(jobs
        .map(|job| running.get(&job.id).cloned().unwrap_or(job))
        .collect())
}

/// One job, as it is now. Blocks on the state.
///
/// # Errors
/// When the state cannot be read.
pub fn job(hub: &Hub, id: JobId) -> Result<Option<Job>, StateError> {
    let running = hub.snapshot().running.remove(&id);
    Ok(running.or(hub.state().job(id)?))
}

fn pairs_in(hub: &Hub, snapshot: &Snapshot) -> Result<Vec<PairDoc>, StateError> {
    let pairs = hub.state().pairs()?;
    pairs
        .iter()
        .map(|stored| Ok(pair(stored, hub.state().seeding(stored.id)?, snapshot)))
        .collect()
}

/// One pair as it is now.
pub fn pair(pair: &Pair, mark: Option<SeedingMark>, snapshot: &Snapshot) -> PairDoc {
    let name = pair.name.to_string();
    let session = snapshot.sessions.get(&pair.name);
    let job = session.and_then(|session| snapshot.running.get(&session.job));
    let doubtful = |alarm: &Alarm| alarm.id == ALARM_RESYNC && alarm.subject == name;
    let phase = match (session.and(job), &mark) {
        (Some(job), _) if job.kind == JobKind::Verify => PairPhase::Verifying,
        (Some(_), _) => PairPhase::Seeding,
        (None, _) if snapshot.alarms.iter().any(doubtful) => PairPhase::ResyncNeeded,
        (None, None) => PairPhase::Waiting,
        (None, Some(mark)) if mark.complete => PairPhase::Seeded,
        (None, Some(_)) => PairPhase::Interrupted,
    };
    let inventory = snapshot.inventory.as_deref();
    PairDoc {
        pair: name,
        machine: pair.name.machine.clone(),
        disk: pair.name.disk.clone(),
        scsi_id: pair.scsi_id,
        kernel_name: inventory.and_then(|inventory| kernel_name(inventory, pair)),
        disk_problem: inventory.and_then(|inventory| disk_problem(inventory, pair)),
        size: pair.size,
        protected_size: pair.protected_size,
        logical_block_size: pair.logical_block_size,
        generation: pair.generation,
        adopted: pair.adopted,
        overwrite: pair.overwrite,
        created: pair.created,
        phase,
        seeding: mark.map(|mark| SeedingDoc {
            seeding_id: mark.seeding_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            durable: mark.durable,
            size: mark.size,
            complete: mark.complete,
        }),
        session: session.zip(job).map(|(session, job)| SessionDoc {
            peer: session.peer.clone(),
            job: session.job.0,
            total: job.bytes_total,
            applied: job.bytes_done,
            durable: job.bytes_durable,
            lag: match job.kind {
                JobKind::Seeding => job.bytes_done.saturating_sub(job.bytes_durable),
                _ => 0,
            },
            rate: session.rate,
            seconds_left: session.seconds_left,
            since: session.since,
        }),
    }
}

/// Today's name of the pair's disk, when exactly one disk shows its ID.
fn kernel_name(inventory: &Inventory, pair: &Pair) -> Option<String> {
    let mut shown = inventory.with_id(pair.scsi_id);
    match (shown.next(), shown.next()) {
        (Some(disk), None) => Some(disk.kernel_name.clone()),
        _ => None,
    }
}

/// Asks the gate, as an opening would, with the facts that are known.
fn disk_problem(inventory: &Inventory, pair: &Pair) -> Option<ProblemDoc> {
    let paired = paired_disk(pair);
    let refusal = admit(&paired, inventory, Purpose::Write).err()?;
    Some(ProblemDoc {
        error: refusal.what().to_owned(),
        hint: refusal.hint(),
    })
}

/// What the gate needs to know of a pair.
pub fn paired_disk(pair: &Pair) -> PairedDisk {
    PairedDisk {
        scsi_id: pair.scsi_id,
        size: pair.size,
        logical_block_size: pair.logical_block_size,
        may_overwrite: pair.adopted || pair.overwrite,
    }
}

fn disks_summary(inventory: Option<&Inventory>, pairs: &[PairDoc]) -> DisksSummary {
    let Some(inventory) = inventory else {
        return DisksSummary::default();
    };
    let is_paired = |id| pairs.iter().any(|pair| Some(pair.scsi_id) == id);
    let mut summary = DisksSummary {
        known: true,
        count: inventory.disks.len(),
        warnings: inventory.warnings.clone(),
        ..DisksSummary::default()
    };
    for disk in &inventory.disks {
        if is_paired(disk.identity.scsi_id()) {
            summary.paired += 1;
        } else if disk.may_be_target {
            summary.free += 1;
        } else {
            summary.not_usable += 1;
        }
    }
    summary
}

fn alarm(alarm: &Alarm) -> AlarmDoc {
    AlarmDoc {
        id: alarm.id.clone(),
        subject: alarm.subject.clone(),
        severity: alarm.severity.into(),
        text: alarm.text.clone(),
        hint: alarm.hint.clone(),
        since: alarm.since,
    }
}

/// Reads one pair and makes its document. Blocks on the state.
///
/// # Errors
/// When the state cannot be read.
pub fn pair_now(hub: &Hub, stored: &Pair) -> Result<PairDoc, StateError> {
    let mark = hub.state().seeding(stored.id)?;
    Ok(pair(stored, mark, &hub.snapshot()))
}
