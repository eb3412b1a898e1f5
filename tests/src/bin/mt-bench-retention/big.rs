//! A store of very many segments and points, whose data are holes.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use mt_retention::files::FileStorage;
use mt_retention::{
    BLOCK_SIZE, Consistency, CreateOptions, Disk, DiskIndex, ObjectName, Offered, PointSpec,
    SEGMENT_SIZE_DEFAULT, Storage, StorageError, Store, TargetDisk, digest,
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
        let file = std::fs::File::create_new(self.folder.join(object.to_string()))
            .expect("the folder can be written");
        file.set_len(len).expect("the folder can be written");
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

fn spec(number: u64, of: u64) -> PointSpec {
    // As young as they can be, one a second: no policy thins them.
    let age = i64::try_from(of - number).expect("few points") * 1000;
    let time = Timestamp::now().as_millisecond() - age;
    PointSpec {
        consistency: Consistency::Crash,
        source_time_ms: time,
        received_time_ms: time,
        name: format!("point {number}"),
        tags: vec!["by=bench".to_owned()],
    }
}

/// Makes the store in `folder` for a disk with this SCSI ID and size, as an agent takes it over; answers how many bytes its log has.
pub fn make(folder: &Path, disk_id: &str, size: u64, segments: u64, points: u64) -> u64 {
    std::fs::create_dir_all(folder).expect("the folder can be written");
    let disk = Nowhere(size);
    let storage = Sparse {
        folder: folder.to_owned(),
        files: FileStorage::open(folder).expect("the folder can be read"),
    };
    let options = CreateOptions {
        uuid: *b"a very big store",
        generation: 1,
        disks: vec![Disk {
            id: disk_id.to_owned(),
            size,
        }],
        segment_size: SEGMENT_SIZE_DEFAULT,
        capacity: 0,
        initial_point: None,
    };
    let mut store = Store::create(storage, options).expect("the folder is empty");
    // What is left out cannot be read back: it has to be in memory until it is applied.
    store.set_memory(usize::try_from(BUDGET).expect("it fits"));
    // And as long as it says.
    store.set_packing(false);
    let data = vec![FILL; EXTENT_BLOCKS * BLOCK_SIZE];
    let data_digest = digest(&data);
    let places = size / data.len() as u64;
    // As many bytes an epoch as bring segments and points to their ends together; before-images are as much again.
    let extents = (segments * SEGMENT_SIZE_DEFAULT / points / 2 / data.len() as u64).max(1);
    let mut state = 1_u64;
    for number in 1..=points {
        store.begin_epoch().expect("no epoch is open");
        for _ in 0..extents {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let place = (state >> 20) % places;
            store
                .write(DiskIndex(0), place * data.len() as u64, &data, data_digest)
                .expect("there is room");
        }
        store
            .commit_epoch(spec(number, points), Offered::AsPoint)
            .expect("the volume works");
        store
            .apply_all(&[&disk], BUDGET)
            .expect("this disk takes everything");
        if number.is_multiple_of(1000) {
            eprintln!("{number} of {points} points, {} segments", store.segments().len());
        }
    }
    store.status().used
}
