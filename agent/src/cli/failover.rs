//! `mt-agent roll`, `failover`, `commit`, `cancel`, `undo`: bringing a machine's disks to a point, and every way back.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::groups::{self, Members};
use super::output::{ServiceArgs, percent, print, print_json, time_text};
use super::screen::clean;
use crate::error::{CliError, ExitCode};
use crate::failover::table::{State, Verb};
use crate::model::{Job, JobState};
use crate::source::report::size_text;
use crate::status::client::{Client, escape};
use crate::status::machines::ActDoc;
use crate::status::model::JobDoc;

/// How often a job is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Arguments of `roll` and `failover`.
#[derive(Debug, Clone, Args)]
pub struct ToArgs {
    /// Name of the machine, or of a group of machines
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Number, name or time of a point; latest; before-failback
    #[arg(long, value_name = "POINT")]
    pub to: String,
    /// Return as soon as the job has begun
    #[arg(long)]
    pub no_wait: bool,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `commit`.
#[derive(Debug, Clone, Args)]
pub struct CommitArgs {
    /// Name of the machine, or of a group of machines
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// For how long it can be undone, such as 7d [default: 72h]; 0s for not at
    /// all; given again it counts anew from now
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub keep_undo: Option<u64>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `cancel` and `undo`.
#[derive(Debug, Clone, Args)]
pub struct BackArgs {
    /// Name of the machine, or of a group of machines
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Return as soon as the job has begun
    #[arg(long)]
    pub no_wait: bool,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `reprotect`.
#[derive(Debug, Clone, Args)]
pub struct ReprotectArgs {
    /// Name of the machine
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Its points are dropped, and undo with them; name it once more
    #[arg(long, value_name = "MACHINE")]
    pub drop_points_of: String,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// A time span in seconds: a whole number with s, min, h or d.
pub fn span(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "expected a whole number with a unit, such as 72h".to_owned())?;
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        unit => return Err(format!("unknown unit \"{unit}\"; use s, min, h or d")),
    };
    number
        .checked_mul(unit)
        .ok_or_else(|| "that is too long".to_owned())
}

/// Brings the disks of a machine, or of every machine of a group, to a point.
///
/// # Errors
/// When the agent cannot be reached or refuses, or a job fails.
pub async fn roll(args: &ToArgs) -> Result<ExitCode, CliError> {
    bring(args, "roll", None).await?;
    Ok(ExitCode::Done)
}

/// Fails a machine, or every machine of a group, over.
///
/// # Errors
/// When the agent cannot be reached or refuses, or a job fails.
pub async fn failover(args: &ToArgs) -> Result<ExitCode, CliError> {
    bring(args, "failover", Some(Verb::Failover)).await?;
    if !args.service.json {
        print(&format!(
            "{}: no source was asked for a last epoch; one that is under way is waited for. What a source wrote after its newest \
             point is not here: where it still runs, send a last epoch before a failover\n",
            clean(&args.machine)
        ))?;
    }
    Ok(ExitCode::Done)
}

async fn bring(args: &ToArgs, word: &str, verb: Option<Verb>) -> Result<(), CliError> {
    let client = args.service.client();
    let requests = match groups::members(&client, &args.machine).await? {
        Members::Machine(machine) => vec![(machine, json!({ "to": args.to }))],
        Members::Group(members) => {
            groups::all_can(&args.machine, &members, verb)?;
            let points = groups::points_of(&client, &args.machine, &members).await?;
            let chosen = groups::choose(&args.machine, &points, &args.to, Timestamp::now())?;
            let machines = members.into_iter().map(|member| member.machine);
            let points = chosen.into_iter().map(|point| json!({ "to": point.to_string() }));
            machines.zip(points).collect()
        }
    };
    each(&args.service, &args.machine, word, requests, !args.no_wait).await
}

/// Makes a failover final.
///
/// # Errors
/// When the agent cannot be reached or refuses.
pub async fn commit(args: &CommitArgs) -> Result<ExitCode, CliError> {
    let request = json!({ "keep_undo": args.keep_undo });
    same(
        &args.service,
        &args.machine,
        "commit",
        Verb::Commit,
        request,
        true,
    )
    .await
}

/// Takes a failover back, and goes on replicating.
///
/// # Errors
/// When the agent cannot be reached or refuses, or a job fails.
pub async fn cancel(args: &BackArgs) -> Result<ExitCode, CliError> {
    let wait = !args.no_wait;
    same(
        &args.service,
        &args.machine,
        "cancel",
        Verb::Cancel,
        json!({}),
        wait,
    )
    .await
}

/// Puts the disks back as they were before failback.
///
/// # Errors
/// When the agent cannot be reached or refuses, or a job fails.
pub async fn undo(args: &BackArgs) -> Result<ExitCode, CliError> {
    let wait = !args.no_wait;
    same(&args.service, &args.machine, "undo", Verb::Undo, json!({}), wait).await
}

/// Sends one request to a machine, or to every machine of a group, once all of them can.
async fn same(
    service: &ServiceArgs,
    name: &str,
    word: &str,
    verb: Verb,
    request: Value,
    wait: bool,
) -> Result<ExitCode, CliError> {
    let machines = match groups::members(&service.client(), name).await? {
        Members::Machine(machine) => vec![machine],
        Members::Group(members) => {
            groups::all_can(name, &members, Some(verb))?;
            members.into_iter().map(|member| member.machine).collect()
        }
    };
    let requests = machines.into_iter().map(|machine| (machine, request.clone()));
    each(service, name, word, requests.collect(), wait).await?;
    Ok(ExitCode::Done)
}

/// Sends its request to each machine, one after the other; the first that fails ends it, and the error says how far it came.
async fn each(
    service: &ServiceArgs,
    name: &str,
    word: &str,
    requests: Vec<(String, Value)>,
    wait: bool,
) -> Result<(), CliError> {
    let is_group = requests.len() > 1;
    let mut done: Vec<String> = Vec::new();
    for (machine, request) in requests {
        if let Err(error) = act(service, &machine, word, request, wait).await {
            if !is_group {
                return Err(error);
            }
            let so_far = match done.as_slice() {
                [] => "none of its machines".to_owned(),
                done => clean(&done.join(", ")),
            };
            let exit_code = if done.is_empty() {
                error.exit_code
            } else {
                ExitCode::PartlyDone
            };
            let hint = format!(
                "{}; the same command goes on from here{}",
                error.hint.unwrap_or_default(),
                if word == "failover" {
                    ", \"mt-agent cancel\" with the name of the group takes all of it back"
                } else {
                    ""
                }
            );
            let message = format!(
                "group {}: {word} done with {so_far}; {}",
                clean(name),
                error.message
            );
            return Err(CliError::new(exit_code, message).with_hint(hint.trim_start_matches("; ")));
        }
        done.push(machine);
    }
    Ok(())
}

/// Begins anew with a machine whose failover is final or failed: replication to its disks, without the points of before.
///
/// # Errors
/// When another machine is named for the points, the agent cannot be reached or refuses, or the job fails.
pub async fn reprotect(args: &ReprotectArgs) -> Result<ExitCode, CliError> {
    same_machine(&args.machine, &args.drop_points_of)?;
    act(&args.service, &args.machine, "reprotect", json!({}), true).await
}

/// Whoever drops points names their machine twice.
///
/// # Errors
/// When the names differ.
pub fn same_machine(machine: &str, drop_points_of: &str) -> Result<(), CliError> {
    if machine == drop_points_of {
        return Ok(());
    }
    let message = format!("will not drop the points of {machine}: {drop_points_of} is named for it");
    Err(CliError::new(ExitCode::Refused, message).with_hint("name the same machine twice"))
}

async fn act(
    service: &ServiceArgs,
    machine: &str,
    verb: &str,
    request: Value,
    wait: bool,
) -> Result<ExitCode, CliError> {
    let client = service.client();
    let answer = client
        .post(&format!("/v1/machines/{}/{verb}", escape(machine)), &request)
        .await?;
    let document: ActDoc = client.decode(answer.clone())?;
    let job = match (document.job, wait) {
        (Some(job), true) => Some(follow(&client, job, service.json).await?),
        (job, _) => job,
    };
    if service.json {
        let mut answer = answer;
        answer["job"] = serde_json::to_value(&job).unwrap_or(Value::Null);
        print_json(&answer)?;
    }
    match job {
        Some(job) if job.state == JobState::Failed => {
            let text = job.error.unwrap_or_else(|| "the job failed".to_owned());
            let code = job.exit_code.map_or(ExitCode::PartlyDone, ExitCode::from_number);
            let error = CliError::new(code, format!("machine {machine}: {verb}: {text}"));
            Err(match job.hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            })
        }
        Some(job) if !service.json => {
            let how = if job.state == JobState::Running {
                "has begun"
            } else {
                "done"
            };
            print(&format!(
                "{machine}: {verb} {how}, job {}, {} written\n",
                job.id.0,
                size_text(job.bytes_written)
            ))?;
            Ok(ExitCode::Done)
        }
        None if !service.json => {
            let how = if document.already { "already" } else { "now" };
            let undo = match (document.failover, document.undo_until) {
                (State::Committed, Some(until)) if until > Timestamp::now() => {
                    format!("; it can be undone until {}", time_text(until))
                }
                (State::Committed, _) => "; it cannot be undone: what that needs is not kept".to_owned(),
                _ => String::new(),
            };
            print(&format!(
                "{} is {how} {}{undo}\n",
                clean(machine),
                document.failover
            ))?;
            Ok(ExitCode::Done)
        }
        _ => Ok(ExitCode::Done),
    }
}

/// Follows a job to its end, and tells how it goes.
async fn follow(client: &Client, mut job: Job, quiet: bool) -> Result<Job, CliError> {
    let terminal = std::io::stderr().is_terminal() && !quiet;
    while job.state == JobState::Running {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let answer = client.get(&format!("/v1/jobs/{}", job.id.0)).await?;
        job = client.decode::<JobDoc>(answer)?.job;
        if terminal {
            let _ = write!(
                std::io::stderr(),
                "\r{} {:>3} %, {} of {}  ",
                job.kind.word(),
                percent(job.bytes_done, job.bytes_total),
                size_text(job.bytes_done),
                size_text(job.bytes_total)
            );
        }
    }
    if terminal {
        let _ = writeln!(std::io::stderr());
    }
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans() {
        assert_eq!(span("72h"), Ok(259_200));
        assert_eq!(span("7d"), Ok(604_800));
        assert_eq!(span("90min"), Ok(5400));
        assert_eq!(span("0s"), Ok(0));
        for bad in ["", "h", "72", "1.5h", "-1h", "1 h", "1w", "18446744073709551615d"] {
            assert!(span(bad).is_err(), "{bad:?}");
        }
    }
}
