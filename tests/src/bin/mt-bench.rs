//! Measures a seeding and a 1 % delta beside the tools that people use today, in one run.
//!
//! Every tool copies the same image over loopback onto the same block device (a loop device with direct I/O), in turns: run
//! 1 of each, run 2 of each, and so on, so that a busy minute of the machine hits all of them. Before each run
//! the page cache is dropped, and for the full copy the device is made zero; the time includes the flush of the
//! device at the end. After each run the device is compared with the image, byte for byte.
//!
//! The delta runs to and fro between two images that differ in 1 % of their 4 KiB blocks, so nothing has to be put
//! back in between. nbdcopy and qemu-img have no delta: they copy everything again.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use mt_tests::data::{Fill, assert_same, change_blocks, fill};
use mt_tests::disks::{Loop, run, text};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Serialize;

const MIB: u64 = 1 << 20;
const SCSI_ID: &str = "naa.6000c29000000000000000000000b001";

/// Compares mt-agent with nbdcopy, qemu-img and rsync.
#[derive(Debug, Parser)]
struct Args {
    /// Runs of each tool; medians are shown
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Size of the disk in MiB
    #[arg(long, default_value_t = 2048)]
    size: u64,
    /// Folder for images; needs three times the size
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// The agent's binary, built with --release
    #[arg(long)]
    agent: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Tool {
    MtAgent,
    Nbdcopy,
    QemuImg,
    Rsync,
}

const TOOLS: [Tool; 4] = [Tool::MtAgent, Tool::Nbdcopy, Tool::QemuImg, Tool::Rsync];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::MtAgent => "mt-agent",
            Self::Nbdcopy => "nbdkit+nbdcopy",
            Self::QemuImg => "qemu-img to qemu-nbd",
            Self::Rsync => "rsync --inplace",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Task {
    Full,
    Delta,
}

/// What one run cost.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cost {
    /// Wall time, seconds.
    wall: f64,
    /// User and system time of client and server, seconds.
    cpu: f64,
    /// Largest resident memory of client and server together, MiB.
    memory: f64,
    /// Largest resident memory of the server alone, MiB.
    server_memory: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    task: Task,
    tool: Tool,
    runs: Vec<Cost>,
    median: Cost,
}

struct Bench {
    args: Args,
    scratch: tempfile::TempDir,
    device: Loop,
    images: [PathBuf; 2],
    /// Which image the device holds.
    holds: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("error: the page cache can only be dropped by root\nhint: run scripts/bench as root");
        return ExitCode::from(2);
    }
    let json = args.json;
    let rows = Bench::new(args).run();
    if json {
        let document = serde_json::json!({ "schema": 1, "rows": rows });
        println!("{document}");
    } else {
        print_rows(&rows);
    }
    ExitCode::SUCCESS
}

impl Bench {
    fn new(args: Args) -> Self {
        let scratch = tempfile::tempdir_in(&args.folder).expect("the folder for images can be written");
        let size = args.size * MIB;
        let images = [
            scratch.path().join("first.img"),
            scratch.path().join("second.img"),
        ];
        File::create(&images[0])
            .and_then(|file| file.set_len(size))
            .expect("the image can be made");
        fill(&images[0], size, Fill::HalfZero, 1);
        // Allocated zeros, as on a disk that was in use: no tool is told where the holes are.
        allocate_holes(&images[0], size);
        std::fs::copy(&images[0], &images[1]).expect("the image can be copied");
        change_blocks(&images[1], size, 4096, size / 4096 / 100, 2);
        let backing = scratch.path().join("device.img");
        File::create(&backing)
            .and_then(|file| file.set_len(size))
            .expect("the device can be made");
        run("fallocate", &["--length", &size.to_string(), text(&backing)]);
        let device = Loop::attach(&backing, &["--direct-io=on"]);
        Self {
            args,
            scratch,
            device,
            images,
            holds: 0,
        }
    }

    fn run(mut self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for task in [Task::Full, Task::Delta] {
            let mut costs = vec![Vec::new(); TOOLS.len()];
            for number in 1..=self.args.runs {
                for (index, tool) in TOOLS.into_iter().enumerate() {
                    let cost = self.once(task, tool);
                    eprintln!(
                        "run {number} of {}, {task:?}, {:20} {:6.2} s wall {:6.2} s CPU {:5.0} MiB",
                        self.args.runs,
                        tool.name(),
                        cost.wall,
                        cost.cpu,
                        cost.memory
                    );
                    costs[index].push(cost);
                }
            }
            rows.extend(TOOLS.into_iter().zip(costs).map(|(tool, runs)| Row {
                task,
                tool,
                median: median(&runs),
                runs,
            }));
        }
        rows
    }

