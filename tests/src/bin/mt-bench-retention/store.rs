//! The store beside writing the same blocks in place, on one volume.

use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use mt_retention::files::FileStorage;
use mt_retention::{
    BLOCK_SIZE, Consistency, CreateOptions, Disk, DiskIndex, EpochNumber, Offered, PointSpec,
    SEGMENT_SIZE_DEFAULT, Store, TargetDisk, digest,
};

use crate::{Row, median};

const EPOCH_BLOCKS: usize = 2048;
const BLOCK: u64 = BLOCK_SIZE as u64;
const THREADS: usize = 16;
const BUDGET: u64 = 16 << 20;
/// Blocks of the window in which every block is overwritten again and again.
const WINDOW: u64 = 4096;
/// Rolls there and back.
const ROLLS: usize = 3;

fn aligned(len: usize) -> (Vec<u8>, usize) {
    let bytes = vec![0; len + BLOCK_SIZE];
    let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
    (bytes, start)
}

struct FileDisk {
    file: File,
    size: u64,
}

impl FileDisk {
    fn new(path: &Path, size: u64) -> Self {
        let file = FileOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(nix::libc::O_DIRECT)
            .open(path)
            .expect("the folder can be written");
        let (mut bytes, start) = aligned(1 << 20);
        bytes.fill(0x5a);
        for at in 0..size >> 20 {
            file.write_all_at(&bytes[start..start + (1 << 20)], at << 20)
                .expect("there is room");
        }
        file.sync_all().expect("the disk can be flushed");
        Self { file, size }
    }

    /// Seconds for writing these pieces in place, with a flush.
    fn time(&self, pieces: &[(u64, &[u8])]) -> f64 {
        let start = Instant::now();
        for part in pieces.chunks(EPOCH_BLOCKS) {
            self.write_many(part).expect("the disk can be written");
        }
        self.flush().expect("the disk can be flushed");
        start.elapsed().as_secs_f64()
    }
}

