//! How fast the store is against writing the same blocks in place, in one run on one volume.
//!
//! ```text
//! cargo run --release -p mt-retention --example retention_bench -- FOLDER
//! ```
//!
//! The folder takes about 2 GiB. Figures are ratios; the raw rate is measured beside each.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on is none")]

use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use mt_retention::files::FileStorage;
use mt_retention::{
    BLOCK_SIZE, Consistency, CreateOptions, Disk, DiskIndex, Offered, PointSpec, SEGMENT_SIZE_DEFAULT, Store,
    TargetDisk, digest,
};

const DISK_SIZE: u64 = 1 << 30;
const EPOCH_BLOCKS: usize = 2048;
const THREADS: usize = 16;
const BUDGET: u64 = 16 << 20;

struct FileDisk(File);

fn aligned(len: usize) -> (Vec<u8>, usize) {
    let bytes = vec![0; len + BLOCK_SIZE];
    let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
    (bytes, start)
}

impl FileDisk {
    fn new(path: &Path) -> Self {
        let file = FileOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(nix::libc::O_DIRECT)
            .open(path)
            .unwrap();
        let (mut bytes, start) = aligned(1 << 20);
        bytes.fill(0x5a);
        for at in 0..DISK_SIZE >> 20 {
            file.write_all_at(&bytes[start..start + (1 << 20)], at << 20)
                .unwrap();
        }
        file.sync_all().unwrap();
        Self(file)
    }
}

impl TargetDisk for FileDisk {
    fn size(&self) -> u64 {
        DISK_SIZE
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (mut bytes, start) = aligned(buf.len());
        self.0
            .read_exact_at(&mut bytes[start..start + buf.len()], offset)?;
        buf.copy_from_slice(&bytes[start..start + buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut bytes, start) = aligned(data.len());
        bytes[start..start + data.len()].copy_from_slice(data);
        self.0.write_all_at(&bytes[start..start + data.len()], offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write(offset, &vec![0; usize::try_from(len).unwrap()])
    }

    fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
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
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
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
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
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
fn blocks(seed: u64, window: u64) -> Vec<u64> {
    let mut state = seed;
    let mut found = std::collections::BTreeSet::new();
    while found.len() < EPOCH_BLOCKS {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        found.insert((state >> 33) % window * (DISK_SIZE / BLOCK_SIZE as u64 / window));
    }
    found.into_iter().collect()
}

/// Seconds that fio takes for as many scattered blocks at the same queue depth, and one flush; `None` without fio.
fn fio(path: &Path) -> Option<f64> {
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
        .arg(format!("--size={DISK_SIZE}"))
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| {
        eprintln!("usage: retention_bench FOLDER");
        std::process::exit(2)
    });
    let folder = Path::new(&folder).join("retention-bench");
    std::fs::create_dir_all(folder.join("log")).unwrap();
    let raw = FileDisk::new(&folder.join("raw"));
    let disk = FileDisk::new(&folder.join("disk"));
    let disks: [&dyn TargetDisk; 1] = [&disk];
    let mut store = Store::create(
        FileStorage::open(&folder.join("log")).unwrap(),
        CreateOptions {
            uuid: [1; 16],
            generation: 1,
            disks: vec![Disk {
                id: "bench".to_owned(),
                size: DISK_SIZE,
            }],
            segment_size: SEGMENT_SIZE_DEFAULT,
            capacity: 0,
            initial_point: Some(spec()),
        },
    )
    .unwrap();
    store.set_memory(EPOCH_BLOCKS * BLOCK_SIZE);
    let all = DISK_SIZE / BLOCK_SIZE as u64;
    for (name, window, rounds) in [("with before-images", all, 24_u64), ("in the window", 4096, 24)] {
        let (mut raws, mut acks, mut totals, mut fios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let chosen = blocks(round + window, window);
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
            let start = Instant::now();
            let pieces: Vec<(u64, &[u8])> = chosen
                .iter()
                .zip(&data)
                .map(|(block, d)| (block * BLOCK_SIZE as u64, d.as_slice()))
                .collect();
            raw.write_many(&pieces).unwrap();
            raw.flush().unwrap();
            raws.push(start.elapsed().as_secs_f64());
            fios.extend(fio(&folder.join("raw")));
            let start = Instant::now();
            store.begin_epoch().unwrap();
            for ((block, d), digest) in chosen.iter().zip(&data).zip(&digests) {
                store
                    .write(DiskIndex(0), block * BLOCK_SIZE as u64, d, *digest)
                    .unwrap();
            }
            store.commit_epoch(spec(), Offered::AsPoint).unwrap();
            acks.push(start.elapsed().as_secs_f64());
            store.apply_all(&disks, BUDGET).unwrap();
            totals.push(start.elapsed().as_secs_f64());
        }
        // The first rounds of the window still take before-images.
        let skip = if window == all { 0 } else { 4 };
        let own = acks.iter().zip(&totals).skip(skip);
        let beside = |name: &str, raws: &[f64]| {
            // Round by round, since a machine that does other things too changes its pace between two rounds.
            let ratio = |of: &[f64]| {
                median(
                    raws.iter()
                        .zip(of)
                        .skip(skip)
                        .map(|(raw, own)| raw / own)
                        .collect(),
                )
            };
            println!(
                "  beside {name}: raw_ms={:.1} ack_sooner={:.1} rate_of_raw={:.2}",
                median(raws[skip..].to_vec()) * 1e3,
                ratio(&acks),
                ratio(&totals)
            );
        };
        println!(
            "{name}: ack_ms={:.1} applied_ms={:.1}",
            median(own.clone().map(|(ack, _)| *ack).collect()) * 1e3,
            median(own.map(|(_, total)| *total).collect()) * 1e3
        );
        beside("the same writes", &raws);
        if fios.len() == raws.len() {
            beside("fio", &fios);
        }
    }
    let start = Instant::now();
    let mut roll = store.begin_roll(mt_retention::EpochNumber(0), spec()).unwrap();
    let progress = loop {
        let progress = store.roll_step(&mut roll, BUDGET).unwrap();
        if progress.complete {
            break progress;
        }
    };
    store.finish_roll(&roll, spec()).unwrap();
    store.apply_all(&disks, BUDGET).unwrap();
    let rolled = start.elapsed().as_secs_f64();
    // The same number of scattered blocks in place.
    let count = usize::try_from(progress.total / BLOCK_SIZE as u64).unwrap();
    let content = vec![0xa7; BLOCK_SIZE];
    let step = DISK_SIZE / BLOCK_SIZE as u64 / count as u64;
    let pieces: Vec<(u64, &[u8])> = (0..count)
        .map(|at| (at as u64 * step * BLOCK_SIZE as u64, content.as_slice()))
        .collect();
    let start = Instant::now();
    for part in pieces.chunks(EPOCH_BLOCKS) {
        raw.write_many(part).unwrap();
    }
    raw.flush().unwrap();
    let written = start.elapsed().as_secs_f64();
    println!(
        "roll: blocks={count} roll_ms={:.0} write_ms={:.0} rate_of_raw={:.2}",
        rolled * 1e3,
        written * 1e3,
        written / rolled
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
