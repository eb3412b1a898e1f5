// SPDX-License-Identifier: MIT OR Apache-2.0
//! The corpora, and random changes of them, into every parser of outside bytes.
//!
//! An input fails that makes a parser panic or abort, takes more than [`CPU_MAX`] of processor time, or needs more than
//! [`BYTES_MAX`] of memory at a time. It is stored, and the command that repeats it is printed.
//!
//! | variable | means |
//! |---|---|
//! | `MT_FUZZ_SECONDS` | processor time for all parsers together, seconds; 20 unless told otherwise |
//! | `MT_FUZZ_SEED`, `MT_SEED` | seed of the changes; by the clock unless told otherwise, and printed |
//! | `MT_FUZZ_TARGET` | only this parser |
//! | `MT_FUZZ_INPUT` | only this file, into that parser |
//!
//! The work is done by processes of this same program, so that an abort, an exhausted stack or an endless loop is a finding
//! like any other. Each writes down what it is about to try.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/change.rs"]
mod change;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use change::{Random, changed, dictionary};
use mt_fuzz::{TARGETS, Target};
use nix::sys::resource::{Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};

/// Most processor time that one input may take.
const CPU_MAX: Duration = Duration::from_secs(1);
/// Most memory that one input may take at a time, bytes.
const BYTES_MAX: u64 = 64 << 20;
/// Address space of a process that works: what asks for more is aborted, and found by that.
const SPACE_BYTES_MAX: u64 = 4 << 30;
/// How long one input may take by the clock until its process is ended: it will not come back.
const CLOCK_MAX: Duration = Duration::from_secs(60);
/// Findings of one parser that are stored; more say the same.
const FINDINGS_MAX: u32 = 5;
/// Processes at a time.
const WORKERS: usize = 2;

const WORK: &str = "MT_FUZZ_WORK";

#[test]
fn every_parser_takes_any_bytes() {
    let only = std::env::var("MT_FUZZ_TARGET").ok();
    if let (Some(target), Ok(input)) = (&only, std::env::var("MT_FUZZ_INPUT")) {
        let target = mt_fuzz::find(target).unwrap_or_else(|| panic!("there is no parser {target}"));
        let tried = attempt(target, &fs::read(&input).unwrap());
        println!("{}: {tried:?}", target.name);
        assert!(tried.fault().is_none(), "{:?}", tried.fault());
        return;
    }
    if let Ok(folder) = std::env::var(WORK) {
        return work(Path::new(&folder), only.as_deref().unwrap());
    }
    let targets: Vec<Target> = TARGETS
        .iter()
        .filter(|target| only.as_deref().is_none_or(|name| name == target.name))
        .copied()
        .collect();
    assert!(!targets.is_empty(), "there is no parser {only:?}");
    let seconds: f64 = variable("MT_FUZZ_SECONDS").unwrap_or(20.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = variable("MT_FUZZ_SEED")
        .or_else(|| variable("MT_SEED"))
        .unwrap_or(now.as_secs());
    println!("fuzz: MT_SEED={seed} MT_FUZZ_SECONDS={seconds}");
    let sum = supervise(&targets, seconds / targets.len() as f64, seed);
    // Not by `println`, which is kept back when all is well: the figures are the result.
    let _ = writeln!(
        std::io::stdout(),
        "fuzz_inputs={} targets={} crashes={} over_1s={} over_64mib={} seconds={:.0}",
        sum.inputs,
        targets.len(),
        sum.crashes,
        sum.slow,
        sum.large,
        sum.cpu.as_secs_f64()
    );
    assert_eq!(
        (sum.crashes, sum.slow, sum.large),
        (0, 0, 0),
        "findings, see above"
    );
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

#[derive(Debug, Default)]
struct Sum {
    inputs: u64,
    crashes: u64,
    slow: u64,
    large: u64,
    cpu: Duration,
}

/// A process that works on one parser.
struct Worker {
    target: Target,
    folder: PathBuf,
    child: Child,
    moved: Instant,
    last: Vec<u8>,
}

/// Lets every parser be worked on, some at a time, and adds up.
fn supervise(targets: &[Target], seconds: f64, seed: u64) -> Sum {
    let scratch = tempfile::tempdir().unwrap();
    let mut waiting: Vec<Target> = targets.iter().rev().copied().collect();
    let mut working: Vec<Worker> = Vec::new();
    let mut sum = Sum::default();
    loop {
        while working.len() < WORKERS
            && let Some(target) = waiting.pop()
        {
            working.push(start(target, &scratch.path().join(target.name), seconds, seed));
        }
        if working.is_empty() {
            return sum;
        }
        std::thread::sleep(Duration::from_millis(50));
        working.retain_mut(|worker| {
            let input = fs::read(worker.folder.join("input")).unwrap_or_default();
            if input != worker.last {
                (worker.moved, worker.last) = (Instant::now(), input);
            }
            let ended = worker.child.try_wait().unwrap();
            let stuck = worker.moved.elapsed() > CLOCK_MAX;
            if ended.is_none() && !stuck {
                return true;
            }
            if stuck {
                worker.child.kill().unwrap();
            }
            let status = worker.child.wait().unwrap();
            let read = fs::read_to_string(worker.folder.join("sum")).unwrap_or_default();
            let numbers: Vec<u64> = read.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            let name = worker.target.name;
            if let [inputs, crashes, slow, large, cpu_us, bytes, longest_us] = numbers[..] {
                sum.inputs += inputs;
                sum.crashes += crashes;
                sum.slow += slow;
                sum.large += large;
                sum.cpu += Duration::from_micros(cpu_us);
                let rate = inputs * 1_000_000 / cpu_us.max(1);
                println!(
                    "fuzz: {name}: {inputs} inputs, {rate} a second, at most {} KiB and {} ms each",
                    bytes >> 10,
                    longest_us / 1000
                );
            } else {
                let input = fs::read(worker.folder.join("input")).unwrap_or_default();
                let what = if stuck {
                    sum.slow += 1;
                    "it does not come to an end".to_owned()
                } else {
                    sum.crashes += 1;
                    format!("its process ended, {status}, signal {:?}", status.signal())
                };
                keep(worker.target, &input, &what);
            }
            false
        });
    }
}

fn start(target: Target, folder: &Path, seconds: f64, seed: u64) -> Worker {
    fs::create_dir_all(folder).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["every_parser_takes_any_bytes", "--exact", "--nocapture"])
        .env(WORK, folder)
        .env("MT_FUZZ_TARGET", target.name)
        .env("MT_FUZZ_SECONDS", seconds.to_string())
        .env("MT_SEED", seed.to_string())
        // What makes a list of callers takes more memory than most inputs.
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Worker {
        target,
        folder: folder.to_owned(),
        child,
        moved: Instant::now(),
        last: Vec::new(),
    }
}

/// What became of one input.
#[derive(Debug)]
struct Tried {
    panicked: Option<String>,
    cpu: Duration,
    bytes: u64,
}

impl Tried {
    fn fault(&self) -> Option<String> {
        if let Some(panic) = &self.panicked {
            return Some(format!("it panics: {panic}"));
        }
        if self.cpu > CPU_MAX {
            return Some(format!("it takes {} ms", self.cpu.as_millis()));
        }
        (self.bytes > BYTES_MAX).then(|| format!("it takes {} MiB", self.bytes >> 20))
    }
}

fn cpu_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

fn attempt(target: Target, input: &[u8]) -> Tried {
    let begin = cpu_time();
    let mut panicked = None;
    let allocated = allocation_counter::measure(|| {
        panicked = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).err();
    });
    let cpu = cpu_time().saturating_sub(begin);
    let panicked = panicked.map(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        text.unwrap_or("without words").to_owned()
    });
    Tried {
        panicked,
        cpu,
        bytes: allocated.bytes_max,
    }
}

