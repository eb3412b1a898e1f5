//! Measures the recovery points: how fast epochs are acknowledged and applied, how fast disks are rolled, and what the real agent takes
//! for it in memory and time. Every figure is shown with its goal, and whether it was met.
//!
//! What has a peer is measured in turns with it, round by round, and the ratio is the median of the rounds: the same blocks
//! written in place by as many threads, and fio where it is installed. Times of commands are those of the real commands.

mod big;
mod process;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

/// Measures the retention store and the target that keeps recovery points.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of each measurement that has a peer
    #[arg(long, default_value_t = 24)]
    rounds: usize,
    /// Size of the measured disk in MiB
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// Segments of 64 MiB of the store that is opened; 1600 are 100 GiB, of
    /// which 3 GiB are written
    #[arg(long, default_value_t = 1600)]
    segments: u64,
    /// Points of that store
    #[arg(long, default_value_t = 10_000)]
    points: u64,
    /// Machines that send at once
    #[arg(long, default_value_t = 16)]
    machines: u32,
    /// Size of the disk of each in MiB
    #[arg(long, default_value_t = 256)]
    machine_size: u64,
    /// Folder for disks and stores
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Which way a goal looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Goal {
    AtLeast,
    AtMost,
}

/// A figure and its goal.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Goal,
    limit: f64,
    /// The value against its limit: 1 and more is met, whichever way the goal looks.
    ratio: f64,
    met: bool,
}

impl Row {
    fn at_least(name: impl Into<String>, value: f64, limit: f64, unit: &'static str) -> Self {
        Self::new(name.into(), value, unit, Goal::AtLeast, limit, value / limit)
    }

    fn at_most(name: impl Into<String>, value: f64, limit: f64, unit: &'static str) -> Self {
        Self::new(name.into(), value, unit, Goal::AtMost, limit, limit / value)
    }

    fn new(name: String, value: f64, unit: &'static str, goal: Goal, limit: f64, ratio: f64) -> Self {
        Self {
            name,
            value,
            unit,
            goal,
            limit,
            ratio,
            met: ratio >= 1.0,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.rounds < 6 || args.size < 64 || args.points < 10 || args.machines == 0 || args.machine_size == 0 {
        eprintln!(
            "error: that is too little to measure\nhint: 6 rounds, a disk of 64 MiB and 10 points are the least"
        );
        return ExitCode::from(2);
    }
    let work = tempfile::Builder::new()
        .prefix("mt-bench-retention-")
        .tempdir_in(&args.folder)
        .expect("the folder can be written");
    let mut rows = store::measure(&work.path().join("store"), args.size, args.rounds);
    rows.push(process::memory(args.machines, args.machine_size));
    rows.extend(process::large(args.segments, args.points));
    if args.json {
        println!("{}", serde_json::json!({ "schema": 1, "rows": rows }));
        return ExitCode::SUCCESS;
    }
    for row in &rows {
        println!(
            "goal {:6}  {:72} {:8.2} {}, {} {}",
            if row.met { "met" } else { "MISSED" },
            row.name,
            row.value,
            row.unit,
            match row.goal {
                Goal::AtLeast => "at least",
                Goal::AtMost => "at most",
            },
            row.limit
        );
    }
    ExitCode::SUCCESS
}
