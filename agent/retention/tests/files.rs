//! A store in a real folder: what was acknowledged is there when it is opened again, and nobody else gets in meanwhile.

mod harness;

use harness::{SIZE, World, disk_index, spec, table};
use mt_retention::files::FileStorage;
use mt_retention::testing::SimDisk;
use mt_retention::{CreateOptions, EpochNumber, Offered, OpenOptions, Store, digest};

#[test]
fn a_folder_holds_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let disks = [SimDisk::new(SIZE), SimDisk::new(SIZE)];
    let targets = World::targets(&disks);
    let block = [9; 4096];
    let storage = FileStorage::open(folder.path()).unwrap();
    let options = CreateOptions {
        uuid: [3; 16],
        generation: 1,
        disks: table(),
        segment_size: 1 << 20,
        capacity: 0,
        initial_point: Some(spec(0)),
    };
    let mut store = Store::create(storage, options).unwrap();
    assert_eq!(
        FileStorage::open(folder.path()).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    store.begin_epoch().unwrap();
    store.write(disk_index(1), 4096, &block, digest(&block)).unwrap();
    let acknowledged = store.commit_epoch(spec(1), Offered::AsPoint).unwrap();
    drop(store);

    let options = OpenOptions {
        disks: Some(table()),
        capacity: 0,
    };
    let (mut store, report) = Store::open(FileStorage::open(folder.path()).unwrap(), options).unwrap();
    assert_eq!((store.committed(), report.to_apply), (acknowledged.epoch, 1));
    assert!(report.damage.is_empty(), "{report:?}");
    store.apply_all(&targets, 1 << 20).unwrap();
    assert_eq!(disks[1].content()[4096..8192], block);
    let mut found = [1; 4096];
    store
        .read_at(EpochNumber(0), disk_index(1), 4096, &mut found, &targets)
        .unwrap();
    assert_eq!(found, [0; 4096]);
}