/// Works on one parser: the corpus as it is, then changes of it until the time is up.
fn work(folder: &Path, name: &str) {
    let target = mt_fuzz::find(name).unwrap();
    setrlimit(Resource::RLIMIT_AS, SPACE_BYTES_MAX, SPACE_BYTES_MAX).unwrap();
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    let words = dictionary(&corpus);
    let seed: u64 = variable("MT_SEED").unwrap();
    let own = name
        .bytes()
        .fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = Random::new(own);
    let until = Duration::from_secs_f64(variable("MT_FUZZ_SECONDS").unwrap());
    let note = File::create(folder.join("input")).unwrap();
    let mut sum = Sum::default();
    let (mut bytes_max, mut longest) = (0, Duration::ZERO);
    // The first of all makes what is made once.
    let _ = attempt(target, &corpus[0]);
    let begin = cpu_time();
    let mut given = corpus.iter();
    let mut findings = 0;
    loop {
        let input = match given.next() {
            Some(input) => input.clone(),
            None if cpu_time().saturating_sub(begin) > until => break,
            None => changed(&mut random, &corpus, &words, target.len_max),
        };
        // One write to a file in memory: what is left of a longer one before it is cut off by the length in front.
        let mut noted = u32::try_from(input.len()).unwrap().to_le_bytes().to_vec();
        noted.extend_from_slice(&input);
        note.write_all_at(&noted, 0).unwrap();
        let tried = attempt(target, &input);
        sum.inputs += 1;
        bytes_max = bytes_max.max(tried.bytes);
        longest = longest.max(tried.cpu);
        let Some(fault) = tried.fault() else { continue };
        match (&tried.panicked, tried.cpu > CPU_MAX) {
            (Some(_), _) => sum.crashes += 1,
            (None, true) => sum.slow += 1,
            (None, false) => sum.large += 1,
        }
        findings += 1;
        if findings <= FINDINGS_MAX {
            keep(target, &noted, &fault);
        }
    }
    let cpu = cpu_time().saturating_sub(begin);
    let numbers = [
        sum.inputs,
        sum.crashes,
        sum.slow,
        sum.large,
        micros(cpu),
        bytes_max,
        micros(longest),
    ];
    let text: Vec<String> = numbers.iter().map(u64::to_string).collect();
    fs::write(folder.join("sum"), text.join(" ")).unwrap();
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The inputs of a parser's corpus, by their names.
fn corpus(target: Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target.name);
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Stores an input that was noted, and says how to repeat it.
fn keep(target: Target, noted: &[u8], what: &str) {
    let (len, input) = noted.split_first_chunk().unwrap_or((&[0; 4], &[]));
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap();
    let input = &input[..len.min(input.len())];
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("findings");
    fs::create_dir_all(&folder).unwrap();
    let digest = blake3::hash(input).to_hex();
    let path = folder.join(format!("{}-{}", target.name, &digest[..16]));
    fs::write(&path, input).unwrap();
    let start: String = input.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
    eprintln!(
        "fuzz: FOUND by {}: {what}\n  {} bytes, {start}{}\n  repeat: MT_FUZZ_TARGET={} MT_FUZZ_INPUT={} cargo test --package \
         mt-fuzz --test fuzz -- --nocapture",
        target.name,
        input.len(),
        if input.len() > 64 { "..." } else { "" },
        target.name,
        path.display()
    );
}
