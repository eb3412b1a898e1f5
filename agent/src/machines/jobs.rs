//! Jobs of the target's own: a roll, a failover. Each on a thread of its own, one at a time for a machine.

use std::collections::HashMap;
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

/// How long what the agent does by itself is waited for. Letting go of a machine takes 45 s at most.
const OWN_WORK: Duration = Duration::from_secs(60);

/// Whose job a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Somebody asked for it; it is in the list of jobs.
    Operator,
    /// The agent does it by itself, and nobody knows of it.
    Agent,
}

/// The machines that have a job. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    machines: Arc<Mutex<HashMap<String, Owner>>>,
}

/// A machine's only job; gives the machine back when it is dropped.
pub struct Claim {
    jobs: Jobs,
    machine: String,
}

impl Jobs {
    /// Takes a machine for a job that somebody asked for. What the agent does with it by itself is waited for.
    ///
    /// # Errors
    /// When it has a job.
    pub fn claim(&self, machine: &str) -> Result<Claim, MachineError> {
        let begin = Instant::now();
        loop {
            match self.take(machine, Owner::Operator) {
                Ok(claim) => return Ok(claim),
                Err(Owner::Agent) if begin.elapsed() < OWN_WORK => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                Err(_) => {
                    return Err(MachineError::refused(
                        "job-under-way",
                        format!("machine {machine} has a job under way"),
                        "wait for it, see \"mt-agent jobs list\"",
                    ));
                }
            }
        }
    }

    /// Takes a machine for what the agent does by itself; none when it has a job.
    pub fn claim_aside(&self, machine: &str) -> Option<Claim> {
        self.take(machine, Owner::Agent).ok()
    }

    fn take(&self, machine: &str, owner: Owner) -> Result<Claim, Owner> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = machines.get(machine) {
            return Err(*held);
        }
        machines.insert(machine.to_owned(), owner);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What broke: a roll that came while the agent tried to open its machine anew was refused for a job that no list showed.
    #[test]
    fn what_the_agent_does_by_itself_is_waited_for_and_a_job_is_not() {
        let jobs = Jobs::default();
        let own = jobs.claim_aside("db01").expect("it is free");
        assert!(jobs.claim_aside("db01").is_none());
        let other = jobs.clone();
        let asked = std::thread::spawn(move || other.claim("db01"));
        std::thread::sleep(Duration::from_millis(50));
        drop(own);
        let claim = asked.join().unwrap().unwrap();
        assert!(jobs.claim("db01").is_err(), "somebody asked for that one");
        assert!(jobs.claim_aside("db01").is_none());
        drop(claim);
        drop(jobs.claim("db01").unwrap());
    }
}
