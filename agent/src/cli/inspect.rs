//! `mt-agent retention inspect`: what lies in a store, for an engineer. Only reads, and needs no agent.

use std::fmt::Write as _;

use clap::Args;
use mt_retention::files::FileStorage;
use mt_retention::inspect::{Depth, ExtentView, StoreView, inspect as inspect_store};

use super::output::{print, print_json};
use super::screen::clean;
use super::store::{VolumeArgs, store_error};
use crate::error::{CliError, ExitCode};
use crate::machines::error::MachineError;
use crate::source::report::size_text;
use crate::status::model::SCHEMA;

/// Arguments of `retention inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Name of the machine
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Only this segment, by its number
    #[arg(long, value_name = "NUMBER")]
    pub segment: Option<u64>,
    /// Show the records of segments
    #[arg(long)]
    pub records: bool,
    /// Show every extent of records and footers, too
    #[arg(long)]
    pub extents: bool,
    /// Which volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// Shows what lies in a store.
///
/// # Errors
/// When the volume or the store cannot be read.
pub async fn inspect(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let place = args.volume.place().await?;
    let folder = place.folder_of(&args.machine)?;
    let depth = match (args.extents, args.records) {
        (true, _) => Depth::Extents,
        (false, true) => Depth::Records,
        (false, false) => Depth::Segments,
    };
    let storage = FileStorage::open_read_only(&folder).map_err(|source| MachineError::Io {
        attempted: "open",
        path: folder.clone(),
        source,
    })?;
    let view =
        inspect_store(&storage, depth, args.segment).map_err(|source| store_error(&args.machine, source))?;
    if args.segment.is_some() && view.segments.is_empty() {
        return Err(CliError::new(
            ExitCode::Usage,
            format!(
                "machine {} has no segment {}",
                clean(&args.machine),
                args.segment.unwrap_or_default()
            ),
        )
        .with_hint("leave --segment out to see all"));
    }
    if args.volume.service.json {
        let mut document = serde_json::to_value(&view).unwrap_or_default();
        document["schema"] = SCHEMA.into();
        document["machine"] = args.machine.clone().into();
        document["folder"] = folder.display().to_string().into();
        print_json(&document)?;
    } else {
        print(&view_text(&view))?;
    }
    Ok(ExitCode::Done)
}

fn view_text(view: &StoreView) -> String {
    let mut text = String::new();
    for found in &view.superblocks {
        match &found.fault {
            Some(fault) => {
                let _ = writeln!(text, "{}  {fault}", found.object);
            }
            None => {
                let _ = writeln!(
                    text,
                    "{}  store {}  sequence {}  generation {}  applied {}  committed {}  segments of {}",
                    found.object,
                    found.store,
                    found.sequence,
                    found.generation,
                    found.applied,
                    found.committed,
                    size_text(found.segment_size)
                );
                for disk in &found.disks {
                    let _ = writeln!(text, "    {}  {} bytes", clean(&disk.id), disk.size);
                }
            }
        }
    }
    for segment in &view.segments {
        let _ = writeln!(text, "{}  {}", segment.object, size_text(segment.bytes));
        match (&segment.header, &segment.header_fault) {
            (Some(header), _) => {
                let _ = writeln!(
                    text,
                    "    header   {} bytes: generation {}, committed {}, applied {}, {} points, {} segments",
                    header.bytes,
                    header.generation,
                    header.committed,
                    header.applied,
                    header.points,
                    header.segments
                );
            }
            (None, fault) => {
                let _ = writeln!(text, "    header   {}", fault.as_deref().unwrap_or("-"));
            }
        }
        match (&segment.trailer, &segment.trailer_fault) {
            (Some(trailer), _) => {
                let _ = writeln!(
                    text,
                    "    footer   at 0x{:x}: {} extents, epochs {} to {}, {} of data{}",
                    trailer.footer,
                    trailer.extents,
                    trailer.first_epoch,
                    trailer.last_epoch,
                    size_text(trailer.data_bytes),
                    trailer
                        .footer_fault
                        .as_ref()
                        .map_or_else(String::new, |fault| format!("; {fault}"))
                );
            }
            (None, Some(fault)) => {
                let _ = writeln!(text, "    footer   {fault}");
            }
            (None, None) => {}
        }
        for extent in &segment.footer {
            let _ = writeln!(text, "      {}", extent_text(extent));
        }
        for record in &segment.records {
            let _ = writeln!(
                text,
                "    0x{:08x}  {:8}  epoch {}, {} extents, {} + {} bytes",
                record.offset,
                record.kind,
                record.epoch,
                record.entries,
                record.head_bytes,
                record.data_bytes
            );
            for extent in &record.extents {
                let _ = writeln!(text, "      {}", extent_text(extent));
            }
        }
        if let Some(end) = &segment.end {
            let _ = writeln!(text, "    end      {end}");
        }
    }
    text
}

fn extent_text(extent: &ExtentView) -> String {
    format!(
        "disk {}  0x{:x}+0x{:x}  {} of epoch {}{}{}",
        extent.disk,
        extent.offset,
        extent.len,
        extent.image,
        extent.epoch,
        if extent.zero {
            ", zeros".to_owned()
        } else {
            format!(", data at 0x{:x}", extent.data)
        },
        if extent.relocated { ", relocated" } else { "" }
    )
}
