//! Tells the hub, the state and the log how a session goes.

use std::collections::VecDeque;
use std::net::SocketAddr;

use jiff::Timestamp;
use mt_wire::{ErrorCode, Mode, Refusal};

use super::opening::OpenedPair;
use crate::hub::{Alarm, Hub, PairSession, Severity};
use crate::model::{Job, JobId, JobKind, JobState, PairId, PairName};
use crate::seeding::target::{Outcome, Progress};
use crate::state::StateError;

/// A rate is measured over this many reports, about a second each.
const RATE_SAMPLES: usize = 10;

/// What a pair's alarm is called when its disk failed or its copy is in doubt.
pub const ALARM_RESYNC: &str = "pair-needs-resync";

/// What a pair's alarm is called when a verification found that the copy differs.
pub const ALARM_DIFFERS: &str = "pair-differs";

/// A job that runs.
pub struct SessionReport {
    pair_id: PairId,
    pair: PairName,
    scsi_id: String,
    job: Job,
    since: Timestamp,
    samples: VecDeque<(Timestamp, u64)>,
}

impl SessionReport {
    /// Begins the job of a session that has opened its pair.
    pub fn begin(hub: &Hub, opened: &OpenedPair, peer: SocketAddr, now: Timestamp) -> Self {
        let pair = opened.pair.name.clone();
        let kind = match opened.mode {
            Mode::Seed => JobKind::Seeding,
            Mode::Verify => JobKind::Verify,
            Mode::Epoch => JobKind::Epoch,
        };
        let job = Job {
            id: JobId(0),
            kind,
            pair: pair.to_string(),
            peer: peer.to_string(),
            state: JobState::Running,
            bytes_total: opened.size,
            bytes_done: opened.start,
            bytes_durable: opened.start,
            bytes_written: 0,
            bytes_zeroed: 0,
            bytes_different: 0,
            bytes_on_wire: 0,
            started: now,
            ended: None,
            error: None,
            hint: None,
            exit_code: None,
        };
        let job = hub.state().insert_job(&job).unwrap_or_else(|error| {
            not_stored(&error);
            job
        });
        let scsi_id = opened.pair.scsi_id.to_string();
        tracing::info!(
            pair = %pair, scsi_id, job = job.id.0, peer = %peer,
            "{} begins at {} of {} bytes", kind.word(), opened.start, opened.size
        );
        let report = Self {
            pair_id: opened.pair.id,
            pair,
            scsi_id,
            job,
            since: now,
            samples: VecDeque::new(),
        };
        hub.session_started(&report.pair, report.session(None), report.job.clone(), now);
        report
    }

    /// Tells how far the session is.
    pub fn progress(&mut self, hub: &Hub, progress: Progress, on_wire: u64, now: Timestamp) {
        self.take(progress, on_wire);
        self.samples.push_back((now, progress.settled));
        if self.samples.len() > RATE_SAMPLES {
            self.samples.pop_front();
        }
        hub.session_progress(&self.pair, self.session(Some(progress)), self.job.clone(), now);
    }

    /// Tells how the session ended.
    pub fn end(mut self, hub: &Hub, outcome: &Outcome, now: Timestamp) {
        self.job.ended = Some(now);
        let (job, pair, scsi_id) = (self.job.id.0, &self.pair, &self.scsi_id);
        match outcome {
            Outcome::Complete if self.job.bytes_different > 0 => self.differs(hub, now),
            Outcome::Complete => {
                self.job.state = JobState::Done;
                tracing::info!(
                    pair = %pair, scsi_id, job,
                    "{} done: {} bytes written, {} zeroed, {} on the wire",
                    self.job.kind.word(), self.job.bytes_written, self.job.bytes_zeroed, self.job.bytes_on_wire
                );
                if self.job.kind == JobKind::Seeding {
                    hub.clear(ALARM_RESYNC, &pair.to_string(), now);
                }
                hub.clear(ALARM_DIFFERS, &pair.to_string(), now);
            }
            Outcome::Closed => {
                self.job.state = JobState::Interrupted;
                self.job.error = Some("the source ended the session before it was through".to_owned());
                tracing::warn!(pair = %pair, scsi_id, job, "{} ended by the source", self.job.kind.word());
            }
            Outcome::Failed(refusal) => self.fail(hub, refusal, now),
        }
        if let Err(error) = hub.state().update_job(&self.job) {
            not_stored(&error);
        }
        hub.session_ended(&self.pair, self.job, now);
    }

