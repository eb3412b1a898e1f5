//! Measures a seeding and a 1 % delta beside the tools that people use today, in one run; and the agent over mutual TLS,
//! as it is used, beside the agent without TLS.
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
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use mt_tests::data::{Fill, assert_same, change_blocks, fill};
use mt_tests::disks::{Loop, run, text};
use mt_tests::measure::{Cost, Extent, Sampler, cpu_of_children, median, start};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Serialize;

const MIB: u64 = 1 << 20;
const SCSI_ID: &str = "naa.6000c29000000000000000000000b001";

/// Compares mt-agent with nbdcopy, qemu-img and rsync.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    extent: Extent,
    /// The agent's binary, built with --release
    #[arg(long)]
    agent: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Tool {
    MtAgent,
    MtAgentPlain,
    Nbdcopy,
    QemuImg,
    Rsync,
}

const TOOLS: [Tool; 5] = [
    Tool::MtAgent,
    Tool::MtAgentPlain,
    Tool::Nbdcopy,
    Tool::QemuImg,
    Tool::Rsync,
];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::MtAgent => "mt-agent",
            Self::MtAgentPlain => "mt-agent without TLS",
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
    if let Err((what, hint)) = ready(&args) {
        eprintln!("error: {what}\nhint: {hint}");
        return ExitCode::from(2);
    }
    let json = args.extent.json;
    let rows = Bench::new(args).run();
    if json {
        let document = serde_json::json!({ "schema": 1, "rows": rows });
        println!("{document}");
    } else {
        print_rows(&rows);
    }
    ExitCode::SUCCESS
}

/// Programs that a run starts by name.
const PROGRAMS: [&str; 7] = [
    "nbdkit",
    "nbdcopy",
    "qemu-nbd",
    "qemu-img",
    "rsync",
    "losetup",
    "blkdiscard",
];

/// Whether everything is there, asked before minutes are spent on the first tools: what is missing, and what to do.
fn ready(args: &Args) -> Result<(), (String, &'static str)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in PROGRAMS {
        if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
            return Err((
                format!("{program} is not on this machine"),
                "scripts/bench installs all tools",
            ));
        }
    }
    if !args.agent.is_file() {
        return Err((
            format!("there is no agent at {}", args.agent.display()),
            "build it with: cargo build --release --package mt-agent",
        ));
    }
    if args.extent.runs == 0 || args.extent.size == 0 {
        return Err((
            format!(
                "cannot measure {} runs of {} MiB",
                args.extent.runs, args.extent.size
            ),
            "--runs and --size are at least 1",
        ));
    }
    let space = nix::sys::statvfs::statvfs(&args.extent.folder).map_err(|error| {
        (
            format!("cannot use the folder {}: {error}", args.extent.folder.display()),
            "name a folder that exists with --folder",
        )
    })?;
    let free = space.blocks_available().saturating_mul(space.fragment_size()) / MIB;
    // Two images and the device; the state and log files of the tools are small.
    let needed = args.extent.size.saturating_mul(3).saturating_add(64);
    if free < needed {
        return Err((
            format!(
                "{free} MiB are free in {}, {needed} MiB are needed",
                args.extent.folder.display()
            ),
            "free some, name another folder with --folder, or measure a smaller disk with --size",
        ));
    }
    Ok(())
}

impl Bench {
    fn new(args: Args) -> Self {
        let scratch =
            tempfile::tempdir_in(&args.extent.folder).expect("the folder for images can be written");
        let size = args.extent.size * MIB;
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
            for number in 1..=self.args.extent.runs {
                for place in 0..TOOLS.len() {
                    // No tool always comes after the same other one, which left the disk of the host busy or idle.
                    let index = (place + number * 2) % TOOLS.len();
                    let tool = TOOLS[index];
                    let cost = self.once(task, tool);
                    eprintln!(
                        "run {number} of {}, {task:?}, {:20} {:6.2} s wall {:6.2} s CPU {:5.0} MiB",
                        self.args.extent.runs,
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
        assert_same(&source, self.device.path(), self.args.extent.size * MIB);
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
        let control = free_port();
        let mut command;
        match tool {
            Tool::MtAgent | Tool::MtAgentPlain => {
                let config = folder.join("agent.toml");
                let content = format!(
                    "[agent]\nstate_dir = \"{0}/state\"\nsocket = \"{0}/agent.sock\"\nsocket_group = \"root\"\n\
                     [target]\nlisten = \"127.0.0.1:{port}\"\ncontrol = \"127.0.0.1:{control}\"\n\
                     [lab]\nenabled = true\nplain = {plain}\n\
                     [[lab.disks]]\nscsi_id = \"{SCSI_ID}\"\npath = \"{device}\"\n",
                    text(folder),
                    plain = tool == Tool::MtAgentPlain,
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
        if matches!(tool, Tool::MtAgent | Tool::MtAgentPlain) {
            let socket = folder.join("agent.sock");
            let until = Instant::now() + Duration::from_secs(20);
            // The data port is open before the local socket is.
            while std::os::unix::net::UnixStream::connect(&socket).is_err() {
                assert!(Instant::now() < until, "the agent does not open its socket");
                std::thread::sleep(Duration::from_millis(20));
            }
            let agent = |args: &[&str]| {
                let mut command = Command::new(&self.args.agent);
                command.args(args).env("MT_AGENT_SOCKET", &socket);
                let output = command.output().expect("the agent's binary can be started");
                let (out, err) = (
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr),
                );
                assert!(output.status.success(), "{args:?}: {err}");
                out.into_owned()
            };
            agent(&["pair", "add", "bench/disk", SCSI_ID, "--overwrite", SCSI_ID]);
            if tool == Tool::MtAgent {
                let identity: serde_json::Value =
                    serde_json::from_str(&agent(&["identity", "show", "--json"]))
                        .expect("the answer is JSON");
                let file = folder.join("passphrase");
                let passphrase = identity["passphrase"].as_str().expect("it is shown once");
                std::fs::write(&file, passphrase).expect("the scratch folder can be written");
                let (state, target) = (folder.join("source"), format!("127.0.0.1:{control}"));
                let mut register = vec!["register", "--name", "bench", "--target", &target];
                register.extend(["--state-dir", text(&state), "--passphrase-file", text(&file)]);
                agent(&register);
                agent(&["machines", "approve", "bench"]);
            }
        }
        server
    }

    fn client(&self, task: Task, tool: Tool, folder: &Path, port: u16, source: &Path) -> Command {
        let source = text(source);
        let nbd = format!("nbd://127.0.0.1:{port}");
        let mut command;
        match tool {
            Tool::MtAgent | Tool::MtAgentPlain => {
                command = Command::new(&self.args.agent);
                if tool == Tool::MtAgentPlain {
                    command.args(["source", "send", "--plain"]);
                } else {
                    command.args(["source", "send"]);
                }
                command.args(["--pair", "bench/disk", "--target", &format!("127.0.0.1:{port}")]);
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
    if let Some(found) = ratio(Task::Full, Tool::MtAgentPlain) {
        // A loss of 20 % of the throughput.
        goal("full, wall against the agent without TLS", found, 1.25, "");
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
