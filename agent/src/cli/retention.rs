//! `mt-agent retention`, `policy` and `groups`: the volume that keeps recovery points, and which points it keeps.

use std::fmt::Write;

use clap::Args;
use serde_json::json;

use super::failover::{same_machine, span};
use super::output::{ServiceArgs, percent, print, print_json, span_text, table};
use super::screen::clean;
use crate::error::{CliError, ExitCode};
use crate::source::report::size_text;
use crate::state::machines::Policy;
use crate::status::client::escape;
use crate::status::machines::{MachineDoc, MachinesDoc, RetentionDoc};

/// Arguments of `retention reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// Name of the machine whose points are dropped
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Drop every point of the machine; name it once more
    #[arg(long, value_name = "MACHINE")]
    pub drop_points_of: String,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `policy`.
#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// Name of the machine
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Keep every point for so long, such as 2h
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub all_for: Option<u64>,
    /// Then one an hour for so long, such as 1d
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub hourly_for: Option<u64>,
    /// Then one a day for so long, such as 30d
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub daily_for: Option<u64>,
    /// Never drop a point that is younger, such as 1h
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub minimum_age: Option<u64>,
    /// Most bytes of the machine's store; 0 for as many as the volume has
    #[arg(long, value_name = "BYTES")]
    pub space: Option<u64>,
    /// Raise an alarm when the newest epoch is older, such as 30min; 0s for never
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub late_after: Option<u64>,
    /// Group of machines that share points; an empty name leaves it
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Shows the retention volume and the stores on it.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn status(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let client = args.client();
    let mut answer = client.get("/v1/retention").await?;
    let machines = client.get("/v1/machines").await?;
    if args.json {
        answer["machines"] = machines["machines"].clone();
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let document: RetentionDoc = client.decode(answer)?;
    let machines: MachinesDoc = client.decode(machines)?;
    print(&status_text(&document, &machines.machines))?;
    Ok(ExitCode::Done)
}

/// Drops the store of a machine.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn reset(args: &ResetArgs) -> Result<ExitCode, CliError> {
    same_machine(&args.machine, &args.drop_points_of)?;
    let client = args.service.client();
    let answer = client
        .post(
            &format!("/v1/machines/{}/reset", escape(&args.machine)),
            &json!({}),
        )
        .await?;
    if args.service.json {
        print_json(&answer)?;
    } else {
        print(&format!(
            "{} has no recovery points any more; its next epoch begins anew, and its disks were not touched\n",
            args.machine
        ))?;
    }
    Ok(ExitCode::Done)
}

/// Shows or changes the policy of a machine.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn policy(args: &PolicyArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let document: MachinesDoc = client.decode(client.get("/v1/machines").await?)?;
    let known = document
        .machines
        .iter()
        .find(|machine| machine.machine == args.machine);
    let Some(known) = known else {
        return Err(CliError::new(
            ExitCode::Usage,
            format!("there is no machine {}: no pair names it", clean(&args.machine)),
        )
        .with_hint("\"mt-agent pair list\" shows the machines"));
    };
    let old = known.policy;
    let new = Policy {
        all_for: args.all_for.unwrap_or(old.all_for),
        hourly_for: args.hourly_for.unwrap_or(old.hourly_for),
        daily_for: args.daily_for.unwrap_or(old.daily_for),
        minimum_age: args.minimum_age.unwrap_or(old.minimum_age),
        space: args.space.unwrap_or(old.space),
        late_after: args.late_after.unwrap_or(old.late_after),
    };
    let mut answer = serde_json::to_value(MachinesDoc {
        machines: vec![known.clone()],
        ..document.clone()
    })
    .unwrap_or_default();
    if new != old || args.group.is_some() {
        let request = json!({ "policy": new, "group": args.group });
        let path = format!("/v1/machines/{}/settings", escape(&args.machine));
        answer = client.post(&path, &request).await?;
    }
    if args.service.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let document: MachinesDoc = client.decode(answer)?;
    for machine in &document.machines {
        print(&policy_text(machine))?;
    }
    Ok(ExitCode::Done)
}

