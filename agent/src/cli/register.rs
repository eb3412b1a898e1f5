//! `mt-agent register` and `mt-agent renew`: a machine and its certificate.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use mt_identity::{Fingerprint, MachineName, Passphrase, Role};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use serde_json::json;
use zeroize::Zeroizing;

use super::address::TargetAddress;
use super::output::{print, print_json, time_text};
use crate::error::{CliError, ExitCode};
use crate::identity::file;
use crate::identity::membership::{Application, CONTROL_PORT, Membership};

/// Longest file with a passphrase that is read, bytes.
const PASSPHRASE_FILE_BYTES_MAX: usize = 1024;

/// What registering is told.
#[derive(Debug, Clone, Args)]
pub struct RegisterArgs {
    /// The appliance: HOST, or HOST:PORT of its control port (443 when none is given)
    #[arg(long, value_name = "HOST[:PORT]", value_parser = TargetAddress::parse)]
    pub target: TargetAddress,

    /// Fingerprint of the appliance's CA, as its console shows it
    #[arg(long, value_name = "FINGERPRINT", value_parser = fingerprint)]
    pub ca_fingerprint: Option<Fingerprint>,

    /// File with the passphrase; without it, it is asked for
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,

    /// What this machine is to be
    #[arg(long, value_name = "ROLE", value_enum, default_value_t = AsRole::Source)]
    pub role: AsRole,

    /// Name of this machine, for people [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Folder for key and certificate
    #[arg(long, value_name = "DIR", default_value = "/var/lib/master-target/source")]
    pub state_dir: PathBuf,

    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// What renewing is told.
#[derive(Debug, Clone, Args)]
pub struct RenewArgs {
    /// Folder for key and certificate
    #[arg(long, value_name = "DIR", default_value = "/var/lib/master-target/source")]
    pub state_dir: PathBuf,

    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// What a machine can register as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AsRole {
    /// A protected machine, or one that reads its disks
    Source,
    /// A process server between sources and the appliance
    Relay,
}

fn fingerprint(text: &str) -> Result<Fingerprint, String> {
    text.parse()
        .map_err(|error: mt_identity::id::IdError| error.to_string())
}

/// Registers this machine with an appliance.
///
/// # Errors
/// Whatever keeps it from having a certificate.
pub async fn register(args: &RegisterArgs) -> Result<ExitCode, CliError> {
    let usage = |text: String| CliError::new(ExitCode::Usage, text);
    let name = match &args.name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default(),
    };
    let name = MachineName::new(&name).map_err(|error| {
        usage(format!(
            "\"{}\" cannot be this machine's name: {error}",
            name.escape_default()
        ))
        .with_hint("give another with --name")
    })?;
    let passphrase = match &args.passphrase_file {
        Some(path) => passphrase_in(path)?,
        None => parse(&ask("Passphrase of the appliance: ")?)?,
    };
    let application = Application {
        target: args.target.with_port(CONTROL_PORT),
        passphrase,
        ca: args.ca_fingerprint,
        role: match args.role {
            AsRole::Source => Role::Source,
            AsRole::Relay => Role::Relay,
        },
        name,
    };
    let outcome = Membership::in_folder(&args.state_dir)
        .register(application)
        .await?;
    if args.json {
        print_json(&json!({
            "schema": 1, "event": "registered", "id": outcome.id, "key": outcome.key.to_string(),
            "ca": outcome.ca.to_string(), "certificate_until": outcome.until, "approved": outcome.approved,
        }))?;
        return Ok(ExitCode::Done);
    }
    let next = match outcome.approved {
        true if args.name.is_some() => {
            "The appliance knows this key already; nothing more is to be done. It goes on calling this machine by the name \
             that it was approved under; to change that, revoke and remove it there, then register anew."
                .to_owned()
        }
        true => "The appliance knows this key already; nothing more is to be done.".to_owned(),
        false => format!(
            "On the appliance, as root, compare the key in \"mt-agent machines list\", then:\n\n    \
             mt-agent machines approve {}\n",
            outcome.id
        ),
    };
    print(&format!(
        "registered as {}\nkey of this machine   {}\nCA of the appliance   {}\ncertificate until     {}\n{next}\n",
        outcome.id,
        outcome.key,
        outcome.ca,
        time_text(outcome.until)
    ))?;
    Ok(ExitCode::Done)
}

/// Renews this machine's certificate now.
///
/// # Errors
/// Whatever keeps it from having a new one.
pub async fn renew(args: &RenewArgs) -> Result<ExitCode, CliError> {
    let until = Membership::in_folder(&args.state_dir).renew_now().await?;
    if args.json {
        print_json(&json!({ "schema": 1, "event": "renewed", "certificate_until": until }))?;
    } else {
        print(&format!(
            "renewed; the certificate is valid until {}\n",
            time_text(until)
        ))?;
    }
    Ok(ExitCode::Done)
}

/// Reads a passphrase from a file.
///
/// # Errors
/// When there is none in it.
pub fn passphrase_in(path: &Path) -> Result<Passphrase, CliError> {
    let read = file::read(path, PASSPHRASE_FILE_BYTES_MAX);
    let bytes = read.and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()));
    let bytes = bytes.map_err(|error| {
        CliError::new(
            ExitCode::Usage,
            format!("cannot read the passphrase file {}: {error}", path.display()),
        )
        .with_hint("give a small regular file that holds nothing but the passphrase")
    })?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| CliError::new(ExitCode::Usage, format!("{} does not hold text", path.display())))?;
    parse(text)
}

fn parse(text: &str) -> Result<Passphrase, CliError> {
    Passphrase::parse(text)
        .map_err(|error| CliError::new(ExitCode::Usage, error.to_string()).with_hint(error.hint()))
}

/// Asks on the terminal, without showing what is typed.
fn ask(question: &str) -> Result<Zeroizing<String>, CliError> {
    let stdin = std::io::stdin();
    let fail = |error: std::io::Error| {
        CliError::new(
            ExitCode::Unexpected,
            format!("cannot ask for the passphrase: {error}"),
        )
    };
    if !stdin.is_terminal() {
        let text = "there is no terminal to ask for the passphrase on";
        return Err(CliError::new(ExitCode::Usage, text).with_hint("name a file with --passphrase-file"));
    }
    let before = tcgetattr(&stdin).map_err(|error| fail(error.into()))?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    let _ = write!(std::io::stderr(), "{question}");
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).map_err(|error| fail(error.into()))?;
    let mut text = Zeroizing::new(String::with_capacity(PASSPHRASE_FILE_BYTES_MAX));
    let read = stdin.read_line(&mut text);
    let restored = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
    let _ = writeln!(std::io::stderr());
    read.map_err(fail)?;
    restored.map_err(|error| fail(error.into()))?;
    Ok(text)
}