    fn once(&mut self, task: Task, tool: Tool) -> Cost {
        let image = match task {
            Task::Full => {
                run("blkdiscard", &["--zeroout", "--force", self.device.text()]);
                0
            }
            Task::Delta => 1 - self.holds,
        };
        let source = self.images[image].clone();
        run("sync", &[]);
        std::fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop the page cache");
        let folder = tempfile::tempdir_in(self.scratch.path()).expect("the scratch folder can be written");
        let port = free_port();
        let mut server = self.server(tool, folder.path(), port);
        let before = cpu_of_children();
        let started = Instant::now();
        let mut client = start(self.client(task, tool, folder.path(), port, &source));
        let sampler = Sampler::start(&[server.id(), client.id()]);
        let status = client.wait().expect("a child can be waited for");
        assert!(status.success(), "{} failed: {status}", tool.name());
        run("blockdev", &["--flushbufs", self.device.text()]);
        let wall = started.elapsed().as_secs_f64();
        let peaks = sampler.stop();
        let group = Pid::from_raw(i32::try_from(server.id()).expect("process numbers are small"));
        killpg(group, Signal::SIGTERM).expect("the server is there");
        server.wait().expect("a child can be waited for");
        let cpu = cpu_of_children() - before;
        assert_same(&source, self.device.path(), self.args.size * MIB);
        self.holds = image;
        Cost {
            wall,
            cpu,
            memory: peaks[0] + peaks[1],
            server_memory: peaks[0],
        }
    }

