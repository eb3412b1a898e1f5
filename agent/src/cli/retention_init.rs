//! `mt-agent retention init`: sets a folder up as the retention volume, or makes one of a disk, named by its SCSI ID.
//!
//! With a disk, in this order; each step leaves something that the same command can go on from, or refuses to destroy:
//!
//! 1. The running agent says which folder is configured, and that the disk is paired with nothing.
//! 2. The disk is formatted (see `disks::format`).
//! 3. It is listed as this system's own, where other disks are closed to udev, and udev looks at it again.
//! 4. A mount unit is written, enabled and started. It names the disk by its SCSI ID: a label or UUID could be on the clone of
//!    a guest's disk as well.
//! 5. The agent puts its mark on the volume.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use mt_blockdev::scsi::ScsiId;
use serde_json::{Value, json};

use super::audit;
use super::config::scope;
use super::output::{ServiceArgs, print, print_json};
use super::ownership::give_to_server_of;
use super::screen::clean;
use crate::disks::format::{Formatted, format};
use crate::disks::inventory::DiskScope;
use crate::error::{CliError, ExitCode};
use crate::source::report::size_text;
use crate::status::client::Client;
use crate::status::machines::RetentionDoc;
use crate::status::model::PairsDoc;

/// Disks that udev may look at on an appliance.
const OWN_DISKS: &str = "/etc/master-target/own-disks";
/// There while systemd runs this machine.
const SYSTEMD: &str = "/run/systemd/system";

/// Arguments of `retention init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Format this disk, mount it at the configured folder, and use that
    #[arg(long, value_name = "SCSI-ID")]
    pub disk: Option<String>,
    /// The same ID again: what the disk holds may be lost
    #[arg(long, value_name = "SCSI-ID", requires = "disk")]
    pub overwrite: Option<String>,
    /// Where the mount unit is written
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/etc/systemd/system",
        requires = "disk"
    )]
    pub units: PathBuf,
    /// Configuration, for disks of a laboratory
    #[arg(long, value_name = "FILE", requires = "disk")]
    pub config: Option<PathBuf>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Sets the retention volume up.
///
/// # Errors
/// When the agent cannot be reached, or something is refused or fails.
pub async fn init(args: &InitArgs) -> Result<ExitCode, CliError> {
    let client = args.service.client();
    let mut answer = None;
    if let Some(disk) = &args.disk {
        answer = make_volume(args, disk, &client).await?;
    }
    if answer.is_none() {
        let volume: RetentionDoc = client.decode(client.get("/v1/retention").await?)?;
        if let Some(folder) = volume
            .folder
            .as_ref()
            .map(Path::new)
            .filter(|folder| folder.is_dir())
        {
            give_to_server_of(client.socket(), folder)
                .map_err(|error| failed(&format!("give {} to the agent's user", folder.display()), error))?;
        }
    }
    let answer = match answer {
        Some(answer) => answer,
        None => client.post("/v1/retention", &json!({})).await?,
    };
    if args.service.json {
        print_json(&answer)?;
        return Ok(ExitCode::Done);
    }
    let document: RetentionDoc = client.decode(answer)?;
    let how = if document.made {
        "is set up"
    } else {
        "was set up already"
    };
    print(&format!(
        "retention volume {} {how}: {} free of {}\n",
        document.folder.as_deref().map_or_else(|| "-".to_owned(), clean),
        size_text(document.free),
        size_text(document.total)
    ))?;
    Ok(ExitCode::Done)
}