impl TargetDisk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (mut bytes, start) = aligned(buf.len());
        self.file
            .read_exact_at(&mut bytes[start..start + buf.len()], offset)?;
        buf.copy_from_slice(&bytes[start..start + buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut bytes, start) = aligned(data.len());
        bytes[start..start + data.len()].copy_from_slice(data);
        self.file.write_all_at(&bytes[start..start + data.len()], offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write(offset, &vec![0; usize::try_from(len).expect("ranges are small")])
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_many(&self, pieces: &[(u64, &[u8])]) -> io::Result<()> {
        std::thread::scope(|scope| {
            let chunk = pieces.len().div_ceil(THREADS).max(1);
            let threads: Vec<_> = pieces
                .chunks(chunk)
                .map(|own| {
                    scope.spawn(|| {
                        own.iter()
                            .try_for_each(|(offset, data)| self.write(*offset, data))
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .expect("a thread that writes or reads does not panic")
            })
        })
    }

    fn read_many(&self, pieces: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        std::thread::scope(|scope| {
            let chunk = pieces.len().div_ceil(THREADS).max(1);
            let threads: Vec<_> = pieces
                .chunks_mut(chunk)
                .map(|own| {
                    scope.spawn(|| {
                        own.iter_mut()
                            .try_for_each(|(offset, buf)| self.read(*offset, buf))
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .expect("a thread that writes or reads does not panic")
            })
        })
    }
}

fn spec() -> PointSpec {
    PointSpec {
        consistency: Consistency::Crash,
        source_time_ms: 0,
        received_time_ms: 0,
        name: String::new(),
        tags: Vec::new(),
    }
}

/// Distinct blocks, scattered; `window` of them in all.
fn blocks(seed: u64, window: u64, all: u64) -> Vec<u64> {
    let mut state = seed;
    let mut found = std::collections::BTreeSet::new();
    while found.len() < EPOCH_BLOCKS {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        found.insert((state >> 33) % window * (all / window));
    }
    found.into_iter().collect()
}

/// Seconds that fio takes for as many scattered blocks at the same queue depth, and one flush; `None` without fio.
fn fio(path: &Path, size: u64) -> Option<f64> {
    let output = std::process::Command::new("fio")
        .arg("--name=raw")
        .arg(format!("--filename={}", path.display()))
        .args([
            "--rw=randwrite",
            "--bs=4k",
            "--direct=1",
            "--ioengine=psync",
            "--thread",
        ])
        .args(["--end_fsync=1", "--group_reporting", "--allow_file_create=0"])
        .arg(format!("--size={size}"))
        .arg(format!("--numjobs={THREADS}"))
        .arg(format!("--number_ios={}", EPOCH_BLOCKS / THREADS))
        .args(["--output-format=terse", "--terse-version=3"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    // Field 50 of a terse line: run time of the writes, milliseconds.
    let text = String::from_utf8(output.stdout).ok()?;
    let ms: f64 = text.lines().last()?.split(';').nth(49)?.parse().ok()?;
    Some(ms / 1e3)
}

/// What the rounds of one kind of epoch took, seconds.
#[derive(Default)]
struct Rounds {
    raw: Vec<f64>,
    fio: Vec<f64>,
    acknowledged: Vec<f64>,
    applied: Vec<f64>,
}

impl Rounds {
    /// Median of the ratios, round by round: a machine that does other things too changes its pace between two rounds.
    fn ratio(peer: &[f64], own: &[f64], skip: usize) -> f64 {
        median(
            peer.iter()
                .zip(own)
                .skip(skip)
                .map(|(peer, own)| peer / own)
                .collect(),
        )
    }

    fn rows(&self, what: &str, acknowledged: bool, limit: f64, skip: usize) -> Vec<Row> {
        let mut rows = Vec::new();
        for (peer, times) in [("the same writes", &self.raw), ("fio", &self.fio)] {
            if times.len() != self.applied.len() {
                eprintln!("there is no fio: no rows beside it");
                continue;
            }
            if acknowledged {
                let value = Self::ratio(times, &self.acknowledged, skip);
                let name = format!("epoch of {EPOCH_BLOCKS} blocks acknowledged, sooner than {peer}");
                rows.push(Row::at_least(name, value, 5.0, "times"));
            }
            let value = Self::ratio(times, &self.applied, skip);
            rows.push(Row::at_least(
                format!("ingest and apply {what}, of the rate of {peer}"),
                value,
                limit,
                "times",
            ));
        }
        rows
    }
}

struct Bench<'a> {
    store: Store<FileStorage>,
    raw: FileDisk,
    raw_path: &'a Path,
    disk: FileDisk,
}

impl Bench<'_> {
    fn blocks_in_all(&self) -> u64 {
        self.disk.size / BLOCK
    }

    fn epochs(&mut self, window: u64, rounds: usize) -> Rounds {
        let mut times = Rounds::default();
        for round in 0..rounds as u64 {
            let chosen = blocks(round + window, window, self.blocks_in_all());
            let data: Vec<Vec<u8>> = chosen
                .iter()
                .map(|block| {
                    let seed = (block ^ round << 40).to_le_bytes();
                    seed.iter()
                        .map(|byte| byte | 1)
                        .cycle()
                        .take(BLOCK_SIZE)
                        .collect()
                })
                .collect();
            // The source made the digests when it read; here they are no part of what is measured.
            let digests: Vec<_> = data.iter().map(|block| digest(block)).collect();
            let pieces: Vec<(u64, &[u8])> = chosen
                .iter()
                .zip(&data)
                .map(|(block, data)| (block * BLOCK, data.as_slice()))
                .collect();
            times.raw.push(self.raw.time(&pieces));
            times.fio.extend(fio(self.raw_path, self.raw.size));
            let start = Instant::now();
            self.store.begin_epoch().expect("no epoch is open");
            for ((offset, data), digest) in pieces.iter().zip(&digests) {
                self.store
                    .write(DiskIndex(0), *offset, data, *digest)
                    .expect("there is room");
            }
            self.store
                .commit_epoch(spec(), Offered::AsPoint)
                .expect("the volume works");
            times.acknowledged.push(start.elapsed().as_secs_f64());
            self.store
                .apply_all(&[&self.disk], BUDGET)
                .expect("the disk works");
            times.applied.push(start.elapsed().as_secs_f64());
        }
        times
    }

    /// Seconds of a roll, and of writing as many scattered blocks in place.
    fn roll(&mut self, to: EpochNumber) -> (f64, f64) {
        let start = Instant::now();
        let mut roll = self.store.begin_roll(to, spec()).expect("the point is there");
        let progress = loop {
            let progress = self.store.roll_step(&mut roll, BUDGET).expect("there is room");
            if progress.complete {
                break progress;
            }
        };
        self.store.finish_roll(&roll, spec()).expect("the volume works");
        self.store
            .apply_all(&[&self.disk], BUDGET)
            .expect("the disk works");
        let rolled = start.elapsed().as_secs_f64();
        let count = progress.total / BLOCK;
        let content = vec![0xa7; BLOCK_SIZE];
        let step = self.blocks_in_all() / count.max(1);
        let pieces: Vec<(u64, &[u8])> = (0..count)
            .map(|at| (at * step * BLOCK, content.as_slice()))
            .collect();
        (rolled, self.raw.time(&pieces))
    }
}

/// Acknowledging, applying and rolling beside writing in place.
pub fn measure(folder: &Path, mebibytes: u64, rounds: usize) -> Vec<Row> {
    let size = mebibytes << 20;
    std::fs::create_dir_all(folder.join("log")).expect("the folder can be written");
    let raw_path = folder.join("raw");
    let mut store = Store::create(
        FileStorage::open(&folder.join("log")).expect("the folder can be read"),
        CreateOptions {
            uuid: [1; 16],
            generation: 1,
            disks: vec![Disk {
                id: "bench".to_owned(),
                size,
            }],
            segment_size: SEGMENT_SIZE_DEFAULT,
            capacity: 0,
            initial_point: Some(spec()),
        },
    )
    .expect("the folder is empty");
    store.set_memory(EPOCH_BLOCKS * BLOCK_SIZE);
    let mut bench = Bench {
        store,
        raw: FileDisk::new(&raw_path, size),
        raw_path: &raw_path,
        disk: FileDisk::new(&folder.join("disk"), size),
    };
    let all = bench.blocks_in_all();
    let mut rows = bench.epochs(all, rounds).rows("with before-images", true, 0.3, 0);
    // The first rounds of the window still take before-images.
    rows.extend(
        bench
            .epochs(WINDOW.min(all), rounds)
            .rows("in the window", false, 0.6, 4),
    );
    let newest = bench.store.committed();
    let mut ratios = Vec::new();
    for _ in 0..ROLLS {
        for to in [EpochNumber(0), newest] {
            let (rolled, written) = bench.roll(to);
            ratios.push(written / rolled);
        }
    }
    rows.push(Row::at_least(
        "roll, of the rate of writing the same blocks",
        median(ratios),
        0.5,
        "times",
    ));
    std::fs::remove_dir_all(folder).expect("it is ours");
    rows
}
