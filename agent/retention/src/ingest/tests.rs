use super::*;
use crate::testing::{SimDisk, SimStorage};
use crate::{Consistency, CreateOptions, Disk, OpenOptions, SEGMENT_SIZE_MIN, TargetDisk, digest};

const SIZE: u64 = 1 << 20;

fn spec() -> PointSpec {
    PointSpec {
        consistency: Consistency::Crash,
        source_time_ms: 0,
        received_time_ms: 0,
        name: String::new(),
        tags: Vec::new(),
    }
}

/// What broke: every epoch that was given up was remembered for ever, with eight bytes in the header of every segment; a source
/// whose line breaks once a minute made headers grow by half a megabyte a month. Epochs are given up, with and without
/// content, among others that are complete; in the end only those are remembered of which the log holds something, none of
/// them counts after a crash either, and when their segments are gone nothing is remembered.
#[test]
fn epochs_that_were_given_up_are_not_remembered_for_ever() {
    let disk = SimDisk::new(usize::try_from(SIZE).unwrap());
    let disks: [&dyn TargetDisk; 1] = [&disk];
    let table = vec![Disk {
        id: "naa.1".to_owned(),
        size: SIZE,
    }];
    let storage = SimStorage::new();
    let mut store = Store::create(
        storage.clone(),
        CreateOptions {
            uuid: [3; 16],
            generation: 1,
            disks: table.clone(),
            segment_size: SEGMENT_SIZE_MIN,
            capacity: 0,
            initial_point: None,
        },
    )
    .unwrap();
    let block = |byte: u8| vec![byte; BLOCK_SIZE];
    for round in 0..300_u32 {
        let byte = u8::try_from(round % 250).unwrap() + 1;
        // Larger than one record, so that it reaches the log before it is given up.
        let lost = vec![255; crate::codec::usize_of(SEGMENT_SIZE_MIN / 4)];
        store.begin_epoch().unwrap();
        for at in 0..2 {
            store
                .write(DiskIndex(0), at * u64_of(lost.len()), &lost, digest(&lost))
                .unwrap();
        }
        store.abort_epoch();
        store.begin_epoch().unwrap();
        store.abort_epoch();
        store.begin_epoch().unwrap();
        store
            .write(DiskIndex(0), 0, &block(byte), digest(&block(byte)))
            .unwrap();
        store.commit_epoch(spec(), Offered::AsPoint).unwrap();
        store.apply_all(&disks, 1 << 20).unwrap();
        let old: Vec<EpochNumber> = store.points().rev().skip(3).map(|point| point.epoch).collect();
        store.drop_points(&old).unwrap();
        store.reclaim(100).unwrap();
    }
    let most = 2 * 12 * store.log.segments.len();
    assert!(
        store.state.aborted.len() <= most,
        "{} are remembered of 600, and the log has {} segments",
        store.state.aborted.len(),
        store.log.segments.len()
    );
    drop(store);
    let options = OpenOptions {
        disks: Some(table),
        capacity: 0,
    };
    let (mut store, report) = Store::open(storage, options).unwrap();
    assert!(report.damage.is_empty(), "{report:?}");
    let mut found = block(0);
    let newest = store.committed();
    store
        .read_at(newest, DiskIndex(0), 0, &mut found, &disks)
        .unwrap();
    assert_eq!(found, block(50), "the newest that was complete");
    store
        .read_at(newest, DiskIndex(0), 4096, &mut found, &disks)
        .unwrap();
    assert_eq!(found, block(0), "nothing of what was given up");
}
