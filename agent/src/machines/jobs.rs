//! Jobs of the target's own: a roll, a failover. Each on a thread of its own, one at a time for a machine.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::error::MachineError;
use super::roll::{Progress, Rolled, Stage};
use crate::error::{ExitCode, Explain};
use crate::hub::Hub;
use crate::model::{Job, JobKind, JobState};

/// Progress is told this often.
const TELL_INTERVAL: Duration = Duration::from_millis(500);

/// The machines that have a job. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    machines: Arc<Mutex<HashSet<String>>>,
}

/// A machine's only job; gives the machine back when it is dropped.
pub struct Claim {
    jobs: Jobs,
    machine: String,
}

impl Jobs {
    /// Takes a machine for a job.
    ///
    /// # Errors
    /// When it has one.
    pub fn claim(&self, machine: &str) -> Result<Claim, MachineError> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if !machines.insert(machine.to_owned()) {
            return Err(MachineError::refused(
                "job-under-way",
                format!("machine {machine} has a job under way"),
                "wait for it, see \"mt-agent jobs list\"",
            ));
        }
        Ok(Claim {
            jobs: self.clone(),
            machine: machine.to_owned(),
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.jobs
            .machines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.machine);
    }
}

/// Tells how a job goes.
pub struct Teller {
    hub: Hub,
    job: Job,
    told: Instant,
}

impl Teller {
    /// How far a roll is. The three stages count one after the other.
    pub fn roll(&mut self, progress: Progress) {
        self.job.bytes_total = progress.total.saturating_mul(3);
        let before = match progress.stage {
            Stage::Copying => 0,
            Stage::Writing => progress.total,
            Stage::Verifying => progress.total.saturating_mul(2),
        };
        self.job.bytes_done = before + progress.done.min(progress.total);
        if progress.stage == Stage::Writing {
            self.job.bytes_written = progress.done;
        }
        if self.told.elapsed() >= TELL_INTERVAL {
            self.told = Instant::now();
            self.hub.job_progress(&self.job, Timestamp::now());
        }
    }

    /// What a roll came to.
    pub fn rolled(&mut self, rolled: Rolled) {
        self.job.bytes_written = rolled.bytes;
        self.job.bytes_durable = rolled.bytes;
    }
}

/// A roll that failed before it was decided changed nothing, and its cause says how to exit. All others leave a state behind
/// from which the same command goes on.
fn exit_code(kind: JobKind, error: &MachineError) -> ExitCode {
    match kind {
        JobKind::Roll => error.exit_code(),
        _ => ExitCode::PartlyDone,
    }
}

/// Begins a job on a thread of its own, and answers it as it begins.
///
/// # Errors
/// When the machine has a job already, or the state or the thread fails.
pub fn start(
    hub: &Hub,
    claim: Claim,
    kind: JobKind,
    work: impl FnOnce(&mut Teller) -> Result<(), MachineError> + Send + 'static,
) -> Result<Job, MachineError> {
    let now = Timestamp::now();
    let machine = claim.machine.clone();
    let job = hub.state().insert_job(&Job::new(kind, &machine, now))?;
    hub.job_started(&job, now);
    tracing::info!(machine, job = job.id.0, "{} begins", kind.word());
    let mut teller = Teller {
        hub: hub.clone(),
        job: job.clone(),
        told: Instant::now(),
    };
    std::thread::Builder::new()
        .name(kind.word().to_owned())
        .spawn(move || {
            let outcome = work(&mut teller);
            let Teller { hub, mut job, .. } = teller;
            // The machine is free before anybody is told that the job has ended.
            drop(claim);
            job.ended = Some(Timestamp::now());
            match &outcome {
                Ok(()) => {
                    job.state = JobState::Done;
                    job.bytes_done = job.bytes_total;
                    tracing::info!(machine = job.pair, job = job.id.0, "{} done", kind.word());
                }
                Err(error) => {
                    job.state = JobState::Failed;
                    job.error = Some(error.to_string());
                    job.hint = error.hint();
                    job.exit_code = Some(exit_code(kind, error) as u8);
                    tracing::warn!(
                        machine = job.pair,
                        job = job.id.0,
                        "{} failed: {error}",
                        kind.word()
                    );
                }
            }
            if let Err(error) = hub.state().update_job(&job) {
                tracing::error!("cannot store the job: {error}");
            }
            hub.job_ended(job, Timestamp::now());
        })
        .map_err(|source| MachineError::Io {
            attempted: "start a job of",
            path: machine.into(),
            source,
        })?;
    Ok(job)
}