/// Makes a volume of a disk. Answers the state of the volume when it is there already.
async fn make_volume(args: &InitArgs, disk: &str, client: &Client) -> Result<Option<Value>, CliError> {
    let id = parse(disk)?;
    let may_overwrite = match args.overwrite.as_deref().map(parse).transpose()? {
        None => false,
        Some(named) if named == id => true,
        Some(named) => {
            return Err(CliError::new(
                ExitCode::Refused,
                format!("will not format {id}: {named} is named for overwriting; nothing was written"),
            )
            .with_hint("name the same disk twice, or leave the overwriting away"));
        }
    };
    let answer = client.get("/v1/retention").await?;
    let volume: RetentionDoc = client.decode(answer.clone())?;
    let Some(folder) = volume.folder.as_ref().map(PathBuf::from) else {
        return Err(CliError::new(
            ExitCode::Refused,
            "no folder is configured for recovery points; nothing was written",
        )
        .with_hint("set [retention] folder in the configuration and start the agent anew"));
    };
    let unit = args.units.join(unit_name(&folder));
    if volume.id.is_some() {
        let ours = std::fs::read_to_string(&unit).is_ok_and(|text| text.contains(&id.to_string()));
        if ours {
            return Ok(Some(answer));
        }
        return Err(CliError::new(
            ExitCode::Refused,
            format!(
                "will not format {id}: {} is the retention volume already; nothing was written",
                folder.display()
            ),
        )
        .with_hint(
            "to begin with a new one, remove the pairs, stop the agent and unmount the old one first",
        ));
    }
    let pairs: PairsDoc = client.decode(client.get("/v1/pairs").await?)?;
    if let Some(pair) = pairs.pairs.iter().find(|pair| pair.scsi_id == id) {
        return Err(CliError::new(
            ExitCode::Refused,
            format!(
                "will not format {id}: it is the target disk of pair {}; nothing was written",
                clean(&pair.pair)
            ),
        )
        .with_hint("attach another disk for the recovery points"));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::new(
            ExitCode::Refused,
            format!("will not format {id}: only root may; nothing was written"),
        )
        .with_hint("run it as root, for example with sudo"));
    }
    check_mount_point(&folder)?;
    let scope = scope(args.config.as_deref())?;
    let overwrite = if may_overwrite { " with what it holds" } else { "" };
    let act = format!(
        "retention init: format disk {id}{overwrite} and mount it at {}",
        folder.display()
    );
    // Before, too: whatever comes of it, the log has that it was begun.
    audit::note(client, &act, "begun").await?;
    let outcome = format_and_mount(args, id, may_overwrite, scope, &folder, &unit).await;
    let result = match &outcome {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("refused or failed: {}", error.message),
    };
    audit::note(client, &act, &result).await?;
    outcome.map(|()| None)
}

async fn format_and_mount(
    args: &InitArgs,
    id: ScsiId,
    may_overwrite: bool,
    scope: DiskScope,
    folder: &Path,
    unit: &Path,
) -> Result<(), CliError> {
    let made = tokio::task::spawn_blocking(move || format(id, may_overwrite, &scope))
        .await
        .map_err(|error| CliError::new(ExitCode::Unexpected, format!("formatting failed: {error}")))??;
    if !args.service.json {
        print(&format!(
            "disk {id} ({}) is formatted: XFS, {}\n",
            made.kernel_name,
            size_text(made.size)
        ))?;
    }
    mount(id, &made, folder, unit).map_err(|error| {
        error.with_hint(format!(
            "the disk is formatted and not mounted; mend that, then: mt-agent retention init --disk {id} --overwrite {id}"
        ))
    })
}

fn parse(text: &str) -> Result<ScsiId, CliError> {
    ScsiId::parse(text).map_err(|error| {
        CliError::new(ExitCode::Usage, clean(&error.to_string()))
            .with_hint("take it from \"mt-agent disks list\"")
    })
}

/// A mount must hide nothing.
fn check_mount_point(folder: &Path) -> Result<(), CliError> {
    let refuse = |what: String| {
        CliError::new(
            ExitCode::Refused,
            format!(
                "will not mount at {}: {what}; nothing was written",
                folder.display()
            ),
        )
        .with_hint("empty the folder, or set another one in [retention] folder")
    };
    match std::fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(refuse("it is not empty".to_owned())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// Name of the mount unit of a folder, as `systemd-escape --path --suffix=mount` has it.
fn unit_name(folder: &Path) -> String {
    let mut name = String::new();
    for part in folder.components() {
        let std::path::Component::Normal(part) = part else {
            continue;
        };
        if !name.is_empty() {
            name.push('-');
        }
        for byte in part.as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' => name.push(char::from(*byte)),
                b'.' if !name.is_empty() => name.push('.'),
                other => name.push_str(&format!("\\x{other:02x}")),
            }
        }
    }
    name + ".mount"
}

/// The mount unit.
fn unit_text(id: ScsiId, what: &str, folder: &Path) -> String {
    // In a unit a percent sign begins a specifier, and a space ends a value.
    let quoted = folder.display().to_string().replace('%', "%%");
    format!(
        "# The disk {id} keeps the recovery points of the master target. Written by \"mt-agent retention init\".\n\
         [Unit]\n\
         Description=Retention volume of the master target\n\
         Before=master-target.service\n\
         \n\
         [Mount]\n\
         What={}\n\
         Where={quoted}\n\
         Type=xfs\n\
         Options=noatime,nodev,nosuid,noexec\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        what.replace('%', "%%")
    )
}

