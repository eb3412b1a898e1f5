//! `mt-agent identity`, `passphrase` and `registration`: who the appliance is, and who may register.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use mt_identity::{Passphrase, backup};
use serde_json::json;

use super::offline;
use super::output::{ServiceArgs, print, print_json, seconds_between, span_text, time_text};
use super::ownership::become_owner_of;
use super::register::passphrase_in;
use super::screen::clean;
use crate::config::{Config, DEFAULT_PATH};
use crate::error::{CliError, ExitCode};
use crate::identity::{file, keeper};
use crate::status::identity::{BackupDoc, IdentityDoc, PassphraseDoc};

/// Arguments of `passphrase rotate`.
#[derive(Debug, Clone, Args)]
pub struct RotateArgs {
    /// File with a passphrase of one's own choice; without it one is made
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `registration open`.
#[derive(Debug, Clone, Args)]
pub struct OpenArgs {
    /// For how many hours, 168 at most
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=168))]
    pub hours: u64,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `identity export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// File to write; there must be none of this name
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// File with the passphrase of the backup; without it one is made and shown
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `identity import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// File that "identity export" wrote
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// File with the passphrase of the backup
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: PathBuf,
    /// Configuration file of the target, which must not run
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Lose the identity that this appliance has
    #[arg(long)]
    pub replace: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Shows who the appliance is, and once the passphrase that was made at its first start.
///
/// # Errors
/// When the agent cannot be reached, or there is no identity.
pub async fn show(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let client = args.client();
    let answer = client.get("/v1/identity").await?;
    let document: IdentityDoc = client.decode(answer.clone())?;
    let mut passphrase = None;
    if document.passphrase_waits {
        // A reader who is not root sees the rest.
        if let Ok(shown) = client.post("/v1/identity/passphrase/show", &json!({})).await {
            passphrase = client.decode::<PassphraseDoc>(shown)?.passphrase;
        }
    }
    let lost = |error| {
        if passphrase.is_some() {
            unseen(error)
        } else {
            error
        }
    };
    if args.json {
        let mut answer = answer;
        answer["passphrase"] = json!(passphrase);
        print_json(&answer).map_err(lost)?;
        return Ok(ExitCode::Done);
    }
    let mut text = format!(
        "appliance        {}\nCA fingerprint   {}\nCA valid until   {}\nmachines register on {}, replicate on {}\n{}\n",
        clean(&document.appliance),
        clean(&document.ca),
        time_text(document.ca_until),
        clean(&document.control),
        clean(&document.listen),
        window_text(&document),
    );
    match (&passphrase, document.passphrase_waits) {
        (Some(passphrase), _) => {
            text += &format!(
                "\nPASSPHRASE       {}\nIt is shown this once and kept nowhere. \"mt-agent passphrase rotate\" makes another.\n",
                clean(passphrase)
            );
        }
        (None, true) => text += "a passphrase waits to be shown to root\n",
        (None, false) => {
            text += "the passphrase is not kept; \"mt-agent passphrase rotate\" makes another\n";
        }
    }
    print(&text).map_err(lost)?;
    Ok(ExitCode::Done)
}

/// An answer with a passphrase that nobody could read: what is shown only once is gone with it.
fn unseen(error: CliError) -> CliError {
    CliError::new(
        error.exit_code,
        format!(
            "{}; the passphrase in it is shown only once and is lost",
            error.message
        ),
    )
    .with_hint("see to the output, then make another passphrase with \"mt-agent passphrase rotate\"")
}

fn window_text(document: &IdentityDoc) -> String {
    match document.registration_until {
        Some(until) if document.registration_open => format!(
            "registration is open until {} ({} left)",
            time_text(until),
            span_text(seconds_between(Timestamp::now(), until))
        ),
        _ => "registration is closed; \"mt-agent registration open\" opens it".to_owned(),
    }
}

/// Makes another passphrase.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn rotate(args: &RotateArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let chosen = args.passphrase_file.as_deref().map(passphrase_in).transpose()?;
    let request = json!({ "passphrase": chosen.as_ref().map(|chosen| chosen.reveal().to_string()) });
    let answer = client.post("/v1/identity/passphrase", &request).await?;
    let lost = |error| if chosen.is_none() { unseen(error) } else { error };
    if args.service.json {
        print_json(&answer).map_err(lost)?;
        return Ok(ExitCode::Done);
    }
    let document: PassphraseDoc = client.decode(answer)?;
    let shown = match &chosen {
        Some(_) => "the one that was chosen".to_owned(),
        None => clean(&document.passphrase.unwrap_or_default()),
    };
    print(&format!(
        "PASSPHRASE       {shown}\nThe old one is worth nothing now. Machines that have registered stay so. It is kept nowhere.\n"
    ))
    .map_err(lost)?;
    Ok(ExitCode::Done)
}