    /// A verification that found differences keeps them in its job, and raises an alarm until a seeding or another
    /// verification ends well.
    fn differs(&mut self, hub: &Hub, now: Timestamp) {
        let text = format!(
            "the copy differs from the protected disk in {} bytes",
            self.job.bytes_different
        );
        let hint = "if the source did not go on since the last send, find out who wrote to either disk; then send again";
        self.job.state = JobState::Differs;
        self.job.error = Some(text.clone());
        self.job.hint = Some(hint.to_owned());
        tracing::warn!(pair = %self.pair, scsi_id = self.scsi_id, job = self.job.id.0, "verification: {text}");
        hub.raise(difference(&self.job, now));
    }

    fn fail(&mut self, hub: &Hub, refusal: &Refusal, now: Timestamp) {
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
            pair = %self.pair, scsi_id = self.scsi_id, job = self.job.id.0, code = refusal.code.word(),
            "{} failed: {}", self.job.kind.word(), refusal.text
        );
        // A disk that fails may hold anything in the range that was under way: the pair has to be compared again.
        let doubt = matches!(refusal.code, ErrorCode::DiskFailed | ErrorCode::DiskMissing);
        if doubt && self.job.kind == JobKind::Seeding {
            if refusal.code == ErrorCode::DiskMissing {
                forget_mark(hub, self.pair_id);
            }
            hub.raise(Alarm {
                id: ALARM_RESYNC.to_owned(),
                subject: self.pair.to_string(),
                severity: Severity::Critical,
                text: format!("resync needed: {}", refusal.text),
                hint: refusal.hint.clone(),
                since: now,
            });
        }
    }

    fn take(&mut self, progress: Progress, on_wire: u64) {
        self.job.bytes_done = progress.settled;
        // A verification makes nothing durable.
        self.job.bytes_durable = if self.job.kind == JobKind::Seeding {
            progress.durable
        } else {
            0
        };
        self.job.bytes_written = progress.bytes_written;
        self.job.bytes_zeroed = progress.bytes_zeroed;
        self.job.bytes_different = progress.bytes_different;
        self.job.bytes_on_wire = on_wire;
    }

    fn session(&self, progress: Option<Progress>) -> PairSession {
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
        let left = progress.map_or(self.job.bytes_total, |progress| {
            progress.size.saturating_sub(progress.settled)
        });
        PairSession {
            peer: self.job.peer.clone(),
            job: self.job.id,
            rate,
            seconds_left: left.checked_div(rate),
            since: self.since,
        }
    }
}

/// The alarm of a verification that found differences.
fn difference(job: &Job, since: Timestamp) -> Alarm {
    Alarm {
        id: ALARM_DIFFERS.to_owned(),
        subject: job.pair.clone(),
        severity: Severity::Warning,
        text: job.error.clone().unwrap_or_default(),
        hint: job.hint.clone().unwrap_or_default(),
        since,
    }
}

/// Raises the alarms of copies that differed when the agent was stopped, and were not made or found equal since.
pub fn remember_differences(hub: &Hub, now: Timestamp) {
    let (jobs, pairs) = match (hub.state().jobs(), hub.state().pairs()) {
        (Ok(jobs), Ok(pairs)) => (jobs, pairs),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!("cannot read which copies differed: {error}");
            return;
        }
    };
    for pair in pairs {
        let name = pair.name.to_string();
        // The newest first. What was before the pair was about another disk.
        let told = jobs.iter().find(|job| {
            job.pair == name
                && job.started >= pair.created
                && matches!(job.state, JobState::Done | JobState::Differs)
        });
        if let Some(job) = told.filter(|job| job.state == JobState::Differs) {
            hub.raise(difference(job, job.ended.unwrap_or(now)));
        }
    }
}

/// Forgets up to where the copy of a pair is durable, if its seeding is under way: the next one compares all of the
/// disk. For a disk that was taken away: what was flushed is on it still, but who had it meanwhile is not known, and a
/// seeding that went on from the mark would call a copy complete that is not.
pub fn forget_mark(hub: &Hub, pair: PairId) {
    let state = hub.state();
    let forgotten = state
        .seeding(pair)
        .map(|stored| stored.filter(|mark| !mark.complete && mark.durable > 0));
    let outcome = forgotten.and_then(|stored| match (stored, crate::random::id()) {
        (None, _) => Ok(()),
        // A new name, so that a mark that is still on its way is not taken for one of this seeding.
        (Some(mark), Ok(name)) => state.begin_seeding(pair, name, mark.size, &mark.instance),
        // Whoever names this one begins at 0 as well: nothing of it is marked.
        (Some(mark), Err(_)) => state.begin_seeding(pair, [0; 16], mark.size, &mark.instance),
    });
    if let Err(error) = outcome {
        tracing::error!("cannot forget the durable mark of a disk that was taken away: {error}");
    }
}

fn not_stored(error: &StateError) {
    // The copy goes on: a record of it is not worth the copy.
    tracing::error!("cannot store the job: {error}");
}
