//! `mt-agent pair`: which protected disk is written to which target disk.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use mt_blockdev::scsi::ScsiId;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::audit;
use super::config;
use super::output::{ServiceArgs, print, print_json, table};
use super::screen::clean;
use crate::broker::client::{BrokerError, Client};
use crate::disks::gate::RefusalKind;
use crate::error::{CliError, ExitCode, Explain as _};
use crate::model::PairName;
use crate::source::report::size_text;
use crate::status::client::{Client as ServiceClient, escape};
use crate::status::metrics::phase_word;
use crate::status::model::{PairAddedDoc, PairDoc, PairRemovedDoc, PairsDoc};

/// Arguments of `pair add`.
#[derive(Debug, Clone, Args)]
pub struct AddArgs {
    /// Names of the protected machine and of its disk, such as db01/scsi0:1
    #[arg(value_name = "MACHINE/DISK", value_parser = pair_name)]
    pub pair: PairName,
    /// SCSI ID of the target disk, as "disks list" shows it
    #[arg(value_name = "SCSI-ID")]
    pub scsi_id: String,
    /// Lose what the target disk holds; name its SCSI ID once more
    #[arg(long, value_name = "SCSI-ID")]
    pub overwrite: Option<String>,
    /// Configuration of the service, which says whether a broker opens disks
    /// [default: /etc/master-target/agent.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `pair remove`.
#[derive(Debug, Clone, Args)]
pub struct RemoveArgs {
    /// Names of the protected machine and of its disk, such as db01/scsi0:1
    #[arg(value_name = "MACHINE/DISK", value_parser = pair_name)]
    pub pair: PairName,
    /// Configuration of the service, which says whether a broker opens disks
    /// [default: /etc/master-target/agent.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

fn pair_name(text: &str) -> Result<PairName, String> {
    text.parse()
        .map_err(|error: crate::model::NameError| error.to_string())
}

/// Adds a pair.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn add(args: &AddArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let request = json!({
        "machine": args.pair.machine, "disk": args.pair.disk,
        "scsi_id": args.scsi_id, "overwrite": args.overwrite,
    });
    let broker = config::broker(args.config.as_deref())?;
    let recorded = match &broker {
        Some(broker) => match record(broker, args).await {
            Ok(recorded) => recorded,
            Err(error) => {
                // The target is not asked any more, so that its log would know nothing of it.
                let overwrite = args.overwrite.as_ref().map_or("", |_| ", overwriting it");
                let act = format!(
                    "pair add {} {}{overwrite}, at the broker",
                    args.pair, args.scsi_id
                );
                note(&client, &act, &format!("refused: {}", error.message)).await;
                return Err(error);
            }
        },
        None => false,
    };
    let answer = match client.post("/v1/pairs", &request).await {
        Ok(answer) => answer,
        Err(error) => {
            // What the target does not take is nothing the broker should open.
            if let Some(broker) = broker.filter(|_| recorded) {
                forget(broker, &args.pair).await?;
            }
            return Err(error.into());
        }
    };
    if args.service.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let PairAddedDoc { added, pair, .. } = client.decode(answer)?;
    let what = if added {
        "is now paired"
    } else {
        "was paired already"
    };
    print(&format!(
        "{} {what} with target disk {} ({}), {} ({} bytes)\n",
        pair.pair,
        pair.scsi_id,
        pair.kernel_name.as_deref().unwrap_or("not attached"),
        size_text(pair.size),
        pair.size
    ))?;
    Ok(ExitCode::Done)
}

/// Notes what came of asking the broker. The error of that is what the user has to see, whether it is noted or not.
async fn note(client: &ServiceClient, act: &str, result: &str) {
    if let Err(error) = audit::note(client, act, result).await {
        tracing::warn!("cannot write the audit log: {error}");
    }
}

