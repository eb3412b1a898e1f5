//! Makes a store of many segments whose data are holes, and measures how long opening it takes: with and without summaries.
//!
//! ```text
//! cargo run --release -p mt-retention --example big_store -- FOLDER [SEGMENTS] [POINTS] [DISK-ID] [DISK-SIZE]
//! ```
//!
//! 1,600 segments are 100 GiB, of which about 3 GiB are written. The folder is left as a store that an agent can take over:
//! give it the disk of its pair.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on is none")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mt_retention::files::FileStorage;
use mt_retention::{
    BLOCK_SIZE, Catalogue, Consistency, CreateOptions, Disk, DiskIndex, NoCatalogue, ObjectName, Offered,
    OpenOptions, PointSpec, SEGMENT_SIZE_DEFAULT, Storage, StorageError, Store, TargetDisk, digest,
};

/// Blocks of one extent.
const EXTENT_BLOCKS: usize = 4;
const BUDGET: u64 = 64 << 20;

/// What all content is made of. Zeros would be noted as ranges, and take no place in the log.
const FILL: u8 = 0xa5;

/// A folder in which blocks of content are left out.
struct Sparse {
    folder: PathBuf,
    files: FileStorage,
}

impl Storage for Sparse {
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StorageError> {
        self.files.list()
    }

    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        let file = std::fs::File::create_new(self.folder.join(object.to_string())).unwrap();
        file.set_len(len).unwrap();
        Ok(())
    }

    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.files.read(object, offset, buf)
    }

    fn write(&mut self, object: ObjectName, offset: u64, parts: &[&[u8]]) -> Result<(), StorageError> {
        let bytes = parts.concat();
        let is_content = |block: &[u8]| block.iter().all(|byte| *byte == FILL);
        let mut at = 0;
        while at < bytes.len() {
            let content = is_content(&bytes[at..at + BLOCK_SIZE]);
            let blocks = bytes[at..]
                .chunks(BLOCK_SIZE)
                .take_while(|b| is_content(b) == content)
                .count();
            let end = at + blocks * BLOCK_SIZE;
            if !content {
                self.files.write(object, offset + at as u64, &[&bytes[at..end]])?;
            }
            at = end;
        }
        Ok(())
    }

    fn sync(&mut self, _object: ObjectName) -> Result<(), StorageError> {
        Ok(())
    }

    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError> {
        self.files.cut(object, len)
    }

    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError> {
        self.files.remove(object)
    }

    fn sync_dir(&mut self) -> Result<(), StorageError> {
        self.files.sync_dir()
    }
}

/// A disk of content that takes everything.
struct Nowhere(u64);

impl TargetDisk for Nowhere {
    fn size(&self) -> u64 {
        self.0
    }

    fn read(&self, _offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(FILL);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Summaries(BTreeMap<u64, Vec<u8>>);

impl Catalogue for Summaries {
    fn summary(&self, segment: u64) -> Option<Vec<u8>> {
        self.0.get(&segment).cloned()
    }
}

fn spec(number: u64) -> PointSpec {
    PointSpec {
        consistency: Consistency::Crash,
        source_time_ms: i64::try_from(number * 1000).unwrap(),
        received_time_ms: i64::try_from(number * 1000).unwrap(),
        name: format!("point {number}"),
        tags: Vec::new(),
    }
}

fn open(folder: &Path, catalogue: &dyn Catalogue) -> (Store<FileStorage>, f64, u64) {
    let storage = FileStorage::open(folder).unwrap();
    let start = Instant::now();
    let (store, report) = Store::open_with(storage, OpenOptions::default(), catalogue).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(report.damage.is_empty(), "{report:?}");
    (store, seconds, report.summaries)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(folder) = args.first().map(PathBuf::from) else {
        eprintln!("usage: big_store FOLDER [SEGMENTS] [POINTS] [DISK-ID] [DISK-SIZE]");
        std::process::exit(2)
    };
    let number = |at: usize, default: u64| args.get(at).map_or(default, |text| text.parse().unwrap());
    let (segments, points) = (number(1, 1600), number(2, 10_000));
    let id = args.get(3).cloned().unwrap_or_else(|| "bench".to_owned());
    let size = number(4, 1 << 40);
    std::fs::create_dir_all(&folder).unwrap();
    let disk = Nowhere(size);
    let disks: [&dyn TargetDisk; 1] = [&disk];
    let storage = Sparse {
        folder: folder.clone(),
        files: FileStorage::open(&folder).unwrap(),
    };
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&std::process::id().to_le_bytes().repeat(2));
    let mut store = Store::create(
        storage,
        CreateOptions {
            uuid,
            generation: 1,
            disks: vec![Disk { id, size }],
            segment_size: SEGMENT_SIZE_DEFAULT,
            capacity: 0,
            initial_point: None,
        },
    )
    .unwrap();
    // What is left out cannot be read back: it has to be in memory until it is applied.
    store.set_memory(usize::try_from(BUDGET).unwrap());
    // Content that is left out has to be as long as it says.
    store.set_packing(false);
    let data = vec![FILL; EXTENT_BLOCKS * BLOCK_SIZE];
    let data_digest = digest(&data);
    let places = size / data.len() as u64;
    let mut state = 1_u64;
    let started = Instant::now();
    let (mut extents, mut made) = (0_u64, 0_u64);
    while store.segments().len() < usize::try_from(segments).unwrap() || made < points {
        store.begin_epoch().unwrap();
        // As many bytes an epoch as bring both to their ends together; before-images are as much again.
        let goal = segments * SEGMENT_SIZE_DEFAULT / points.max(1) / 2 / data.len() as u64;
        for _ in 0..goal.max(1) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let place = (state >> 20) % places;
            store
                .write(DiskIndex(0), place * data.len() as u64, &data, data_digest)
                .unwrap();
            extents += 1;
        }
        made += 1;
        store.commit_epoch(spec(made), Offered::AsPoint).unwrap();
        store.apply_all(&disks, BUDGET).unwrap();
        if made.is_multiple_of(500) {
            eprintln!(
                "{made} epochs, {} segments, {:.0} s",
                store.segments().len(),
                started.elapsed().as_secs_f64()
            );
        }
    }
    drop(store);
    let (store, plain, _) = open(&folder, &NoCatalogue);
    let bytes = store.status().used;
    let summaries = Summaries(
        store
            .sealed_segments()
            .into_iter()
            .map(|seq| (seq, store.summary(seq).unwrap()))
            .collect(),
    );
    let summary_bytes: usize = summaries.0.values().map(Vec::len).sum();
    drop(store);
    let (store, quick, used) = open(&folder, &summaries);
    println!(
        "segments={} log_gib={:.1} points={} extents_sent={extents} open_by_footers_s={plain:.2} \
         open_by_summaries_s={quick:.2} summaries={used} summary_mib={:.1}",
        store.segments().len(),
        bytes as f64 / f64::from(1 << 30),
        store.points().count(),
        summary_bytes as f64 / f64::from(1 << 20),
    );
}
