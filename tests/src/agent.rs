//! The real agent: found, started, killed, and its words kept.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that anything here may take before the test is said to hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The agent's binary: `MT_AGENT`, or the one that was built beside this test.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MT_AGENT") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("a test has a path");
    let path = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("mt-agent"))
        .find(|path| path.is_file());
    path.expect("the agent is built: cargo build --package mt-agent")
}

/// What a finished program said.
#[derive(Debug)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless the command was done (exit code 0).
    #[track_caller]
    pub fn expect_done(self) -> Self {
        assert_eq!(self.code(), Some(0), "{self}");
        self
    }

    /// Fails unless the command ended with this exit code and with every one of these texts in its message.
    #[track_caller]
    pub fn expect_error(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code(), Some(code), "{self}");
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "\"{text}\" is not in its message\n{self}"
            );
        }
        assert!(!self.stderr.contains("panicked"), "it panicked\n{self}");
        self
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{self}"))
    }

    /// Standard output as JSON lines.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}\n{self}")))
            .collect()
    }

    /// The JSON line of this event.
    #[track_caller]
    pub fn event(&self, name: &str) -> Value {
        self.json_lines()
            .into_iter()
            .rev()
            .find(|line| line["event"] == name)
            .unwrap_or_else(|| panic!("there is no {name} line\n{self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.status, self.stdout, self.stderr
        )
    }
}

/// A program under way; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Starts a command; its words go to files in `folder`.
    pub fn start(mut command: Command, folder: &Path) -> Self {
        let (stdout, out) = fresh(folder, "stdout");
        let (stderr, err) = fresh(folder, "stderr");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    pub fn stdout_so_far(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr_so_far(&self) -> String {
        read(&self.stderr)
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("process numbers are small"));
        nix::sys::signal::kill(pid, signal).expect("a child can be signalled");
    }

    /// Ends it as power loss would end it, as far as a process goes.
    pub fn kill_9(mut self) -> Said {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        let said = self.take_end();
        assert!(
            said.status.signal() == Some(9) || said.code().is_some(),
            "neither killed nor ended: {said}"
        );
        said
    }

    /// Asks it to end and waits.
    pub fn terminate(mut self) -> Said {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.take_end()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Said {
        self.take_end()
    }

    #[track_caller]
    fn take_end(&mut self) -> Said {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if begin.elapsed() > PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!(
                    "it did not end within {PATIENCE:?}\n--- stdout\n{}\n--- stderr\n{}",
                    self.stdout_so_far(),
                    self.stderr_so_far()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Said {
            status,
            stdout: self.stdout_so_far(),
            stderr: self.stderr_so_far(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent's command line, ready for more arguments.
pub fn command<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(binary());
    command.args(args);
    command
}

/// Runs the agent with these arguments to its end.
pub fn run<I, S>(folder: &Path, args: I) -> Said
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    Running::start(command(args), folder).wait()
}

/// Waits until something is so.
///
/// # Panics
/// When it is not so in time.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn fresh(folder: &Path, name: &str) -> (PathBuf, File) {
    for number in 0.. {
        let path = folder.join(format!("{name}-{number}.log"));
        if let Ok(file) = File::options().write(true).create_new(true).open(&path) {
            return (path, file);
        }
        assert!(number < 100_000, "{} cannot be written", folder.display());
    }
    unreachable!("numbers do not end")
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
