//! The real target: what it takes in memory, and how long one waits for it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mt_tests::agent::{Running, wait_until};
use mt_tests::data::{Fill, MIB, change_blocks, fill};
use mt_tests::lab::Lab;

use crate::{Row, big, median};

/// How often a command is timed.
const TIMES: usize = 9;
/// Size of the disk of the large store, bytes; a hole.
const LARGE_DISK: u64 = 1 << 40;
const MACHINE: &str = "db01";

/// Largest resident memory of a process since its start, MiB.
fn largest(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.expect("the kernel tells it") / 1024.0
}

/// Machines of one disk each send all of it, and then a twentieth of it anew, all at once and over mutual TLS.
pub fn memory(machines: u32, mebibytes: u64) -> Row {
    let size = mebibytes * MIB;
    let mut lab = Lab::secure();
    let names: Vec<String> = (0..machines).map(|number| format!("m{number:02}")).collect();
    let mut sources: Vec<PathBuf> = Vec::new();
    let mut ids = Vec::new();
    for (name, seed) in names.iter().zip(0..) {
        let source = lab.scratch.sparse(&format!("source-{name}.img"), size);
        fill(&source, size, Fill::HalfZero, seed);
        sources.push(source);
        ids.push(lab.add_disk(&lab.scratch.sparse(&format!("target-{name}.img"), size)));
    }
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    for (name, id) in names.iter().zip(&ids) {
        lab.pair(&format!("{name}/scsi0:0"), id);
    }
    let passphrase = lab.passphrase();
    let file = lab.passphrase_file("passphrase", &passphrase);
    lab.register_at(lab.control(), "bench", &lab.source_state(), &file, &[])
        .expect_done();
    let may = names.iter().flat_map(|name| ["--as", name.as_str()]);
    let approve: Vec<&str> = ["machines", "approve", "bench"].into_iter().chain(may).collect();
    lab.verb(&approve).expect_done();
    for round in 0..2_usize {
        // One after the other is let in: the door holds back many strangers of one address. Then all of them send.
        let mut sending: Vec<Running> = Vec::new();
        for (name, source) in names.iter().zip(&sources) {
            let disks: [(&str, &Path); 1] = [("scsi0:0", source)];
            let command = lab.epoch_command(lab.address, name, &disks, &[]);
            sending.push(Running::start(command, lab.scratch.path()));
            wait_until("the session", || {
                let jobs = lab.verb(&["jobs", "list", "--json"]).expect_done().json();
                let jobs = jobs["jobs"].as_array().expect("jobs are a list").clone();
                let mut own = jobs.iter().filter(|job| job["pair"] == name.as_str());
                own.nth(round).is_some()
            });
        }
        for mut sending in sending {
            while sending.is_running() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            sending.wait().expect_done();
        }
        for (source, seed) in sources.iter().zip(100 * (round as u64 + 1)..) {
            change_blocks(source, size, 4096, size / 4096 / 20, seed);
        }
    }
    let value = largest(lab.target().pid());
    lab.stop();
    let name = format!("memory of the target while {machines} machines send at once");
    Row::at_most(name, value, 192.0, "MiB")
}

/// A store as large as one grows in months: opened by the agent, and its points listed.
pub fn large(segments: u64, points: u64) -> Vec<Row> {
    let mut lab = Lab::new();
    let target = lab.scratch.sparse("target.img", LARGE_DISK);
    let id = lab.add_disk(&target);
    lab.keep_points_in(&lab.scratch.join("retention"));
    lab.start();
    lab.verb(&["retention", "init"]).expect_done();
    lab.pair(&format!("{MACHINE}/scsi0:0"), &id);
    lab.verb(&["policy", MACHINE, "--all-for", "3650d"]).expect_done();
    lab.stop();
    let store = lab.scratch.join("retention").join("machines").join(MACHINE);
    let bytes = big::make(&store, &id, LARGE_DISK, segments, points);
    lab.start();
    // The agent takes the store over with the first act on its machine.
    lab.verb(&["roll", MACHINE, "--to", &points.to_string()])
        .expect_done();
    let list = |lab: &Lab, more: &[&str]| {
        let start = Instant::now();
        let said = lab
            .verb(&[&["points", "list", MACHINE], more].concat())
            .expect_done();
        let seconds = start.elapsed().as_secs_f64();
        let lines = said.stdout.lines().count() as u64;
        assert!(
            !more.is_empty() || lines > points,
            "{lines} lines of {points} points"
        );
        seconds
    };
    let mut rows = Vec::new();
    for (what, more) in [("", [].as_slice()), (" --json", &["--json"])] {
        let times = (0..TIMES).map(|_| list(&lab, more) * 1e3).collect();
        let name = format!("points list{what} with {points} points");
        rows.push(Row::at_most(name, median(times), 200.0, "ms"));
    }
    #[expect(clippy::cast_precision_loss, reason = "a size far below 2^53")]
    let gib = bytes as f64 / f64::from(1 << 30);
    for with_catalogue in [true, false] {
        lab.take_target().kill_9();
        let catalogue = store.join("catalogue.db");
        if !with_catalogue {
            for name in [
                catalogue.clone(),
                store.join("catalogue.db-wal"),
                store.join("catalogue.db-shm"),
            ] {
                let _ = std::fs::remove_file(name);
            }
        }
        assert_eq!(catalogue.exists(), with_catalogue);
        let start = Instant::now();
        lab.start();
        list(&lab, &[]);
        let what = if with_catalogue {
            ""
        } else {
            ", its catalogue lost"
        };
        let name = format!("target started to its answer, with a store of {gib:.1} GiB{what}");
        rows.push(Row::at_most(name, start.elapsed().as_secs_f64(), 5.0, "s"));
    }
    lab.stop();
    rows
}
