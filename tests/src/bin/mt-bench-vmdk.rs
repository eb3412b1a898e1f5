//! Measures the writing of a streamOptimized VMDK beside qemu-img, in one run.
//!
//! The disk is a file system of real files, as many as asked for, taken from this machine's `/usr`; the rest are holes.
//! The tools take turns: run 1 of each, run 2 of each, and so on. Before each run the page cache holds the disk, so that
//! what is measured is the writer. Each VMDK is compared with the disk by qemu-img afterwards.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use mt_tests::disks::{run, text};
use mt_tests::measure::{Cost, Extent, Sampler, cpu_of_children, median, start};
use serde::Serialize;

const MIB: u64 = 1 << 20;

/// Compares mt-image with qemu-img.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    extent: Extent,
    /// Data on it in MiB
    #[arg(long, default_value_t = 360)]
    data: u64,
    /// The image builder's binary, built with --release
    #[arg(long)]
    image: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Tool {
    MtImage,
    QemuImg,
}

const TOOLS: [Tool; 2] = [Tool::MtImage, Tool::QemuImg];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::MtImage => "mt-image, level 6",
            Self::QemuImg => "qemu-img convert",
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    tool: Tool,
    /// Size of the VMDK, bytes.
    bytes: u64,
    runs: Vec<Cost>,
    median: Cost,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let scratch = match tempfile::tempdir_in(&args.extent.folder) {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!(
                "error: cannot write to {}: {error}\nhint: name another folder with --folder",
                args.extent.folder.display()
            );
            return ExitCode::from(2);
        }
    };
    if !args.image.is_file() || args.extent.runs == 0 {
        eprintln!(
            "error: there is no program {}, or no run is wanted\nhint: scripts/bench builds it; --runs is at least 1",
            args.image.display()
        );
        return ExitCode::from(2);
    }
    let disk = scratch.path().join("disk.img");
    let data = make_disk(&disk, scratch.path(), &args);
    let mut costs = [Vec::new(), Vec::new()];
    let mut sizes = [0; 2];
    for number in 1..=args.extent.runs {
        for (index, tool) in TOOLS.into_iter().enumerate() {
            let out = scratch.path().join("disk.vmdk");
            let cost = once(tool, &args.image, &disk, &out);
            eprintln!(
                "run {number} of {}, {:20} {:6.2} s wall {:6.2} s CPU {:5.0} MiB",
                args.extent.runs,
                tool.name(),
                cost.wall,
                cost.cpu,
                cost.memory
            );
            run("qemu-img", &["compare", text(&disk), text(&out)]);
            sizes[index] = std::fs::metadata(&out).expect("it was just compared").len();
            std::fs::remove_file(&out).expect("it was just compared");
            costs[index].push(cost);
        }
    }
    let rows: Vec<Row> = TOOLS
        .into_iter()
        .zip(costs)
        .zip(sizes)
        .map(|((tool, runs), bytes)| Row {
            tool,
            bytes,
            median: median(&runs),
            runs,
        })
        .collect();
    if args.extent.json {
        println!(
            "{}",
            serde_json::json!({ "schema": 1, "size": args.extent.size * MIB, "data": data, "rows": rows })
        );
    } else {
        print(&rows, args.extent.size, data / MIB);
    }
    ExitCode::SUCCESS
}

/// Makes the disk, and answers how many bytes of it are allocated.
fn make_disk(disk: &Path, scratch: &Path, args: &Args) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let tree = scratch.join("tree");
    std::fs::create_dir(&tree).expect("the scratch folder can be written");
    let mut left = args.data * MIB;
    let mut folders = vec![
        PathBuf::from("/usr/lib"),
        PathBuf::from("/usr/bin"),
        PathBuf::from("/usr/share"),
    ];
    let mut number = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && left > 0 {
                let Ok(meta) = entry.metadata() else { continue };
                // As it lies on the disk, in whole blocks.
                let taken = meta.len().next_multiple_of(4096);
                if taken == 0 || taken > left {
                    continue;
                }
                number += 1;
                if std::fs::copy(entry.path(), tree.join(number.to_string())).is_ok() {
                    left -= taken;
                }
            }
        }
    }
    File::create(disk)
        .and_then(|file| file.set_len(args.extent.size * MIB))
        .expect("the disk can be made");
    run("mkfs.ext4", &["-q", "-F", "-d", text(&tree), text(disk)]);
    std::fs::remove_dir_all(&tree).expect("it was made here");
    std::fs::metadata(disk).expect("it was just made").blocks() * 512
}

fn once(tool: Tool, image: &Path, disk: &Path, out: &Path) -> Cost {
    std::io::copy(&mut File::open(disk).expect("it is there"), &mut std::io::sink()).expect("it can be read");
    let mut command;
    match tool {
        Tool::MtImage => {
            command = Command::new(image);
            command.args(["vmdk", "write", text(disk), text(out)]);
        }
        Tool::QemuImg => {
            command = Command::new("qemu-img");
            command.args([
                "convert",
                "-f",
                "raw",
                "-O",
                "vmdk",
                "-o",
                "subformat=streamOptimized",
            ]);
            command.args([text(disk), text(out)]);
        }
    }
    let before = cpu_of_children();
    let started = Instant::now();
    let mut child = start(command);
    let sampler = Sampler::start(&[child.id()]);
    let status = child.wait().expect("a child can be waited for");
    let wall = started.elapsed().as_secs_f64();
    assert!(status.success(), "{} failed: {status}", tool.name());
    let memory = sampler.stop()[0];
    Cost {
        wall,
        cpu: cpu_of_children() - before,
        memory,
        server_memory: 0.0,
    }
}

fn print(rows: &[Row], size: u64, data: u64) {
    println!("\na disk of {size} MiB with {data} MiB of data to a VMDK");
    println!(
        "{:22} {:>8} {:>8} {:>8} {:>12}",
        "", "wall s", "CPU s", "MiB", "bytes"
    );
    for row in rows {
        let cost = row.median;
        println!(
            "{:22} {:8.2} {:8.2} {:8.0} {:12}",
            row.tool.name(),
            cost.wall,
            cost.cpu,
            cost.memory,
            row.bytes
        );
    }
    let [ours, theirs] = rows else { return };
    let verdict = |good: bool| if good { "met" } else { "MISSED" };
    let speed = theirs.median.wall / ours.median.wall;
    println!(
        "goal {}: speed against qemu-img: {speed:.2}, at least 3.00",
        verdict(speed >= 3.0)
    );
    #[expect(clippy::cast_precision_loss, reason = "a ratio of sizes far below 2^53")]
    let bytes = ours.bytes as f64 / theirs.bytes as f64;
    println!(
        "goal {}: size against qemu-img: {bytes:.3}, at most 1.020",
        verdict(bytes <= 1.02)
    );
    let memory = ours.median.memory;
    println!(
        "goal {}: resident memory: {memory:.0} MiB, at most 64 MiB",
        verdict(memory <= 64.0)
    );
}