fn failed(attempted: &str, found: impl std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Unexpected, format!("cannot {attempted}: {found}"))
}

fn mount(id: ScsiId, made: &Formatted, folder: &Path, unit: &Path) -> Result<(), CliError> {
    own(id, Path::new(OWN_DISKS)).map_err(|error| failed(&format!("list {id} in {OWN_DISKS}"), error))?;
    let devnode = made.devnode.display().to_string();
    // udev makes this name of what the disk says of itself, through rules that are closed for all disks but our own.
    let link = id
        .to_string()
        .strip_prefix("naa.")
        .map(|digits| format!("/dev/disk/by-id/wwn-0x{digits}"));
    let runs = Path::new(SYSTEMD).is_dir();
    let what = match link.filter(|_| !made.lab) {
        None => devnode.clone(),
        Some(link) => {
            run(
                "udevadm",
                &["trigger", "--action=change", "--name-match", &devnode],
            )?;
            run("udevadm", &["settle", "--timeout=30", "--exit-if-exists", &link])?;
            if runs && std::fs::canonicalize(&link).ok() != std::fs::canonicalize(&devnode).ok() {
                return Err(failed(
                    &format!("find disk {id} as {link}"),
                    "udev made no such link to it",
                ));
            }
            link
        }
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(&format!("make {}", folder.display()), error))?;
    write(unit, &unit_text(id, &what, folder))
        .map_err(|error| failed(&format!("write {}", unit.display()), error))?;
    if runs {
        let name = unit.file_name().unwrap_or_default().to_string_lossy();
        run("systemctl", &["daemon-reload"])?;
        run("systemctl", &["enable", "--now", "--", &name])
    } else {
        run(
            "mount",
            &[
                "-t",
                "xfs",
                "-o",
                "noatime,nodev,nosuid,noexec",
                "--",
                &devnode,
                &folder.display().to_string(),
            ],
        )
    }
}

/// Adds a disk to the list of this system's own, where there is such a list.
fn own(id: ScsiId, list: &Path) -> std::io::Result<()> {
    let text = match std::fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let id = id.to_string();
    if text
        .lines()
        .any(|line| line.split_whitespace().next() == Some(&id))
    {
        return Ok(());
    }
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    write(list, &format!("{text}{end}{id}\n"))
}

/// Puts a file in place as a whole, durably.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn run(program: &str, args: &[&str]) -> Result<(), CliError> {
    let shown = || format!("run \"{program} {}\"", args.join(" "));
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| failed(&shown(), error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(&shown(), String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "naa.6000c29a71e02b4c9d118e55037faa01";

    #[test]
    fn units_are_named_as_systemd_wants_it() {
        for (folder, name) in [
            ("/retention", "retention.mount"),
            ("/srv/mt-points", "srv-mt\\x2dpoints.mount"),
            ("/srv//points/", "srv-points.mount"),
            ("/.hidden", "\\x2ehidden.mount"),
            ("/a/.b", "a-.b.mount"),
            ("/a b", "a\\x20b.mount"),
        ] {
            assert_eq!(unit_name(Path::new(folder)), name);
        }
    }

    #[test]
    fn an_own_disk_is_listed_once() {
        let scratch = tempfile::tempdir().unwrap();
        let list = scratch.path().join("own-disks");
        let id = ScsiId::parse(ID).unwrap();
        own(id, &list).unwrap();
        assert!(!list.exists(), "where no disk is closed, none has to be opened");
        std::fs::write(&list, "# comment\nnaa.6000c29000000001").unwrap();
        own(id, &list).unwrap();
        own(id, &list).unwrap();
        let text = std::fs::read_to_string(&list).unwrap();
        assert_eq!(text, format!("# comment\nnaa.6000c29000000001\n{ID}\n"));
    }

    #[test]
    fn a_mount_hides_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        check_mount_point(scratch.path()).unwrap();
        check_mount_point(&scratch.path().join("none")).unwrap();
        std::fs::write(scratch.path().join("file"), "x").unwrap();
        let error = check_mount_point(scratch.path()).unwrap_err();
        assert!(error.message.contains("not empty"), "{}", error.message);
        let error = check_mount_point(&scratch.path().join("file")).unwrap_err();
        assert!(error.message.contains("nothing was written"), "{}", error.message);
    }
}
