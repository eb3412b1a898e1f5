//! `mt-agent machines`: the machines that registered, and the operator's word on them.

use clap::Args;
use mt_identity::{Fingerprint, MachineId};
use serde_json::{Value, json};

use super::output::{ServiceArgs, print, print_json, table, time_text};
use super::screen::clean;
use crate::error::{CliError, ExitCode};
use crate::status::client::Client;
use crate::status::identity::{DecidedDoc, RegisteredDoc, RegistryDoc, Verb};

/// A machine that registered.
#[derive(Debug, Clone, Args)]
pub struct MachineArgs {
    /// Id as "machines list" shows it, or a name that only one machine has
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// A machine and one of its keys.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// Which machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The key that is meant [default: the one that waits]
    #[arg(long, value_name = "FINGERPRINT")]
    pub key: Option<String>,
}

/// Arguments of `machines approve`.
#[derive(Debug, Clone, Args)]
pub struct ApproveArgs {
    /// Which machine and key.
    #[command(flatten)]
    pub key: KeyArgs,
    /// A protected machine whose pairs it may send; may be given several times
    /// [default: the one of its own name]
    #[arg(long = "as", value_name = "NAME")]
    pub speaks_for: Vec<String>,
}

/// Lists machines.
///
/// # Errors
/// When the agent cannot be reached.
pub async fn list(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let client = args.client();
    let answer = client.get("/v1/registry").await?;
    if args.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let document: RegistryDoc = client.decode(answer)?;
    print(&list_text(&document.machines))?;
    Ok(ExitCode::Done)
}

fn list_text(machines: &[RegisteredDoc]) -> String {
    if machines.is_empty() {
        return "no machine has registered; on a machine run \"mt-agent register --target HOST\"\n"
            .to_owned();
    }
    let mut rows = vec![
        ["NAME", "ROLE", "STATE", "MAY SEND", "CERTIFICATE UNTIL"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(machines.iter().map(|machine| {
        vec![
            clean(&machine.name),
            clean(&machine.role),
            clean(&machine.state),
            match machine.speaks_for.is_empty() {
                true => "-".to_owned(),
                false => clean(&machine.speaks_for.join(" ")),
            },
            time_text(machine.certificate_until),
        ]
    }));
    let mut text = String::new();
    for (number, line) in table(&rows, &[]).into_iter().enumerate() {
        text += &format!("{line}\n");
        let Some(machine) = number.checked_sub(1).and_then(|index| machines.get(index)) else {
            continue;
        };
        text += &format!("  id  {}\n  key {}\n", clean(&machine.id), clean(&machine.key));
        if let Some(key) = &machine.waiting_key {
            text += &format!("  ANOTHER KEY WAITS: {}\n", clean(key));
        }
    }
    text
}

/// Approves a key of a machine.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn approve(args: &ApproveArgs) -> Result<ExitCode, CliError> {
    let machine = &args.key.machine;
    decide(machine, Verb::Approve, Some(&args.key), &args.speaks_for).await
}

/// Declines a key that would take the place of another.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn decline(args: &KeyArgs) -> Result<ExitCode, CliError> {
    decide(&args.machine, Verb::Decline, Some(args), &[]).await
}

/// Revokes a machine.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn revoke(args: &MachineArgs) -> Result<ExitCode, CliError> {
    decide(args, Verb::Revoke, None, &[]).await
}

/// Removes a machine.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn remove(args: &MachineArgs) -> Result<ExitCode, CliError> {
    decide(args, Verb::Remove, None, &[]).await
}

async fn decide(
    args: &MachineArgs,
    verb: Verb,
    key: Option<&KeyArgs>,
    speaks_for: &[String],
) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let machine = find(&client, &args.machine).await?;
    // The key is always named, so that what is approved is what was looked at.
    let key = match key {
        None => None,
        Some(KeyArgs { key: Some(key), .. }) => {
            let key: Fingerprint = key.parse().map_err(|error| {
                CliError::new(ExitCode::Usage, format!("this is no fingerprint: {error}"))
            })?;
            Some(key.to_string())
        }
        Some(_) => Some(machine.waiting_key.clone().unwrap_or_else(|| machine.key.clone())),
    };
    let request = json!({ "verb": verb, "key": key, "speaks_for": speaks_for });
    let answer: Value = client
        .post(&format!("/v1/registry/{}", machine.id), &request)
        .await?;
    if args.service.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let DecidedDoc {
        what, machine: now, ..
    } = client.decode(answer)?;
    let mut text = format!(
        "machine {} ({}): {}\n",
        machine.id,
        clean(&machine.name),
        clean(&what)
    );
    if let Some(now) = now.filter(|now| verb == Verb::Approve && !now.speaks_for.is_empty()) {
        text += &format!(
            "key {}\nit may send: {}\n",
            clean(&now.key),
            clean(&now.speaks_for.join(", "))
        );
    }
    print(&text)?;
    Ok(ExitCode::Done)
}

/// The machine of this id, or of a name that no other has.
async fn find(client: &Client, text: &str) -> Result<RegisteredDoc, CliError> {
    let document: RegistryDoc = client.decode(client.get("/v1/registry").await?)?;
    let id = text.parse::<MachineId>().ok().map(|id| id.to_string());
    let mut found: Vec<RegisteredDoc> = document
        .machines
        .into_iter()
        .filter(|machine| Some(&machine.id) == id.as_ref() || machine.name == text)
        .collect();
    let shown: String = text.chars().take(60).flat_map(char::escape_default).collect();
    match (found.pop(), found.len()) {
        (Some(machine), 0) => Ok(machine),
        (Some(_), others) => Err(CliError::new(
            ExitCode::Refused,
            format!(
                "{} machines call themselves \"{shown}\"; nothing was changed",
                others + 1
            ),
        )
        .with_hint("name one by its id, see \"mt-agent machines list\"")),
        (None, _) => Err(CliError::new(
            ExitCode::Refused,
            format!("no machine \"{shown}\" has registered; nothing was changed"),
        )
        .with_hint("see \"mt-agent machines list\"")),
    }
}