/// Lists groups and their machines.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn groups(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let client = args.client();
    let answer = client.get("/v1/machines").await?;
    if args.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let document: MachinesDoc = client.decode(answer)?;
    let mut rows = vec![["GROUP", "MACHINE", "STATE", "DISKS"].map(str::to_owned).to_vec()];
    let mut machines = document.machines;
    machines.sort_by(|a, b| a.group.cmp(&b.group).then(a.machine.cmp(&b.machine)));
    rows.extend(machines.iter().map(|machine| {
        vec![
            clean(machine.group.as_deref().unwrap_or("-")),
            clean(&machine.machine),
            machine.failover.word().to_owned(),
            machine.disks.len().to_string(),
        ]
    }));
    let mut text = table(&rows, &[3]).join("\n");
    text.push('\n');
    print(&text)?;
    Ok(ExitCode::Done)
}

fn policy_text(machine: &MachineDoc) -> String {
    let policy = machine.policy;
    let mut text = format!(
        "{}: every point for {}, then hourly for {}, then daily for {}; none younger than {} is dropped",
        clean(&machine.machine),
        span_text(policy.all_for),
        span_text(policy.hourly_for),
        span_text(policy.daily_for),
        span_text(policy.minimum_age)
    );
    if policy.space > 0 {
        let _ = write!(text, "; at most {}", size_text(policy.space));
    }
    if policy.late_after > 0 {
        let _ = write!(text, "; an epoch is late after {}", span_text(policy.late_after));
    }
    if let Some(group) = &machine.group {
        let _ = write!(text, "; group {}", clean(group));
    }
    text.push('\n');
    text
}

fn status_text(volume: &RetentionDoc, machines: &[MachineDoc]) -> String {
    let mut text = match (&volume.folder, &volume.problem) {
        (None, _) => {
            "no retention volume: epochs go straight to the disks, and there are no recovery points\n"
                .to_owned()
        }
        (Some(folder), Some(problem)) => {
            format!("retention volume {}\n  - {}\n", clean(folder), clean(problem))
        }
        (Some(folder), None) => format!(
            "retention volume {}: {} free of {}, {} % used\n",
            clean(folder),
            size_text(volume.free),
            size_text(volume.total),
            percent(volume.total.saturating_sub(volume.free), volume.total)
        ),
    };
    match (volume.seconds_to_full, volume.forecast_over) {
        (Some(left), Some(over)) => {
            let _ = writeln!(
                text,
                "at the pace of the last {} it is full in {}",
                span_text(over),
                span_text(left)
            );
        }
        (None, Some(over)) => {
            let _ = writeln!(text, "it has not grown in the last {}", span_text(over));
        }
        _ => {}
    }
    let head = ["MACHINE", "STATE", "POINTS", "NEWEST", "ON DISK", "LAG", "USED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for machine in machines {
        let store = machine.store.as_ref();
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let size = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), size_text);
        rows.push(vec![
            clean(&machine.machine),
            machine.failover.word().to_owned(),
            number(store.map(|store| store.points)),
            number(store.map(|store| store.committed)),
            number(store.map(|store| store.applied)),
            size(store.map(|store| store.lag_bytes)),
            size(store.map(|store| store.used)),
        ]);
    }
    if rows.len() > 1 {
        text.push_str(&table(&rows, &[2, 3, 4, 5, 6]).join("\n"));
        text.push('\n');
    }
    for machine in machines {
        let store = machine.store.as_ref();
        let trouble = store
            .and_then(|store| store.stopped.as_ref())
            .or(machine.failure.as_ref());
        if let Some(trouble) = trouble {
            let _ = writeln!(text, "  - {}: {}", clean(&machine.machine), clean(trouble));
        }
    }
    text
}
