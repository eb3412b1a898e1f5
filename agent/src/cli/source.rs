//! `mt-agent source send` and `mt-agent verify`: both run one order against a target.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mt_wire::Mode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{CliError, ExitCode};
use crate::model::PairName;
use crate::net::rate::RATE_MIN;
use crate::source::report::Audience;
use crate::source::send::{Order, run};

/// What a send and a verification are told.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// Address of the target's data port, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9443")]
    pub target: String,

    /// Pair to send to, as it was added on the target
    #[arg(long, value_name = "MACHINE/DISK")]
    pub pair: PairName,

    /// Folder for what is remembered between runs
    #[arg(long, value_name = "DIR", default_value = "/var/lib/master-target/source")]
    pub state_dir: PathBuf,

    /// Most bytes a second to send, such as 50MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub bandwidth_limit: Option<u64>,

    /// Go on trying for so many seconds after the connection was lost
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub retry_for: u64,

    /// Print JSON lines: progress, then one result or error
    #[arg(long)]
    pub json: bool,

    /// Image, block device or snapshot to read; it must not change meanwhile
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// Sends a protected disk to its target disk.
///
/// # Errors
/// Whatever keeps the two from being equal and durable.
pub async fn send(args: &SourceArgs) -> Result<ExitCode, CliError> {
    run(&order(args, Mode::Seed), stop_on_signal()?).await?;
    Ok(ExitCode::Done)
}

/// Compares a protected disk with its target disk.
///
/// # Errors
/// Whatever keeps the two from being compared. A difference is not an error but [`ExitCode::Differences`].
pub async fn verify(args: &SourceArgs) -> Result<ExitCode, CliError> {
    let report = run(&order(args, Mode::Verify), stop_on_signal()?).await?;
    Ok(if report.bytes_different == 0 {
        ExitCode::Done
    } else {
        ExitCode::Differences
    })
}

fn order(args: &SourceArgs, mode: Mode) -> Order {
    Order {
        mode,
        target: args.target.clone(),
        machine: args.pair.machine.clone(),
        disk: args.pair.disk.clone(),
        path: args.path.clone(),
        state_folder: args.state_dir.clone(),
        rate: args.bandwidth_limit,
        retry_for: Duration::from_secs(args.retry_for),
        audience: if args.json {
            Audience::Program
        } else {
            Audience::Person
        },
    }
}

/// Becomes true at the first SIGINT or SIGTERM; a second one ends the program at once.
pub(super) fn stop_on_signal() -> Result<watch::Receiver<bool>, CliError> {
    let fail = |error| {
        CliError::new(
            ExitCode::Unexpected,
            format!("cannot listen for signals: {error}"),
        )
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                std::process::exit(i32::from(ExitCode::PartlyDone as u8));
            }
        }
    });
    Ok(stopped)
}

/// A rate in bytes a second: a number with an optional unit.
fn parse_rate(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "expected a whole number with a unit, such as 50MiB".to_owned())?;
    let unit: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        unit => {
            return Err(format!(
                "unknown unit \"{unit}\"; use KiB, MiB, GiB, kB, MB or GB"
            ));
        }
    };
    match number.checked_mul(unit) {
        Some(rate) if rate >= RATE_MIN => Ok(rate),
        Some(_) => Err(format!("the smallest limit is {} KiB a second", RATE_MIN / 1024)),
        None => Err("that is more than any link carries".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_rate;

    #[test]
    fn rates() {
        assert_eq!(parse_rate("50MiB"), Ok(50 << 20));
        assert_eq!(parse_rate("1000000"), Ok(1_000_000));
        assert_eq!(parse_rate("2GB"), Ok(2_000_000_000));
        for bad in [
            "",
            "MiB",
            "1.5MiB",
            "50mib",
            "-1MiB",
            "1",
            "18446744073709551615GiB",
            "1 MiB",
            "\u{0665}MiB",
        ] {
            assert!(parse_rate(bad).is_err(), "{bad:?}");
        }
    }
}
