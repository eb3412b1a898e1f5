//! `mt-agent points`: recovery points of a machine, and looking at one without touching a disk.

use std::fmt::Write;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::groups::{self, Members};
use super::output::{ServiceArgs, print, print_json, table, time_text};
use super::screen::clean;
use crate::error::{CliError, ExitCode};
use crate::source::report::size_text;
use crate::status::client::{Client, escape};
use crate::status::machines::{ExportsDoc, MachineDoc, PointDoc, PointsDoc};
use crate::status::model::SCHEMA;

/// Arguments of `points list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Name of the machine, or of a group: then the points that it shares
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of verbs about one point.
#[derive(Debug, Clone, Args)]
pub struct PointArgs {
    /// Name of the machine
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Number, name or time of the point; latest; before-failback
    #[arg(value_name = "POINT")]
    pub point: String,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `points pin`.
#[derive(Debug, Clone, Args)]
pub struct PinArgs {
    /// Which point
    #[command(flatten)]
    pub point: PointArgs,
    /// Let go of it again
    #[arg(long)]
    pub release: bool,
}

/// Arguments of `points export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Which point
    #[command(flatten)]
    pub point: PointArgs,
    /// Take writes, and throw them away at the end
    #[arg(long)]
    pub writable: bool,
    /// Leave it served and return; "points unexport" ends it
    #[arg(long)]
    pub detach: bool,
}

/// Arguments of `points unexport`.
#[derive(Debug, Clone, Args)]
pub struct UnexportArgs {
    /// Number of the export
    #[arg(value_name = "NUMBER")]
    pub id: u64,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Lists the points of a machine.
///
/// # Errors
/// When the agent cannot be reached, or the machine has none.
pub async fn list(args: &ListArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    if let Members::Group(members) = groups::members(&client, &args.machine).await? {
        return list_group(&client, args, &members).await;
    }
    let answer = client
        .get(&format!("/v1/machines/{}/points", escape(&args.machine)))
        .await?;
    if args.service.json {
        print_json(&answer)?;
    } else {
        let document: PointsDoc = client.decode(answer)?;
        print(&list_text(&document.points))?;
    }
    Ok(ExitCode::Done)
}

async fn list_group(client: &Client, args: &ListArgs, members: &[MachineDoc]) -> Result<ExitCode, CliError> {
    let points = groups::shared(&groups::points_of(client, &args.machine, members).await?);
    if args.service.json {
        print_json(&json!({ "schema": SCHEMA, "group": args.machine, "points": points }))?;
        return Ok(ExitCode::Done);
    }
    let mut rows = vec![
        ["NAME", "TIME", "CONSISTENCY", "POINTS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(points.iter().map(|point| {
        let numbers = point
            .points
            .iter()
            .map(|(machine, number)| format!("{}: {number}", clean(machine)));
        vec![
            clean(&point.name),
            time_text(point.time),
            point.consistency.clone(),
            numbers.collect::<Vec<_>>().join(", "),
        ]
    }));
    let mut text = table(&rows, &[]).join("\n");
    text.push('\n');
    print(&text)?;
    Ok(ExitCode::Done)
}

/// Pins a point, or lets go of it.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn pin(args: &PinArgs) -> Result<ExitCode, CliError> {
    let PointArgs {
        machine,
        point,
        service,
    } = &args.point;
    let client = service.client();
    let path = format!("/v1/machines/{}/points/{}", escape(machine), escape(point));
    let answer = client.post(&path, &json!({ "pinned": !args.release })).await?;
    if service.json {
        print_json(&answer)?;
    } else if args.release {
        print("the point goes by the policy again\n")?;
    } else {
        print("the point is kept until it is released\n")?;
    }
    Ok(ExitCode::Done)
}

/// Deletes a point.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn delete(args: &PointArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let path = format!(
        "/v1/machines/{}/points/{}",
        escape(&args.machine),
        escape(&args.point)
    );
    let answer = client.delete(&path).await?;
    if args.service.json {
        print_json(&answer)?;
    } else {
        print("the point is no longer offered; its space becomes free\n")?;
    }
    Ok(ExitCode::Done)
}

/// Serves a point over NBD until it is interrupted.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn export(args: &ExportArgs) -> Result<ExitCode, CliError> {
    let PointArgs {
        machine,
        point,
        service,
    } = &args.point;
    let client = service.client();
    let path = format!("/v1/machines/{}/exports", escape(machine));
    let request = json!({ "point": point, "writable": args.writable });
    let answer = client.post(&path, &request).await?;
    let document: ExportsDoc = client.decode(answer.clone())?;
    let Some(export) = document.exports.first() else {
        return Err(CliError::new(ExitCode::Unexpected, "the agent exported nothing"));
    };
    if service.json {
        print_json(&answer)?;
    } else {
        let mut text = format!(
            "point {} of {machine} is served, as export {}:\n",
            export.point, export.id
        );
        for disk in &export.disks {
            let _ = writeln!(text, "  nbd+unix:///{}?socket={}", clean(disk), export.socket);
        }
        print(&text)?;
    }
    if args.detach {
        return Ok(ExitCode::Done);
    }
    if !service.json {
        print("interrupt to end it\n")?;
    }
    let fail = |error| {
        CliError::new(
            ExitCode::Unexpected,
            format!("cannot listen for signals: {error}"),
        )
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    client.delete(&format!("/v1/exports/{}", export.id)).await?;
    Ok(ExitCode::Done)
}

/// Ends an export.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn unexport(args: &UnexportArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let answer = client.delete(&format!("/v1/exports/{}", args.id)).await?;
    if args.service.json {
        print_json(&answer)?;
    } else {
        print("it is not served any more\n")?;
    }
    Ok(ExitCode::Done)
}

fn list_text(points: &[PointDoc]) -> String {
    let head = [
        "POINT",
        "TIME",
        "CONSISTENCY",
        "FROM",
        "CHANGED",
        "STATE",
        "NAME",
        "TAGS",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(points.iter().map(|point| {
        vec![
            point.point.to_string(),
            time_text(point.time),
            point.consistency.clone(),
            match point.rolled_to {
                Some(to) => format!("roll to {to}"),
                None => point.origin.clone(),
            },
            size_text(point.changed_bytes),
            match (&point.damaged, point.pinned) {
                (Some(_), _) => "damaged",
                (None, true) => "pinned",
                (None, false) => "reachable",
            }
            .to_owned(),
            clean(&point.name),
            clean(&point.tags.join(" ")),
        ]
    }));
    let mut text = table(&rows, &[0, 4]).join("\n");
    text.push('\n');
    for point in points {
        if let Some(why) = &point.damaged {
            let _ = writeln!(text, "  - point {}: {}", point.point, clean(why));
        }
    }
    text
}
