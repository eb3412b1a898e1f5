use proptest::prelude::*;

use super::*;

fn record() -> Record {
    let size = ChunkSize::new(70 * 65_536 + 512, 65_536).unwrap();
    let mut changed = ChunkSet::new(size);
    changed.insert(1..3);
    changed.insert(70..71);
    Record {
        state: State::Paused,
        generation: 7,
        boot_id: [0xb0; 16],
        disk: DiskIdentity {
            name: "naa.6000c29a71e0".to_owned(),
            sequence: 9,
        },
        counted: Counted {
            write: 1234,
            discard: 56,
        },
        changed,
    }
}

/// The bytes of version 1. They may never change: a file of an older agent is read by a newer one.
#[test]
fn the_bytes_of_version_1_are_as_documented() {
    let bytes = record().encode().unwrap();
    assert_eq!(bytes.len(), 256 + 16);
    assert_eq!(&bytes[..12], b"MTDIRTY\0\x01\0\x01\0");
    assert_eq!(&bytes[16..24], &7_u64.to_le_bytes());
    assert_eq!(&bytes[24..40], &[0xb0; 16]);
    assert_eq!(&bytes[40..48], &(70 * 65_536_u64 + 512).to_le_bytes());
    assert_eq!(&bytes[48..56], &9_u64.to_le_bytes());
    assert_eq!(&bytes[56..64], &1234_u64.to_le_bytes());
    assert_eq!(&bytes[64..72], &56_u64.to_le_bytes());
    assert_eq!(&bytes[72..76], &65_536_u32.to_le_bytes());
    assert_eq!(&bytes[80..88], &2_u64.to_le_bytes());
    assert_eq!(&bytes[88..96], b"\x10\0\0\0\0\0\0\0");
    assert_eq!(&bytes[96..112], b"naa.6000c29a71e0");
    assert!(bytes[112..256].iter().all(|byte| *byte == 0));
    assert_eq!(
        &bytes[256..],
        &[6, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        &bytes[12..16],
        &0xebfd_6c70_u32.to_le_bytes(),
        "{:02x?}",
        &bytes[12..16]
    );
    assert_eq!(Record::decode(&bytes).unwrap(), record());
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bytes = record().encode().unwrap();
    for index in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[index] ^= flip;
            assert!(Record::decode(&bad).is_err(), "byte {index} flipped by {flip:#x}");
        }
    }
}

#[test]
fn every_other_length_is_noticed() {
    let bytes = record().encode().unwrap();
    for len in 0..bytes.len() {
        assert!(Record::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mut long = bytes;
    long.push(0);
    assert!(matches!(
        Record::decode(&long),
        Err(RecordError::Length { found: 273 })
    ));
}

/// A header with a good checksum and values that nobody writes.
fn forged(change: impl FnOnce(&mut Vec<u8>)) -> Result<Record, RecordError> {
    let mut bytes = record().encode().unwrap();
    change(&mut bytes);
    bytes[12..16].fill(0);
    let checksum = crc32c::crc32c(&bytes[..256]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    Record::decode(&bytes)
}

#[test]
fn values_that_make_no_sense_are_refused_under_a_good_checksum() {
    assert!(forged(|_| ()).is_ok());
    assert!(matches!(
        forged(|bytes| bytes[8] = 2),
        Err(RecordError::Version(2))
    ));
    assert!(matches!(
        forged(|bytes| bytes[10] = 3),
        Err(RecordError::Value("state"))
    ));
    assert!(matches!(
        forged(|bytes| bytes[72] = 1),
        Err(RecordError::Value("size"))
    ));
    assert!(matches!(
        forged(|bytes| bytes[40..48].fill(0)),
        Err(RecordError::Value("size"))
    ));
    assert!(matches!(
        forged(|bytes| bytes[40..48].fill(0xff)),
        Err(RecordError::Value("size"))
    ));
    assert!(matches!(
        forged(|bytes| bytes[88] = 129),
        Err(RecordError::Value("identity"))
    ));
    assert!(matches!(
        forged(|bytes| bytes[96] = 0xff),
        Err(RecordError::Value("identity"))
    ));
    assert!(matches!(
        forged(|bytes| bytes[80..88].fill(0xff)),
        Err(RecordError::Length { .. })
    ));
}

#[test]
fn what_is_too_long_is_not_written() {
    let mut long = record();
    long.disk.name = "x".repeat(129);
    assert!(matches!(long.encode(), Err(RecordError::Value("identity"))));
    long.disk.name = "x".repeat(128);
    assert_eq!(Record::decode(&long.encode().unwrap()).unwrap(), long);
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.dirty");
    assert!(Record::load(&path).unwrap().is_none());
    record().store(&path).unwrap();
    let mut open = record();
    open.state = State::Open;
    open.store(&path).unwrap();
    assert_eq!(Record::load(&path).unwrap(), Some(open));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fs::write(&path, b"short").unwrap();
    assert!(matches!(Record::load(&path), Err(RecordError::Magic)));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Record::decode(&bytes);
        let mut ours = record().encode().unwrap();
        for (place, byte) in ours.iter_mut().skip(16).zip(&bytes) {
            *place = *byte;
        }
        let _ = forged(|forged| *forged = ours);
    }
}
