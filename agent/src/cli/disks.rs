//! `mt-agent disks`: what disks this machine has, and which of them may be targets.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mt_blockdev::scsi::ScsiId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::disks::facts::{DiskFacts, Identity, Inventory};
use crate::disks::inventory::{self, DiskScope};
use crate::error::{CliError, ExitCode};
use crate::status::client::Client;
use crate::status::model::PairsDoc;

/// Version of the JSON document.
const SCHEMA: u32 = 1;
/// How long a running agent may take to name its pairs: the list needs no agent.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// What is said of a disk that holds nothing.
const EMPTY: &str = "empty";

/// Arguments of `mt-agent disks list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
    /// Take lab disks and state folder from this configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The JSON document of `disks list --json` and of `GET /v1/disks`.
#[derive(Debug, Serialize, ToSchema)]
pub struct DisksDocument<'a> {
    /// Version of this document.
    pub schema: u32,
    /// The disks and what limits the list.
    #[serde(flatten)]
    pub inventory: &'a Inventory,
}

impl<'a> DisksDocument<'a> {
    /// The document of an inventory.
    #[must_use]
    pub fn new(inventory: &'a Inventory) -> Self {
        Self {
            schema: SCHEMA,
            inventory,
        }
    }
}

/// Lists the disks of this machine and the lab disks of the scope. Reads only; needs no service.
///
/// # Errors
/// When the machine cannot be read, or the list cannot be printed.
pub fn list(args: &ListArgs, scope: &DiskScope, paired: &[ScsiId]) -> Result<(), CliError> {
    let inventory = inventory::gather(scope)?;
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&DisksDocument::new(&inventory)).map_err(|err| {
            CliError::new(
                ExitCode::Unexpected,
                format!("cannot write the list as JSON: {err}"),
            )
        })?;
        text.push('\n');
        text
    } else {
        table(&inventory, paired)
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads may stop reading: `disks list | head`.
        Err(err) if err.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::new(
            ExitCode::Unexpected,
            format!("cannot print the list: {err}"),
        )),
        _ => Ok(()),
    }
}

/// The disks that a running agent has pairs of; none where no agent answers at once.
pub async fn paired() -> Vec<ScsiId> {
    let client = Client::new(None);
    let asked = tokio::time::timeout(ANSWER_TIME, client.get("/v1/pairs")).await;
    let document = match asked {
        Ok(Ok(answer)) => client.decode::<PairsDoc>(answer).ok(),
        _ => None,
    };
    document.map_or_else(Vec::new, |document| {
        document.pairs.iter().map(|pair| pair.scsi_id).collect()
    })
}