/// Has the broker record a pair; whether that is new. What cannot be a SCSI ID, or names two, is left to the target to refuse.
async fn record(broker: &Client, args: &AddArgs) -> Result<bool, CliError> {
    let Ok(scsi_id) = ScsiId::parse(&args.scsi_id) else {
        return Ok(false);
    };
    let overwrite = args.overwrite.as_deref().map(ScsiId::parse);
    if !overwrite
        .as_ref()
        .is_none_or(|named| named.as_ref() == Ok(&scsi_id))
    {
        return Ok(false);
    }
    let (broker, pair, overwrite) = (broker.clone(), args.pair.clone(), overwrite.is_some());
    let done = spawn_blocking(move || broker.record(&pair, scsi_id, overwrite)).await;
    done.map_err(interrupted)?.map_err(|error| {
        let hint = match &error {
            BrokerError::Refused(refusal)
                if matches!(refusal.kind(), RefusalKind::NotEmpty | RefusalKind::Unreadable) =>
            {
                let pair = &args.pair;
                Some(format!(
                    "if all of it may be lost: mt-agent pair add {pair} {scsi_id} --overwrite {scsi_id}"
                ))
            }
            error => error.hint(),
        };
        CliError {
            message: format!("will not pair {}: {error}", args.pair),
            hint,
            exit_code: error.exit_code(),
        }
    })
}

/// Has the broker forget a pair; whether it knew it.
async fn forget(broker: Client, pair: &PairName) -> Result<bool, CliError> {
    let name = pair.clone();
    let done = spawn_blocking(move || broker.forget(&name)).await;
    done.map_err(interrupted)?.map_err(|error| CliError {
        message: format!("the target has no pair {pair} any more, and the broker still records it: {error}"),
        hint: Some(format!(
            "see \"systemctl status master-target-broker\", then again: mt-agent pair remove {pair}"
        )),
        exit_code: ExitCode::PartlyDone,
    })
}

fn interrupted(error: tokio::task::JoinError) -> CliError {
    CliError::new(
        ExitCode::Unexpected,
        format!("asking the broker ended by a fault of ours: {error}"),
    )
}

/// Removes a pair.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn remove(args: &RemoveArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let path = format!(
        "/v1/pairs/{}/{}",
        escape(&args.pair.machine),
        escape(&args.pair.disk)
    );
    let answer = client.delete(&path).await?;
    let forgotten = match config::broker(args.config.as_deref())? {
        Some(broker) => {
            let forgotten = forget(broker, &args.pair).await;
            if let Err(error) = &forgotten {
                let act = format!("pair remove {}, at the broker", args.pair);
                note(&client, &act, &format!("failed: {}", error.message)).await;
            }
            forgotten?
        }
        None => false,
    };
    if args.service.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let PairRemovedDoc { removed, pair, .. } = client.decode(answer)?;
    print(&match removed || forgotten {
        true => format!("{pair} is no pair any more; its disk was not touched\n"),
        false => format!("there was no pair {pair}; nothing was changed\n"),
    })?;
    Ok(ExitCode::Done)
}

/// Lists pairs.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn list(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let client = args.client();
    let answer = client.get("/v1/pairs").await?;
    if args.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let document: PairsDoc = client.decode(answer)?;
    print(&list_text(&document.pairs))?;
    Ok(ExitCode::Done)
}

fn list_text(pairs: &[PairDoc]) -> String {
    let mut rows = vec![
        ["PAIR", "STATE", "TARGET DISK", "TODAY", "SIZE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(pairs.iter().map(|pair| {
        vec![
            clean(&pair.pair),
            phase_word(pair.phase).to_owned(),
            pair.scsi_id.to_string(),
            clean(pair.kernel_name.as_deref().unwrap_or("-")),
            size_text(pair.protected_size.unwrap_or(pair.size)),
        ]
    }));
    if pairs.is_empty() {
        return "no pairs; \"mt-agent disks list\" shows the disks, \"mt-agent pair add\" pairs one\n"
            .to_owned();
    }
    let mut text = String::new();
    for (number, line) in table(&rows, &[4]).into_iter().enumerate() {
        text.push_str(&line);
        text.push('\n');
        let Some(pair) = number.checked_sub(1).and_then(|index| pairs.get(index)) else {
            continue;
        };
        if let Some(problem) = &pair.disk_problem {
            let _ = writeln!(text, "  - {}", clean(&problem.error));
            if let Some(hint) = &problem.hint {
                let _ = writeln!(text, "    hint: {}", clean(hint));
            }
        }
    }
    text
}
