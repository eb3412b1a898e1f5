//! `mt-agent audit`: who asked for which change, when, and what came of it.

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use super::output::{ServiceArgs, print, print_json, table, time_text};
use super::screen::clean;
use crate::error::{CliError, ExitCode};
use crate::status::client::{Client, ClientError};
use crate::status::log::AuditDoc;

/// Arguments of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Only entries older than the one of this number
    #[arg(long, value_name = "NUMBER")]
    pub before: Option<u64>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Lists changes that were asked for, newest first.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn audit(args: &AuditArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let path = match args.before {
        Some(number) => format!("/v1/audit?before={number}"),
        None => "/v1/audit".to_owned(),
    };
    let answer = client.get(&path).await?;
    if args.service.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    print(&text(&client.decode(answer)?))?;
    Ok(ExitCode::Done)
}

fn text(document: &AuditDoc) -> String {
    let mut rows = vec![["TIME", "WHO", "WHAT", "RESULT"].map(str::to_owned).to_vec()];
    rows.extend(document.entries.iter().map(|entry| {
        vec![
            time_text(entry.time),
            clean(&entry.who),
            clean(&entry.what),
            clean(&entry.result),
        ]
    }));
    let mut text = table(&rows, &[]).join("\n") + "\n";
    if let Some(oldest) = document.entries.last().filter(|_| document.older > 0) {
        let _ = writeln!(
            text,
            "{} older entries: mt-agent audit --before {}",
            document.older, oldest.id
        );
    }
    if document.gone > 0 {
        let _ = writeln!(
            text,
            "the {} oldest entries are not kept here any more; the journal has what it keeps",
            document.gone
        );
    }
    text
}

/// Notes in the audit log of a running agent what a command does by itself.
///
/// # Errors
/// When the agent cannot be reached, or does not take it.
pub async fn note(client: &Client, act: &str, result: &str) -> Result<(), ClientError> {
    let request = json!({ "act": act, "result": result });
    client.post("/v1/audit", &request).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::status::log::AuditEntryDoc;

    #[test]
    fn what_is_not_shown_is_said() {
        let mut document = AuditDoc {
            schema: 1,
            entries: vec![AuditEntryDoc {
                id: 4711,
                time: Timestamp::UNIX_EPOCH,
                who: "user 0".to_owned(),
                what: "POST /v1/pairs".to_owned(),
                result: "done (201)".to_owned(),
            }],
            older: 0,
            gone: 0,
        };
        assert_eq!(text(&document).lines().count(), 2);
        (document.older, document.gone) = (3, 7);
        let said = text(&document);
        assert!(
            said.contains("3 older entries: mt-agent audit --before 4711"),
            "{said}"
        );
        assert!(
            said.contains("the 7 oldest entries are not kept here any more"),
            "{said}"
        );
    }
}
