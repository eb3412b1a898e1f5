//! `mt-agent events`: what happens, as it happens.

use serde_json::Value;

use super::output::{ServiceArgs, percent, print};
use super::screen::clean;
use super::source::stop_on_signal;
use crate::error::{CliError, ExitCode};
use crate::source::report::size_text;

/// Prints events until it is stopped, or the agent ends.
///
/// # Errors
/// When the agent cannot be reached, or goes away without a word.
pub async fn run(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let mut stop = stop_on_signal()?;
    let mut events = args.client().events().await?;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = stop.wait_for(|stop| *stop) => return Ok(ExitCode::Done),
        };
        let Some(event) = event else {
            let error = CliError::new(ExitCode::Peer, "the agent ended the stream of events");
            return Err(error.with_hint("it was stopped, or this reader was too slow for it"));
        };
        print(&if args.json {
            format!("{event}\n")
        } else {
            format!("{}\n", line(&event))
        })?;
    }
}

/// An event in one line.
fn line(event: &Value) -> String {
    let text = |value: &Value| clean(value.as_str().unwrap_or("?"));
    let kind = text(&event["event"]);
    let (job, alarm) = (&event["job"], &event["alarm"]);
    let number = |key: &str| job[key].as_u64().unwrap_or(0);
    let about_job = || format!("{} {} of {}", text(&job["kind"]), job["id"], text(&job["pair"]));
    let details = match kind.as_str() {
        "job-started" => format!("{} from {}", about_job(), text(&job["peer"])),
        "job-progress" => {
            let (done, total) = (number("bytes_done"), number("bytes_total"));
            format!(
                "{}: {} %, {} of {}",
                about_job(),
                percent(done, total),
                size_text(done),
                size_text(total)
            )
        }
        "job-ended" => {
            let error = job["error"]
                .as_str()
                .map(|error| format!(": {}", clean(error)))
                .unwrap_or_default();
            format!(
                "{} {}, {} written{error}",
                about_job(),
                text(&job["state"]),
                size_text(number("bytes_written"))
            )
        }
        "alarm-raised" | "alarm-cleared" => {
            format!(
                "{} {}: {}",
                text(&alarm["severity"]),
                text(&alarm["subject"]),
                text(&alarm["text"])
            )
        }
        "pair-added" | "pair-removed" => text(&event["pair"]),
        "disks-changed" => {
            let changes = event["changes"].as_array().map(Vec::as_slice).unwrap_or_default();
            changes.iter().map(text).collect::<Vec<_>>().join("; ")
        }
        "missed" => {
            return format!(
                "({} events were missed: this reader is too slow)",
                event["missed"]
            );
        }
        _ => clean(&event.to_string()),
    };
    let time: String = text(&event["time"]).chars().take(19).collect();
    format!("{}Z  {kind:<13}  {details}", time.replace('T', " "))
}
