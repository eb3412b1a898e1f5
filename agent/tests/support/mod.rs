//! A target with its local socket on a path of its own, fed through the hub's public methods, and the real command
//! line as its client.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mt_agent::config::Config;
use mt_agent::disks::access::DiskAccess;
use mt_agent::disks::facts::LabDisk;
use mt_agent::disks::inventory::DiskScope;
use mt_agent::error::CliError;
use mt_agent::hub::{Alarm, Hub, Severity};
use mt_agent::machines::lag::StoreSettings;
use mt_agent::state::State;
use mt_agent::status::server::serve;
use mt_agent::target::app::{Settings, Target};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The program under test.
pub const AGENT: &str = env!("CARGO_BIN_EXE_mt-agent");
/// Longer than anything here takes; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// SCSI ID of the lab disk of this number.
pub fn id(number: u8) -> String {
    format!("naa.6000c29a71e02b4c9d118e55037fab{number:02x}")
}

/// A target that is up.
pub struct Served {
    pub folder: TempDir,
    pub config: Arc<Config>,
    pub target: Target,
    stop: watch::Sender<bool>,
    server: Option<JoinHandle<Result<(), CliError>>>,
    runtime: Runtime,
}

impl Served {
    /// Starts one with lab disks of these contents, numbered from 1, each 4 MiB at least.
    pub fn start(disks: &[&[u8]]) -> Self {
        Self::start_with(disks, "root")
    }

    /// Starts one whose socket belongs to a group.
    pub fn start_with(disks: &[&[u8]], group: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("status-test-")
            .tempdir_in("/var/tmp")
            .expect("there is room for a folder");
        let lab_disks = disks.iter().zip(1..).map(|(content, number)| {
            let path = folder.path().join(format!("disk{number}.img"));
            std::fs::write(&path, content).expect("files can be written");
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .expect("files can be opened")
                .set_len(4 << 20)
                .expect("files can be made longer");
            LabDisk {
                scsi_id: id(number).parse().expect("it can be parsed"),
                path,
                block_size: None,
            }
        });
        let config = Arc::new(Config {
            state_dir: folder.path().join("state"),
            socket: folder.path().join("agent.sock"),
            socket_group: group.to_owned(),
            lab: true,
            lab_disks: lab_disks.collect(),
            ..Config::default()
        });
        let state = State::open(&config.state_dir).expect("a new state opens");
        let settings = Settings {
            state_dir: config.state_dir.clone(),
            listen: config.listen,
            control: None,
            disks: DiskAccess::Own(DiskScope::new(&config.lab_disks, &[])),
            lab_disks: config.lab_disks.len(),
            retention: None,
            stores: StoreSettings::default(),
        };
        let target = Target::new(Hub::new(state, Timestamp::now()), &settings, None);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("the runtime starts");
        let (stop, stopped) = watch::channel(false);
        let server = runtime.spawn(serve(Arc::clone(&config), target.clone(), stopped));
        let served = Self {
            folder,
            config,
            target,
            stop,
            server: Some(server),
            runtime,
        };
        served.wait_for("the socket", || UnixStream::connect(served.socket()).is_ok());
        served
    }

    pub fn hub(&self) -> &Hub {
        &self.target.hub
    }

    pub fn socket(&self) -> &Path {
        &self.config.socket
    }

    pub fn disk_path(&self, number: u8) -> PathBuf {
        self.config.lab_disks[usize::from(number) - 1].path.clone()
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            let server_is_up = self.server.as_ref().is_some_and(|server| !server.is_finished());
            assert!(server_is_up, "the server ended while waiting for {what}");
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The command line, told where the socket is.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(AGENT);
        command
            .args(args)
            .env("MT_AGENT_SOCKET", self.socket())
            .env_remove("NO_COLOR");
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        Said::of(self.command(args).output().expect("the program runs"))
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.run(&args).expect(0).json()
    }

    /// Sends bytes as they are and reads until the server closes.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that has heard enough may close before everything is sent.
        let _ = stream.write_all(bytes);
        read_to_end(&mut stream)
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("the server listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("sockets take timeouts");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("sockets take timeouts");
        stream
    }

    pub fn raise(&self, subject: &str, text: &str) {
        self.hub().raise(Alarm {
            id: "pair-needs-resync".to_owned(),
            subject: subject.to_owned(),
            severity: Severity::Critical,
            text: text.to_owned(),
            hint: "look".to_owned(),
            since: Timestamp::now(),
        });
    }

    /// Ends the server in good order.
    pub fn stop(mut self) {
        self.stop.send(true).expect("the server is told");
        let server = self.server.take().expect("the server runs");
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, server)
                .await
                .expect("the server ends well and in time")
                .expect("the server ends well and in time")
                .expect("the server ends well and in time")
        });
        assert!(
            self.socket().symlink_metadata().is_err(),
            "the socket is taken away"
        );
    }
}

/// Reads until the other end closes; what it had sent before it closed the hard way counts too.
pub fn read_to_end(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the server neither answered nor closed: {error}"),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("it is text"),
            stderr: String::from_utf8(output.stderr).expect("it is text"),
        }
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}
