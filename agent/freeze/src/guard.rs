//! The process that freezes and thaws, so that nothing stays frozen when the agent dies.
//!
//! It is started for one freeze, before anything is frozen, and does all of it: the agent only asks. It has a session of its
//! own, so that no terminal and no signal to the agent's group reaches it, all signals that can be blocked are blocked, its
//! memory is locked, and it writes to nothing but its pipe, for a write to a frozen file system would never end. It thaws
//! when it is asked, when its standard input ends, and when the time is over, whichever comes first.
//!
//! Only SIGKILL of both processes leaves something frozen: whoever starts the agent as a service thaws after its end too
//! (`ExecStopPost=`), see [`crate::agent::thaw_all`].
//!
//! What is said on standard output, one line each: `frozen`, then `ended CAUSE MICROSECONDS`, where the cause is `asked`,
//! `gone`, `late`, or `refused INDEX ERRNO`. On standard input a line `thaw` asks.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use mt_blockdev::ioctl;
use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::SigSet;

use crate::machine::{Action, Cause, Event, Freeze};

/// Longest freeze that can be asked for.
pub const LIMIT_MAX: Duration = Duration::from_secs(60);

/// Runs the guard in this process, with the arguments that [`crate::agent::arguments`] makes.
///
/// # Errors
/// When the arguments are wrong; then nothing was frozen.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> io::Result<()> {
    let (limit, mounts) = parse(arguments).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut files = Vec::new();
    let mut levels: Vec<Vec<usize>> = Vec::new();
    for (level, path) in mounts {
        if levels.len() <= level {
            levels.resize(level + 1, Vec::new());
        }
        if let Some(level) = levels.get_mut(level) {
            level.push(files.len());
        }
        match File::open(path) {
            Ok(file) => files.push(Arc::new(file)),
            Err(err) => {
                let cause = Cause::Refused(files.len(), err.raw_os_error().unwrap_or(0));
                say(&ended(cause, Duration::ZERO));
                return Ok(());
            }
        }
    }
    levels.retain(|level| !level.is_empty());
    let freeze = Freeze::new(levels, limit).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    stand_alone();
    // What is dirty is written before the freeze, which then has little left to write while others wait.
    for file in &files {
        let _ = nix::unistd::syncfs(file);
    }
    watch(freeze, &files);
    Ok(())
}

/// `LIMIT_MS LEVEL PATH LEVEL PATH...`
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Option<(Duration, Vec<(usize, OsString)>)> {
    let mut arguments = arguments.into_iter();
    let limit = Duration::from_millis(arguments.next()?.to_str()?.parse().ok()?);
    if limit > LIMIT_MAX {
        return None;
    }
    let mut mounts = Vec::new();
    while let Some(level) = arguments.next() {
        // More levels than anybody nests.
        let level: usize = level.to_str()?.parse().ok().filter(|level| *level < 64)?;
        mounts.push((level, arguments.next()?));
    }
    Some((limit, mounts))
}

/// Makes this process as hard to stop as a process can be. What cannot be had here is done without.
fn stand_alone() {
    let _ = nix::unistd::setsid();
    let _ = SigSet::all().thread_block();
    let _ = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = std::env::set_current_dir("/");
}

/// Runs the machine until it ends.
fn watch(mut freeze: Freeze, files: &[Arc<File>]) {
    let started = Instant::now();
    let (tell, told) = channel();
    listen(tell.clone());
    let mut event = Event::Begin;
    loop {
        for action in freeze.handle(event, started.elapsed()) {
            act(action, files, &tell);
        }
        if freeze.ended() {
            return;
        }
        event = next(
            &told,
            freeze.due().map(|due| due.saturating_sub(started.elapsed())),
        );
    }
}

fn next(told: &Receiver<Event>, wait: Option<Duration>) -> Event {
    let event = match wait {
        Some(wait) => told.recv_timeout(wait),
        None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    match event {
        Ok(event) => event,
        Err(RecvTimeoutError::Timeout) => Event::Tick,
        // Cannot be: this thread holds a sender.
        Err(RecvTimeoutError::Disconnected) => Event::Gone,
    }
}

fn act(action: Action, files: &[Arc<File>], tell: &Sender<Event>) {
    match action {
        Action::Freeze(index) => {
            let Some(file) = files.get(index).cloned() else {
                return;
            };
            let tell = tell.clone();
            // Each in a thread of its own: a freeze waits for writers, and nobody else shall wait for it.
            std::thread::spawn(move || {
                let event = match ioctl::freeze(&file) {
                    Ok(()) => Event::Frozen(index),
                    Err(errno) => Event::Refused(index, errno_number(errno)),
                };
                let _ = tell.send(event);
            });
        }
        Action::Thaw(index) => {
            let Some(file) = files.get(index) else { return };
            let event = match ioctl::thaw(file) {
                // Somebody else was faster.
                Ok(()) | Err(Errno::EINVAL) => Event::Thawed(index),
                Err(errno) => Event::ThawFailed(index, errno_number(errno)),
            };
            let _ = tell.send(event);
        }
        Action::TellFrozen => say("frozen"),
        Action::End(cause, paused) => say(&ended(cause, paused)),
    }
}

fn ended(cause: Cause, paused: Duration) -> String {
    let cause = match cause {
        Cause::Asked => "asked".to_owned(),
        Cause::Gone => "gone".to_owned(),
        Cause::Late => "late".to_owned(),
        Cause::Refused(index, errno) => format!("refused {index} {errno}"),
    };
    format!("ended {cause} {}", paused.as_micros())
}

fn errno_number(errno: Errno) -> i32 {
    io::Error::from(errno).raw_os_error().unwrap_or(0)
}

fn say(line: &str) {
    // An agent that is gone hears nothing.
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn listen(tell: Sender<Event>) {
    std::thread::spawn(move || {
        let mut heard = Vec::new();
        let mut buffer = [0_u8; 64];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(count) if count > 0 => {
                    heard.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    if heard.starts_with(b"thaw\n") {
                        let _ = tell.send(Event::Asked);
                        return;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                // Its end, or what cannot be read: nobody is there who could ask.
                _ => {
                    let _ = tell.send(Event::Gone);
                    return;
                }
            }
            // Anything else than the one word is nobody who knows us.
            if heard.len() > 64 {
                let _ = tell.send(Event::Gone);
                return;
            }
        }
    });
}
