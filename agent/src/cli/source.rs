//! `mt-agent source send` and `mt-agent verify`: both run one order against a target.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use mt_wire::limits::{TAG_BYTES_MAX, TAGS_MAX};
use mt_wire::{Consistency, EndEpoch, EpochTotals, Mode, Tag};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::address::TargetAddress;
use crate::error::{CliError, ExitCode};
use crate::machines::points::Wanted;
use crate::model::PairName;
use crate::net::rate::RATE_MIN;
use crate::source::report::Audience;
use crate::source::send::{Channel, Order, run};

/// The data port where none is named.
const DATA_PORT: u16 = 9443;

/// What a send and a verification are told alike.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Address of the target's data port; the port is 9443 when none is given
    #[arg(long, value_name = "HOST[:PORT]", default_value = "127.0.0.1", value_parser = TargetAddress::parse)]
    pub target: TargetAddress,

    /// Folder for what is remembered between runs
    #[arg(long, value_name = "DIR", default_value = "/var/lib/master-target/source")]
    pub state_dir: PathBuf,

    /// Most bytes a second to send, such as 50MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub bandwidth_limit: Option<u64>,

    /// Go on trying for so many seconds after the connection was lost
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub retry_for: u64,

    /// Without TLS, to the target of a laboratory on this machine
    #[arg(long)]
    pub plain: bool,

    /// Print JSON lines: progress, then one result or error
    #[arg(long)]
    pub json: bool,
}

/// What a verification is told.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Pair to compare, as it was added on the target
    #[arg(long, value_name = "MACHINE/DISK")]
    pub pair: PairName,

    /// How to get there
    #[command(flatten)]
    pub common: CommonArgs,

    /// Image, block device or snapshot to read; it must not change meanwhile
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// What a send is told: one pair and its path, or a machine and all of its disks.
#[derive(Debug, Clone, Args)]
pub struct SendArgs {
    /// Pair to seed, as it was added on the target
    #[arg(
        long,
        value_name = "MACHINE/DISK",
        required_unless_present = "machine",
        requires = "path"
    )]
    pub pair: Option<PairName>,

    /// Machine to send an epoch of: all of its disks, consistent together
    #[arg(long, value_name = "MACHINE", requires = "disks", conflicts_with_all = ["pair", "path"])]
    pub machine: Option<String>,

    /// A disk of the machine and its snapshot; once for each disk
    #[arg(long = "disk", value_name = "DISK=PATH", value_parser = disk_and_path, requires = "machine")]
    pub disks: Vec<(String, PathBuf)>,

    /// Name of the recovery point
    #[arg(long, value_name = "NAME", requires = "machine", value_parser = point_name)]
    pub point_name: Option<String>,

    /// Tag of the recovery point; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", requires = "machine", value_parser = key_and_value)]
    pub tags: Vec<Tag>,

    /// What the snapshots are worth
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Kind::Crash, requires = "machine")]
    pub consistency: Kind,

    /// How to get there
    #[command(flatten)]
    pub common: CommonArgs,

    /// Image, block device or snapshot to read; it must not change meanwhile
    #[arg(value_name = "PATH", requires = "pair")]
    pub path: Option<PathBuf>,
}

/// What snapshots are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// As if the power had failed
    Crash,
    /// File systems were frozen
    FileSystem,
    /// Applications were quiet too
    Application,
}

/// Sends a protected disk to its target disk, or an epoch of a machine.
///
/// # Errors
/// Whatever keeps it from being durable.
pub async fn send(args: &SendArgs) -> Result<ExitCode, CliError> {
    let order = match (&args.pair, &args.path, &args.machine) {
        (Some(pair), Some(path), _) => pair_order(&args.common, Mode::Seed, pair, path),
        (_, _, Some(machine)) => epoch_order(args, machine)?,
        _ => {
            return Err(CliError::new(
                ExitCode::Usage,
                "give --pair with a path, or --machine with its disks",
            ));
        }
    };
    run(&order, stop_on_signal()?).await?;
    Ok(ExitCode::Done)
}

/// Compares a protected disk with its target disk.
///
/// # Errors
/// Whatever keeps the two from being compared. A difference is not an error but [`ExitCode::Differences`].
pub async fn verify(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let order = pair_order(&args.common, Mode::Verify, &args.pair, &args.path);
    let report = run(&order, stop_on_signal()?).await?;
    Ok(if report.bytes_different == 0 {
        ExitCode::Done
    } else {
        ExitCode::Differences
    })
}

fn pair_order(common: &CommonArgs, mode: Mode, pair: &PairName, path: &Path) -> Order {
    order(
        common,
        mode,
        pair.machine.clone(),
        vec![(pair.disk.clone(), path.to_owned())],
        None,
    )
}

fn epoch_order(args: &SendArgs, machine: &str) -> Result<Order, CliError> {
    let usage = |text: String| CliError::new(ExitCode::Usage, text);
    for (index, (disk, _)) in args.disks.iter().enumerate() {
        PairName::new(machine, disk).map_err(|error| {
            usage(format!(
                "\"{}/{}\" cannot be the name of a pair: {error}",
                machine.escape_default(),
                disk.escape_default()
            ))
        })?;
        if args.disks[..index].iter().any(|(other, _)| other == disk) {
            return Err(
                usage(format!("disk {disk} is given twice")).with_hint("give --disk once for each disk")
            );
        }
    }
    if args.tags.len() > TAGS_MAX {
        return Err(usage(format!(
            "{} tags are given, a point takes {TAGS_MAX}",
            args.tags.len()
        )));
    }
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let end = EndEpoch {
        consistency: match args.consistency {
            Kind::Crash => Consistency::Crash,
            Kind::FileSystem => Consistency::FileSystem,
            Kind::Application => Consistency::Application,
        },
        time_ms: now,
        name: args.point_name.clone().unwrap_or_default(),
        tags: args.tags.clone(),
        totals: EpochTotals::default(),
    };
    Ok(order(
        &args.common,
        Mode::Epoch,
        machine.to_owned(),
        args.disks.clone(),
        Some(end),
    ))
}

fn order(
    common: &CommonArgs,
    mode: Mode,
    machine: String,
    disks: Vec<(String, PathBuf)>,
    end: Option<EndEpoch>,
) -> Order {
    Order {
        mode,
        target: common.target.with_port(DATA_PORT),
        machine,
        disks,
        end,
        state_folder: common.state_dir.clone(),
        rate: common.bandwidth_limit,
        retry_for: Duration::from_secs(common.retry_for),
        channel: if common.plain {
            Channel::Plain
        } else {
            Channel::Registered
        },
        audience: if common.json {
            Audience::Program
        } else {
            Audience::Person
        },
    }
}

fn disk_and_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((disk, path)) if !disk.is_empty() && !path.is_empty() => Ok((disk.to_owned(), path.into())),
        _ => Err("expected DISK=PATH, such as scsi0:0=/dev/vg/snap0".to_owned()),
    }
}

fn key_and_value(text: &str) -> Result<Tag, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Tag {
            key: short_text(key)?,
            value: short_text(value)?,
        }),
        _ => Err("expected KEY=VALUE, such as before=update".to_owned()),
    }
}

fn point_name(text: &str) -> Result<String, String> {
    Wanted::check_name(text)?;
    short_text(text)
}

fn short_text(text: &str) -> Result<String, String> {
    if text.len() > TAG_BYTES_MAX {
        return Err(format!("longer than {TAG_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("control characters are not allowed".to_owned());
    }
    Ok(text.to_owned())
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
