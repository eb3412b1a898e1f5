//! A laboratory: a target service of its own, with stand-ins for SCSI disks.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::agent::{self, Running, Said, wait_until};
use crate::disks::text;
use crate::scratch::Scratch;

/// The pair most tests use.
pub const PAIR: &str = "db01/scsi0:1";

/// SCSI ID number `number` of the laboratory, in the form VMware gives its disks.
pub fn scsi_id(number: u32) -> String {
    format!("naa.6000c290000000000000000000{number:06x}")
}

/// A stand-in for a SCSI disk.
#[derive(Debug, Clone)]
pub struct LabDisk {
    /// SCSI ID.
    pub scsi_id: String,
    /// Block device or file.
    pub path: PathBuf,
    /// Logical block size in bytes, when it is not what the device says.
    pub block_size: Option<u32>,
}

/// Configuration and folders of a target. Dropping it stops the target.
#[derive(Debug)]
pub struct Lab {
    /// Folder for everything; dropped last.
    pub scratch: Scratch,
    /// Address the target listens on.
    pub address: SocketAddr,
    disks: Vec<LabDisk>,
    retention: Option<PathBuf>,
    /// Bytes and seconds by which the disks may be behind.
    lag: Option<(u64, u64)>,
    /// User and group of a target that asks a broker for its disks.
    brokered: Option<(String, String)>,
    /// The control port, where the target speaks TLS.
    control: Option<SocketAddr>,
    target: Option<Running>,
}

