//! `mt-agent jobs`: seedings and verifications, running and past.

use std::fmt::Write;

use clap::Args;

use super::output::{ServiceArgs, percent, print, print_json, seconds_between, span_text, table, time_text};
use super::screen::clean;
use crate::error::{CliError, ExitCode};
use crate::model::{Job, JobKind, JobState};
use crate::source::report::size_text;
use crate::status::model::{JobDoc, JobsDoc};

/// Arguments of `jobs show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Number of the job
    #[arg(value_name = "ID", value_parser = clap::value_parser!(i64).range(0..))]
    pub id: i64,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Lists jobs.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn list(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let client = args.client();
    let answer = client.get("/v1/jobs").await?;
    if args.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let JobsDoc { jobs, .. } = client.decode(answer)?;
    print(&list_text(&jobs))?;
    Ok(ExitCode::Done)
}

/// Shows one job.
///
/// # Errors
/// When the agent cannot be reached, or there is no such job.
pub async fn show(args: &ShowArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let answer = client.get(&format!("/v1/jobs/{}", args.id)).await?;
    if args.service.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let JobDoc { job, .. } = client.decode(answer)?;
    print(&show_text(&job))?;
    Ok(ExitCode::Done)
}

/// What a job does, in a word.
pub fn kind_word(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Seeding => "seeding",
        JobKind::Verify => "verify",
        other => other.word(),
    }
}

/// Where a job is, in a word.
pub fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Differs => "differs",
        JobState::Failed => "failed",
        JobState::Interrupted => "interrupted",
    }
}

fn list_text(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "no jobs yet\n".to_owned();
    }
    let head = [
        "JOB", "WHAT", "PAIR", "STATE", "DONE", "WRITTEN", "ZEROED", "STARTED", "TOOK",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(jobs.iter().map(|job| {
        vec![
            job.id.0.to_string(),
            kind_word(job.kind).to_owned(),
            clean(&job.pair),
            state_word(job.state).to_owned(),
            format!("{} %", percent(job.bytes_done, job.bytes_total)),
            size_text(job.bytes_written),
            size_text(job.bytes_zeroed),
            time_text(job.started),
            job.ended.map_or_else(
                || "-".to_owned(),
                |ended| span_text(seconds_between(job.started, ended)),
            ),
        ]
    }));
    let mut text = table(&rows, &[0, 4, 5, 6]).join("\n");
    text.push('\n');
    text
}

fn show_text(job: &Job) -> String {
    let bytes = |bytes: u64| format!("{} ({bytes} bytes)", size_text(bytes));
    let done = format!(
        "{}, {} %",
        bytes(job.bytes_done),
        percent(job.bytes_done, job.bytes_total)
    );
    let rows = [
        ("job", job.id.0.to_string()),
        ("what", kind_word(job.kind).to_owned()),
        ("pair", clean(&job.pair)),
        ("source", clean(&job.peer)),
        ("state", state_word(job.state).to_owned()),
        ("size", bytes(job.bytes_total)),
        ("done", done),
        ("durable", bytes(job.bytes_durable)),
        ("written", bytes(job.bytes_written)),
        ("zeroed", bytes(job.bytes_zeroed)),
        ("on the wire", bytes(job.bytes_on_wire)),
        ("started", time_text(job.started)),
        ("ended", job.ended.map_or_else(|| "-".to_owned(), time_text)),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<12} {value}");
    }
    for (name, value) in [("error", &job.error), ("hint", &job.hint)] {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<12} {}", clean(value));
        }
    }
    text
}
