//! What programs under measurement cost: wall time, CPU time, resident memory.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

/// What every measurement can be told.
#[derive(Debug, clap::Args)]
pub struct Extent {
    /// Runs of each tool; medians are shown
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Size of the disk in MiB
    #[arg(long, default_value_t = 2048)]
    pub size: u64,
    /// Folder for images; needs three times the size of what is on them
    #[arg(long, default_value = "/var/tmp")]
    pub folder: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// What one run cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// Wall time, seconds.
    pub wall: f64,
    /// User and system time of client and server, seconds.
    pub cpu: f64,
    /// Largest resident memory of client and server together, MiB.
    pub memory: f64,
    /// Largest resident memory of the server alone, MiB.
    pub server_memory: f64,
}

/// Starts a program in a group of its own, silent. It ends with this one, also when that is killed (`setpriv` of util-linux
/// asks the kernel for it and becomes the program).
///
/// # Panics
/// When it cannot be started.
pub fn start(program: Command) -> Child {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program.get_program())
        .args(program.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let name = format!("{command:?}");
    command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// User and system time of all children that have been waited for, and theirs, in seconds.
pub fn cpu_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("asking for one's children cannot fail");
    let seconds = |time: nix::sys::time::TimeVal| {
        f64::from(i32::try_from(time.tv_sec()).unwrap_or(i32::MAX))
            + f64::from(i32::try_from(time.tv_usec()).unwrap_or(0)) / 1e6
    };
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Watches the largest resident memory of process groups.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<f64>>,
}

impl Sampler {
    /// Begins to watch.
    pub fn start(groups: &[u32]) -> Self {
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peaks = vec![BTreeMap::new(); groups.len()];
            while !stopped.load(Ordering::Relaxed) {
                for (group, pid, kib) in resident() {
                    if let Some(index) = groups.iter().position(|wanted| *wanted == group) {
                        let peak = peaks[index].entry(pid).or_insert(0.0_f64);
                        *peak = peak.max(kib);
                    }
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            peaks
                .into_iter()
                .map(|processes| processes.values().sum::<f64>() / 1024.0)
                .collect()
        });
        Self { stop, thread }
    }

    /// The largest resident memory of each group, MiB.
    ///
    /// # Panics
    /// Never: the watching thread does not.
    pub fn stop(self) -> Vec<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler does not panic")
    }
}

/// Process group, process and VmHWM in KiB of every process that can be read.
fn resident() -> Vec<(String, String, f64)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry
                .file_name()
                .into_string()
                .ok()
                .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let group = stat.rsplit_once(") ")?.1.split(' ').nth(2)?.to_owned();
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            let kib = line.trim().trim_end_matches(" kB").parse().ok()?;
            Some((group, pid, kib))
        })
        .collect()
}

/// The median of each cost.
///
/// # Panics
/// Without a run.
pub fn median(runs: &[Cost]) -> Cost {
    let of = |field: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        }
    };
    Cost {
        wall: of(|cost| cost.wall),
        cpu: of(|cost| cost.cpu),
        memory: of(|cost| cost.memory),
        server_memory: of(|cost| cost.server_memory),
    }
}

/// Memory that a process has in RAM, bytes.
pub fn memory_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("it has memory");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("a number");
    kib * 1024
}