impl Lab {
    /// A laboratory without disks; the target is not started.
    pub fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            address: free_address(),
            disks: Vec::new(),
            retention: None,
            lag: None,
            brokered: None,
            control: None,
            target: None,
        }
    }

    /// A laboratory as a user has it: mutual TLS, and machines that have to register.
    pub fn secure() -> Self {
        Self {
            control: Some(free_address()),
            ..Self::new()
        }
    }

    /// The control port.
    #[track_caller]
    pub fn control(&self) -> SocketAddr {
        self.control.expect("the laboratory speaks TLS")
    }

    /// Moves both ports to other addresses, such as those of a network namespace.
    pub fn listen_on(&mut self, data: SocketAddr, control: SocketAddr) {
        self.address = data;
        self.control = Some(control);
    }

    fn plain(&self) -> &'static [&'static str] {
        match self.control {
            Some(_) => &[],
            None => &["--plain"],
        }
    }

    /// Adds a disk under the next free SCSI ID; answers the ID.
    pub fn add_disk(&mut self, path: &Path) -> String {
        let number = u32::try_from(self.disks.len() + 1).expect("few disks");
        self.add(LabDisk {
            scsi_id: scsi_id(number),
            path: path.to_owned(),
            block_size: None,
        })
    }

    /// Adds a disk as it is; answers its ID.
    pub fn add(&mut self, disk: LabDisk) -> String {
        let id = disk.scsi_id.clone();
        self.disks.push(disk);
        id
    }

    /// Keeps recovery points in this folder; "retention init" has to set it up.
    pub fn keep_points_in(&mut self, folder: &Path) {
        self.retention = Some(folder.to_owned());
    }

    /// Lets the disks be behind by so many bytes and seconds; heard at the next start.
    pub fn limit_lag(&mut self, bytes: u64, seconds: u64) {
        self.lag = Some((bytes, seconds));
    }

    /// Has the configuration name a broker, for a target that runs as this user and group.
    pub fn ask_a_broker_as(&mut self, user: &str, group: &str) {
        self.brokered = Some((user.to_owned(), group.to_owned()));
    }

    /// Forgets all disks.
    pub fn clear_disks(&mut self) {
        self.disks.clear();
    }

    /// Path of the configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.scratch.join("agent.toml")
    }

    /// Path of the local socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("agent.sock")
    }

    /// Folder of the source's state.
    pub fn source_state(&self) -> PathBuf {
        self.scratch.join("source-state")
    }

    /// The configuration as text.
    pub fn config_text(&self) -> String {
        let own_group = || {
            nix::unistd::Group::from_gid(nix::unistd::getegid())
                .ok()
                .flatten()
                .map_or_else(|| "root".to_owned(), |group| group.name)
        };
        let group = self
            .brokered
            .as_ref()
            .map_or_else(own_group, |(_, group)| group.clone());
        let mut config = format!(
            "[agent]\nstate_dir = \"{}\"\nsocket = \"{}\"\nsocket_group = \"{group}\"\n\n[target]\nlisten = \"{}\"\n",
            text(&self.scratch.join("state")),
            text(&self.socket()),
            self.address
        );
        let _ = match self.control {
            Some(control) => write!(config, "control = \"{control}\"\n\n[lab]\nenabled = true\n"),
            None => write!(config, "\n[lab]\nenabled = true\nplain = true\n"),
        };
        if let Some(folder) = &self.retention {
            let _ = write!(config, "\n[retention]\nfolder = \"{}\"\n", text(folder));
            if let Some((bytes, seconds)) = self.lag {
                let _ = write!(config, "lag_bytes = {bytes}\nlag_seconds = {seconds}\n");
            }
        }
        if let Some((user, _)) = &self.brokered {
            let _ = write!(
                config,
                "\n[broker]\nsocket = \"{}\"\nuser = \"{user}\"\nstate_dir = \"{}\"\n",
                text(&self.scratch.join("broker/broker.sock")),
                text(&self.scratch.join("broker-state")),
            );
        }
        for disk in &self.disks {
            let _ = write!(
                config,
                "\n[[lab.disks]]\nscsi_id = \"{}\"\npath = \"{}\"\n",
                disk.scsi_id,
                text(&disk.path)
            );
            if let Some(size) = disk.block_size {
                let _ = writeln!(config, "block_size = {size}");
            }
        }
        config
    }

    /// The command that runs the target; the configuration is written.
    pub fn target_command(&self) -> Command {
        std::fs::write(self.config_path(), self.config_text()).expect("scratch has room");
        agent::command(["target", "--config", text(&self.config_path())])
    }

    /// Starts the target and waits until it listens.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_with(self.target_command());
    }

    /// Starts the target by a command of one's own, such as one below `strace`.
    #[track_caller]
    pub fn start_with(&mut self, command: Command) {
        assert!(self.target.is_none(), "the target runs already");
        let mut running = Running::start(command, self.scratch.path());
        let (socket, address) = (self.socket(), self.address);
        wait_until("the target", || {
            assert!(
                running.is_running(),
                "the target ended at its start:\n{}",
                running.stderr_so_far()
            );
            UnixStream::connect(&socket).is_ok() && TcpStream::connect(address).is_ok()
        });
        self.target = Some(running);
    }

    /// Starts the target by a command whose ports are not reached from here, such as one in a network namespace.
    #[track_caller]
    pub fn start_by_socket(&mut self, command: Command) {
        assert!(self.target.is_none(), "the target runs already");
        let mut running = Running::start(command, self.scratch.path());
        let socket = self.socket();
        wait_until("the target", || {
            assert!(
                running.is_running(),
                "the target ended at its start:\n{}",
                running.stderr_so_far()
            );
            UnixStream::connect(&socket).is_ok()
        });
        self.target = Some(running);
    }

    /// The running target.
    pub fn target(&mut self) -> &mut Running {
        self.target.as_mut().expect("the target was started")
    }

    /// Takes the running target out, to end it in a way of one's own.
    pub fn take_target(&mut self) -> Running {
        self.target.take().expect("the target was started")
    }

    /// Kills the target where it stands and starts it again.
    pub fn crash_and_restart(&mut self) {
        self.take_target().kill_9();
        self.start();
    }

    /// Ends the target in good order; fails when it does not end well.
    #[track_caller]
    pub fn stop(&mut self) -> Said {
        self.take_target().terminate().expect_done()
    }

    /// Runs a verb of the command line against the local socket.
    pub fn verb(&self, args: &[&str]) -> Said {
        let mut command = agent::command(args);
        command.env("MT_AGENT_SOCKET", self.socket());
        Running::start(command, self.scratch.path()).wait()
    }

    /// Adds a pair and fails when that fails.
    #[track_caller]
    pub fn pair(&self, pair: &str, id: &str) {
        self.verb(&["pair", "add", pair, id]).expect_done();
    }

    /// Adds a pair onto a disk that holds something, which is named.
    #[track_caller]
    pub fn pair_over(&self, pair: &str, id: &str) {
        self.verb(&["pair", "add", pair, id, "--overwrite", id])
            .expect_done();
    }

    /// The command that sends `source` to the pair, by way of `address`.
    pub fn send_command(&self, address: SocketAddr, pair: &str, source: &Path, more: &[&str]) -> Command {
        let address = address.to_string();
        let state = self.source_state();
        let mut args = vec![
            "source",
            "send",
            "--target",
            &address,
            "--pair",
            pair,
            "--state-dir",
        ];
        args.extend_from_slice(&[text(&state), "--json"]);
        args.extend_from_slice(self.plain());
        args.extend_from_slice(more);
        args.push(text(source));
        agent::command(args)
    }

    /// Sends and waits for the end.
    pub fn send(&self, pair: &str, source: &Path, more: &[&str]) -> Said {
        Running::start(
            self.send_command(self.address, pair, source, more),
            self.scratch.path(),
        )
        .wait()
    }

    /// Starts to send by way of `address`, a proxy perhaps.
    pub fn start_send(&self, address: SocketAddr, pair: &str, source: &Path, more: &[&str]) -> Running {
        Running::start(
            self.send_command(address, pair, source, more),
            self.scratch.path(),
        )
    }

    /// The command that sends an epoch of `machine`, by way of `address`.
    pub fn epoch_command(
        &self,
        address: SocketAddr,
        machine: &str,
        disks: &[(&str, &Path)],
        more: &[&str],
    ) -> Command {
        let address = address.to_string();
        let state = self.source_state();
        let mut command = agent::command([
            "source",
            "send",
            "--target",
            &address,
            "--machine",
            machine,
            "--json",
        ]);
        command.args(self.plain());
        command.arg("--state-dir").arg(state).args(more);
        for (disk, path) in disks {
            command.arg("--disk").arg(format!("{disk}={}", text(path)));
        }
        command
    }

    /// Sends an epoch and waits for the end.
    pub fn epoch(&self, machine: &str, disks: &[(&str, &Path)], more: &[&str]) -> Said {
        Running::start(
            self.epoch_command(self.address, machine, disks, more),
            self.scratch.path(),
        )
        .wait()
    }

    /// The recovery points of a machine.
    #[track_caller]
    pub fn points(&self, machine: &str) -> Vec<Value> {
        let document = self
            .verb(&["points", "list", machine, "--json"])
            .expect_done()
            .json();
        document["points"].as_array().expect("points are a list").clone()
    }

    /// Verifies and waits for the end.
    pub fn verify(&self, pair: &str, source: &Path, more: &[&str]) -> Said {
        let address = self.address.to_string();
        let state = self.source_state();
        let mut args = vec![
            "verify",
            "--target",
            &address,
            "--pair",
            pair,
            "--state-dir",
            text(&state),
            "--json",
        ];
        args.extend_from_slice(self.plain());
        args.extend_from_slice(more);
        args.push(text(source));
        agent::run(self.scratch.path(), args)
    }

    /// The status document.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.verb(&["status", "--json"]).expect_done().json()
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// A loopback address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("there are free ports")
}