/// Opens registration.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn open(args: &OpenArgs) -> Result<ExitCode, CliError> {
    set_window(&args.service, args.hours * 3600).await
}

/// Closes registration.
///
/// # Errors
/// When the agent cannot be reached, or refuses.
pub async fn close(args: &ServiceArgs) -> Result<ExitCode, CliError> {
    set_window(args, 0).await
}

async fn set_window(args: &ServiceArgs, seconds: u64) -> Result<ExitCode, CliError> {
    let client = args.client();
    let request = json!({ "seconds": seconds });
    let answer = client.post("/v1/identity/registration", &request).await?;
    if args.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let document: IdentityDoc = client.decode(answer)?;
    print(&format!("{}\n", window_text(&document)))?;
    Ok(ExitCode::Done)
}

/// Writes an encrypted backup of the identity.
///
/// # Errors
/// When the agent cannot be reached or refuses, or the file cannot be written.
pub async fn export(args: &ExportArgs) -> Result<ExitCode, CliError> {
    let path = args.path.display();
    if args.path.symlink_metadata().is_ok() {
        let text = format!("will not write the backup: there is a {path} already");
        return Err(CliError::new(ExitCode::Refused, text).with_hint("name a file that does not exist"));
    }
    let client = args.service.client();
    let (passphrase, made) = match &args.passphrase_file {
        Some(path) => (passphrase_in(path)?, false),
        None => (Passphrase::generate(), true),
    };
    let request = json!({ "passphrase": passphrase.reveal().to_string() });
    let answer: BackupDoc = client.decode(client.post("/v1/identity/export", &request).await?)?;
    let bytes = unhex(&answer.backup).ok_or_else(|| {
        CliError::new(
            ExitCode::Peer,
            "the agent's answer is no backup; is it of another version?",
        )
    })?;
    let absolute = std::path::absolute(&args.path).unwrap_or_else(|_| args.path.clone());
    file::replace(&absolute, &bytes).map_err(|error| {
        CliError::new(
            ExitCode::Unexpected,
            format!("cannot write the backup {path}: {error}"),
        )
        .with_hint("check the folder and its space")
    })?;
    let shown = made.then(|| passphrase.reveal().to_string());
    if args.service.json {
        print_json(&json!({
            "schema": 1, "path": args.path.to_string_lossy(), "bytes": bytes.len(), "passphrase": shown,
        }))?;
        return Ok(ExitCode::Done);
    }
    let mut text = format!("wrote {path}, {} bytes, encrypted\n", bytes.len());
    if let Some(shown) = shown {
        text += &format!(
            "PASSPHRASE OF THE BACKUP   {shown}\nKeep it apart from the file; without it the file is worth nothing.\n"
        );
    }
    print(&text)?;
    Ok(ExitCode::Done)
}

/// Makes this appliance the one that a backup was written of.
///
/// # Errors
/// When the target runs, the backup cannot be opened, or there is another identity.
pub fn import(args: &ImportArgs) -> Result<ExitCode, CliError> {
    let config = Config::load(&args.config)?;
    let passphrase = passphrase_in(&args.passphrase_file)?;
    let read = file::read(&args.path, backup::BYTES_MAX);
    let bytes = read.and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()));
    let bytes = bytes.map_err(|error| {
        CliError::new(
            ExitCode::Usage,
            format!("cannot read the backup {}: {error}", args.path.display()),
        )
        .with_hint("name the file that \"mt-agent identity export\" wrote")
    })?;
    let who = offline::who();
    become_owner_of(&config.state_dir).map_err(|error| {
        let folder = config.state_dir.display();
        CliError::new(
            ExitCode::Unexpected,
            format!("cannot go on as the owner of {folder}: {error}; nothing was imported"),
        )
        .with_hint("run it as root, with the target stopped")
    })?;
    let imported = keeper::import(&config.state_dir, &bytes, &passphrase, args.replace);
    let result = match &imported {
        Ok(about) => format!("done: this appliance is {} now, with CA {}", about.id, about.ca),
        Err(error) => format!("refused: {error}"),
    };
    let replace = if args.replace { " --replace" } else { "" };
    let what = format!("identity import {}{replace}", args.path.display());
    offline::note(&config.state_dir, &who, &what, &result);
    let about = imported?;
    if args.json {
        print_json(&json!({ "schema": 1, "appliance": about.id.to_string(), "ca": about.ca.to_string() }))?;
    } else {
        print(&format!(
            "this appliance is {} now, with CA {}; start the target\n",
            about.id, about.ca
        ))?;
    }
    Ok(ExitCode::Done)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}