/// The table for people: one line per disk, what speaks against it below, the remedy below that. Of the disks in `paired` it is
/// said that they are targets already.
#[must_use]
pub fn table(inventory: &Inventory, paired: &[ScsiId]) -> String {
    let mut out = String::new();
    let head = ["DISK", "SCSI ID", "SIZE", "H:C:T:L", "MODEL", "HOLDS", "TARGET"].map(str::to_owned);
    let rows: Vec<[String; 7]> = inventory.disks.iter().map(|disk| row(disk, paired)).collect();
    let width = |column: usize| {
        rows.iter()
            .chain(std::iter::once(&head))
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |out: &mut String, row: &[String; 7]| {
        let mut text = String::new();
        for (column, cell) in row.iter().enumerate() {
            // Sizes are compared by eye, so they stand on the right.
            let width = widths[column];
            let _ = if column == 2 {
                write!(text, "{cell:>width$}  ")
            } else {
                write!(text, "{cell:<width$}  ")
            };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    if rows.is_empty() {
        out.push_str("no disks\n");
    } else {
        line(&mut out, &head);
    }
    for (disk, row) in inventory.disks.iter().zip(&rows) {
        line(&mut out, row);
        for objection in &disk.objections {
            let _ = writeln!(out, "  - {}", objection.message);
            let _ = writeln!(out, "    hint: {}", objection.hint);
        }
    }
    for warning in &inventory.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    let targets = inventory.disks.iter().filter(|disk| disk.may_be_target).count();
    let count = match inventory.disks.len() {
        1 => "1 disk".to_owned(),
        count => format!("{count} disks"),
    };
    let _ = writeln!(out, "{count}, targets possible: {targets}");
    out
}

/// Whether a disk may be a target, in a word.
fn target(disk: &DiskFacts, paired: &[ScsiId]) -> &'static str {
    match &disk.identity {
        Identity::Known { scsi_id } if paired.contains(scsi_id) => "paired",
        _ if !disk.may_be_target => "no",
        // "pair add" refuses it as it is.
        _ if disk.content.summary() != EMPTY => "with --overwrite",
        _ => "yes",
    }
}

fn row(disk: &DiskFacts, paired: &[ScsiId]) -> [String; 7] {
    let id = match &disk.identity {
        Identity::Known { scsi_id } => scsi_id.to_string(),
        // A question mark: it is shown, and not relied on.
        Identity::Conflict {
            scsi_id: Some(id), ..
        }
        | Identity::Unconfirmed {
            scsi_id: Some(id), ..
        } => {
            format!("{id}?")
        }
        Identity::Conflict { .. } | Identity::Unconfirmed { .. } => "?".to_owned(),
        Identity::Missing { .. } => "-".to_owned(),
    };
    let model: Vec<&str> = [disk.vendor.as_deref(), disk.model.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    [
        disk.kernel_name.clone(),
        id,
        size(disk.size),
        disk.hctl.clone().unwrap_or_else(|| "-".to_owned()),
        if model.is_empty() {
            "-".to_owned()
        } else {
            model.join(" ")
        },
        disk.content.summary(),
        target(disk, paired).to_owned(),
    ]
}

/// A size for people: exact where it is a whole number of a unit, else with one decimal, rounded down.
fn size(bytes: u64) -> String {
    let units = [
        ("TiB", 1_u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    for (unit, one) in units {
        if bytes >= one {
            let tenths = bytes % one * 10 / one;
            return if tenths == 0 {
                format!("{} {unit}", bytes / one)
            } else {
                format!("{}.{tenths} {unit}", bytes / one)
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::facts::testing::disk;
    use crate::disks::facts::{Content, DiskUse, UseKind};
    use crate::disks::gate;

    fn inventory() -> Inventory {
        let mut appliance = disk("sda", 9);
        appliance.uses = vec![DiskUse {
            kind: UseKind::Appliance,
            what: "sda2 holds /".to_owned(),
        }];
        let mut nameless = disk("sdaa", 2);
        nameless.identity = Identity::Missing {
            why: "VPD page 0x83 is empty".to_owned(),
        };
        let mut inventory = Inventory {
            disks: vec![appliance, disk("sdb", 1), nameless],
            warnings: vec!["the mounts of 3 processes cannot be seen".to_owned()],
        };
        gate::assess(&mut inventory);
        inventory
    }

    #[test]
    fn the_table_names_every_disk_what_speaks_against_it_and_the_remedy() {
        let expected = "\
DISK  SCSI ID                                 SIZE  H:C:T:L  MODEL                HOLDS  TARGET
sda   naa.6000c29a71e02b4c9d118e55037faa09  20 GiB  2:0:9:0  VMware Virtual disk  empty  no
  - target disk naa.6000c29a71e02b4c9d118e55037faa09 (sda) is the appliance's own: sda2 holds /
    hint: choose another disk: run \"mt-agent disks list\"
sdb   naa.6000c29a71e02b4c9d118e55037faa01  20 GiB  2:0:1:0  VMware Virtual disk  empty  yes
sdaa  -                                     20 GiB  2:0:2:0  VMware Virtual disk  empty  no
  - disk sdaa has no SCSI ID: VPD page 0x83 is empty
    hint: set disk.EnableUUID=TRUE for this virtual machine and power-cycle it
warning: the mounts of 3 processes cannot be seen
3 disks, targets possible: 1
";
        assert_eq!(table(&inventory(), &[]), expected);
        assert_eq!(
            table(&Inventory::default(), &[]),
            "no disks\n0 disks, targets possible: 0\n"
        );
    }

    #[test]
    fn a_disk_that_is_taken_or_filled_is_not_just_a_target() {
        let mut filled = disk("sdc", 3);
        filled.content = Content::Unreadable {
            why: "EIO".to_owned(),
        };
        let mut inventory = Inventory {
            disks: vec![disk("sdb", 1), filled, disk("sdd", 4)],
            warnings: Vec::new(),
        };
        gate::assess(&mut inventory);
        let ids = [crate::disks::facts::testing::id(1)];
        let words: Vec<&str> = inventory.disks.iter().map(|disk| target(disk, &ids)).collect();
        assert_eq!(words, ["paired", "with --overwrite", "yes"]);
    }

    #[test]
    fn the_json_document_has_a_schema_and_the_reasons() {
        let inventory = inventory();
        let json = serde_json::to_value(DisksDocument::new(&inventory)).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["disks"].as_array().unwrap().len(), 3);
        assert_eq!(
            json["disks"][1]["identity"]["scsi_id"],
            "naa.6000c29a71e02b4c9d118e55037faa01"
        );
        assert_eq!(json["disks"][1]["may_be_target"], true);
        assert_eq!(json["disks"][1]["number"], "8:16");
        assert_eq!(json["disks"][2]["identity"]["state"], "missing");
        assert_eq!(json["disks"][2]["objections"][0]["kind"], "no_scsi_id");
        assert_eq!(json["disks"][0]["objections"][0]["kind"], "appliance");
        assert_eq!(json["disks"][0]["content"]["state"], "probed");
    }

    #[test]
    fn sizes_are_short_and_never_too_large() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (20 << 30, "20 GiB"),
            ((20 << 30) + (1 << 29), "20.5 GiB"),
            ((1 << 40) - 1, "1023.9 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
