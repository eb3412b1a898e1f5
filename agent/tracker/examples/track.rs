//! Follows the changes of disks by hand: `track [--cost] NAME...`, as root, with kernel names as in `/sys/block`.
//!
//! Prints once a second how much has changed since the last line and whether that can be believed. `--cost` prints the
//! time spent in each program too; for that, write 1 to `/proc/sys/kernel/bpf_stats_enabled`.

use std::error::Error;
use std::time::Duration;

use mt_blockdev::sysfs::Sysfs;
use mt_tracker::chunks::CHUNK_BYTES_DEFAULT;
use mt_tracker::tracker::{Options, Tracker};

fn main() -> Result<(), Box<dyn Error>> {
    let (options, names): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    if names.is_empty() {
        return Err("usage: track [--cost] NAME...".into());
    }
    let mut tracker =
        Tracker::start(&Options::default()).map_err(|error| format!("{error}\nhint: {}", error.hint()))?;
    println!("kernel {}: {:?}", tracker.release(), tracker.features());
    let mut disks = Vec::new();
    for name in names {
        let disk = Sysfs::default()
            .disk(&name)
            .ok_or_else(|| format!("there is no disk {name}"))?;
        tracker.add(&name, disk.number, CHUNK_BYTES_DEFAULT)?;
        disks.push((name, disk.number));
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
        for (name, number) in &disks {
            let harvest = tracker.harvest(*number)?;
            let verdict = tracker.verdict(*number)?;
            println!(
                "{name}: {} chunks, {} under way, {verdict:?}",
                harvest.changed.len(),
                harvest.under_way
            );
        }
        if options.iter().any(|option| option == "--cost") {
            for (program, runs, ns) in tracker.cost()? {
                println!(
                    "{program}: {runs} runs, {} ns each",
                    ns.checked_div(runs).unwrap_or(0)
                );
            }
        }
    }
}