    fn server(&self, tool: Tool, folder: &Path, port: u16) -> Child {
        let device = self.device.text();
        let mut command;
        match tool {
            Tool::MtAgent => {
                let config = folder.join("agent.toml");
                let content = format!(
                    "[agent]\nstate_dir = \"{0}/state\"\nsocket = \"{0}/agent.sock\"\nsocket_group = \"root\"\n\
                     [target]\nlisten = \"127.0.0.1:{port}\"\n[lab]\nenabled = true\n\
                     [[lab.disks]]\nscsi_id = \"{SCSI_ID}\"\npath = \"{device}\"\n",
                    text(folder)
                );
                std::fs::write(&config, content).expect("the scratch folder can be written");
                command = Command::new(&self.args.agent);
                command.args(["target", "--config", text(&config)]);
            }
            Tool::Nbdcopy => {
                command = Command::new("nbdkit");
                command.args([
                    "--foreground",
                    "--ipaddr=127.0.0.1",
                    &format!("--port={port}"),
                    "file",
                ]);
                command.arg(format!("file={device}"));
            }
            Tool::QemuImg => {
                command = Command::new("qemu-nbd");
                command.args([
                    "--format=raw",
                    "--cache=none",
                    "--aio=io_uring",
                    "--bind=127.0.0.1",
                    "--persistent",
                ]);
                command.arg(format!("--port={port}")).arg(device);
            }
            Tool::Rsync => {
                let config = folder.join("rsyncd.conf");
                let content = "uid = root\ngid = root\nuse chroot = no\n[dev]\npath = /dev\nread only = no\nrefuse options = !write-devices\n";
                std::fs::write(&config, content).expect("the scratch folder can be written");
                command = Command::new("rsync");
                command.args([
                    "--daemon",
                    "--no-detach",
                    "--address=127.0.0.1",
                    &format!("--port={port}"),
                ]);
                command.arg(format!("--config={}", text(&config)));
            }
        }
        let server = start(command);
        wait_for_port(port);
        if tool == Tool::MtAgent {
            let socket = folder.join("agent.sock");
            let mut add = Command::new(&self.args.agent);
            add.args([
                "pair",
                "add",
                "bench/disk",
                SCSI_ID,
                "--overwrite",
                SCSI_ID,
                "--socket",
                text(&socket),
            ]);
            // The data port is open before the local socket is.
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                let output = add.output().expect("the agent's binary can be started");
                if output.status.success() {
                    break;
                }
                assert!(
                    Instant::now() < until,
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        server
    }

    fn client(&self, task: Task, tool: Tool, folder: &Path, port: u16, source: &Path) -> Command {
        let source = text(source);
        let nbd = format!("nbd://127.0.0.1:{port}");
        let mut command;
        match tool {
            Tool::MtAgent => {
                command = Command::new(&self.args.agent);
                command.args([
                    "source",
                    "send",
                    "--pair",
                    "bench/disk",
                    "--target",
                    &format!("127.0.0.1:{port}"),
                ]);
                command.args(["--state-dir", text(&folder.join("source")), source]);
            }
            Tool::Nbdcopy => {
                command = Command::new("nbdcopy");
                command.arg("--flush");
                if task == Task::Full {
                    command.arg("--destination-is-zero");
                }
                command.args([source, &nbd]);
            }
            Tool::QemuImg => {
                command = Command::new("qemu-img");
                command.args([
                    "convert", "-n", "-W", "-m", "16", "-T", "none", "-f", "raw", "-O", "raw",
                ]);
                if task == Task::Full {
                    command.arg("--target-is-zero");
                }
                command.args([source, &nbd]);
            }
            Tool::Rsync => {
                let name = self
                    .device
                    .path()
                    .file_name()
                    .and_then(|name| name.to_str())
                    .expect("a device has a name");
                command = Command::new("rsync");
                command.args(["--inplace", "--write-devices", "--ignore-times"]);
                command.arg(if task == Task::Full {
                    "--whole-file"
                } else {
                    "--no-whole-file"
                });
                command.args([source, &format!("rsync://127.0.0.1:{port}/dev/{name}")]);
            }
        }
        command
    }
}

/// Starts a program in a group of its own, silent.
fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let name = format!("{command:?}");
    command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Writes zeros where the file has holes.
fn allocate_holes(path: &Path, size: u64) {
    run(
        "cp",
        &["--sparse=never", text(path), &format!("{}.full", text(path))],
    );
    std::fs::rename(format!("{}.full", text(path)), path).expect("both are in one folder");
    assert_eq!(std::fs::metadata(path).expect("it was just made").len(), size);
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("it is bound").port()
}

fn wait_for_port(port: u16) {
    let until = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            Instant::now() < until,
            "the server does not answer on port {port}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// User and system time of all children that have been waited for, and theirs, in seconds.
fn cpu_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("asking for one's children cannot fail");
    let seconds = |time: nix::sys::time::TimeVal| {
        f64::from(i32::try_from(time.tv_sec()).unwrap_or(i32::MAX))
            + f64::from(i32::try_from(time.tv_usec()).unwrap_or(0)) / 1e6
    };
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Watches the largest resident memory of process groups.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<f64>>,
}

impl Sampler {
    fn start(groups: &[u32]) -> Self {
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peaks = vec![std::collections::BTreeMap::new(); groups.len()];
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

    fn stop(self) -> Vec<f64> {
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

fn median(runs: &[Cost]) -> Cost {
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

fn print_rows(rows: &[Row]) {
    let medians = |task, tool| {
        rows.iter()
            .find(|row| row.task == task && row.tool == tool)
            .map(|row| row.median)
    };
    for task in [Task::Full, Task::Delta] {
        let Some(ours) = medians(task, Tool::MtAgent) else {
            continue;
        };
        println!(
            "\n{}",
            if task == Task::Full {
                "seeding into an empty disk"
            } else {
                "1 % of 4 KiB blocks changed"
            }
        );
        println!(
            "{:22} {:>8} {:>8} {:>8}   mt-agent to it: wall, CPU, memory",
            "", "wall s", "CPU s", "MiB"
        );
        for row in rows.iter().filter(|row| row.task == task) {
            let cost = row.median;
            print!(
                "{:22} {:8.2} {:8.2} {:8.0}",
                row.tool.name(),
                cost.wall,
                cost.cpu,
                cost.memory
            );
            if row.tool == Tool::MtAgent {
                println!();
            } else {
                println!(
                    "   {:.2}  {:.2}  {:.2}",
                    ours.wall / cost.wall,
                    ours.cpu / cost.cpu,
                    ours.memory / cost.memory
                );
            }
        }
    }
    let goal = |what: &str, found: f64, most: f64, unit: &str| {
        let verdict = if found <= most { "met" } else { "MISSED" };
        println!("goal {verdict}: {what}: {found:.2}{unit}, at most {most:.2}{unit}");
    };
    println!();
    let ratio = |task, tool: Tool| Some(medians(task, Tool::MtAgent)?.wall / medians(task, tool)?.wall);
    if let Some(found) = ratio(Task::Full, Tool::Nbdcopy) {
        goal("full, wall against nbdcopy", found, 1.0, "");
    }
    if let Some(found) = ratio(Task::Delta, Tool::Rsync) {
        goal("delta, wall against rsync", found, 0.5, "");
    }
    if let Some(cost) = medians(Task::Full, Tool::MtAgent) {
        goal(
            "resident memory of the target, one pair",
            cost.server_memory,
            128.0,
            " MiB",
        );
    }
}
