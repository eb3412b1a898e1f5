use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::*;

const SIZE: u64 = 8 << 20;

fn disk() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    file
}

/// An ext2 superblock as far as libblkid looks at it.
fn write_ext2(file: &File, at: u64, label: &[u8]) {
    let mut superblock = [0_u8; 1024];
    superblock[0x04..0x08].copy_from_slice(&1024_u32.to_le_bytes());
    superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
    superblock[0x4c..0x50].copy_from_slice(&1_u32.to_le_bytes());
    superblock[0x68..0x78].copy_from_slice(&[0x11; 16]);
    superblock[0x78..0x78 + label.len()].copy_from_slice(label);
    file.write_all_at(&superblock, at + 1024).unwrap();
}

/// An MBR with these primary partitions: (type, first sector, sectors).
fn write_mbr(file: &File, partitions: &[(u8, u32, u32)]) {
    let mut sector = [0_u8; 512];
    for (index, (kind, start, count)) in partitions.iter().enumerate() {
        let entry = &mut sector[446 + index * 16..462 + index * 16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&count.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&sector, 0).unwrap();
}

#[test]
fn an_empty_disk_is_empty() {
    let content = probe(disk(), SIZE).unwrap();
    assert!(content.is_empty(), "{content:?}");
    assert_eq!(content.summary(), "empty");
    assert!(probe(tempfile::tempfile().unwrap(), 0).unwrap().is_empty());
}

#[test]
fn a_file_system_on_the_whole_disk_is_seen_with_label_and_uuid() {
    let file = disk();
    write_ext2(&file, 0, b"root\x1b[2J");
    let signature = probe(&file, SIZE).unwrap().signature.unwrap();
    assert_eq!(
        (signature.kind.as_str(), signature.usage),
        ("ext2", Usage::Filesystem)
    );
    assert_eq!(
        signature.uuid.as_deref(),
        Some("11111111-1111-1111-1111-111111111111")
    );
    let label = signature.label.unwrap();
    assert!(
        label.starts_with("root") && !label.chars().any(char::is_control),
        "{label:?}"
    );
}

#[test]
fn partitions_are_found_and_probed_without_the_kernel_knowing_them() {
    let file = disk();
    write_mbr(&file, &[(0x83, 2048, 4096), (0x82, 8192, 4096)]);
    write_ext2(&file, 2048 * 512, b"boot");
    let mut swap = [0_u8; 4096];
    swap[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    swap[1028..1032].copy_from_slice(&1023_u32.to_le_bytes());
    swap[4086..].copy_from_slice(b"SWAPSPACE2");
    file.write_all_at(&swap, 8192 * 512).unwrap();

    let content = probe(&file, SIZE).unwrap();
    assert_eq!(content.table.as_deref(), Some("dos"));
    let rows: Vec<_> = content
        .partitions
        .iter()
        .map(|p| {
            (
                p.number,
                p.start,
                p.size,
                p.partition_type.as_deref(),
                p.signature.as_ref().map(|s| s.kind.as_str()),
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            (1, 1 << 20, 2 << 20, Some("0x83"), Some("ext2")),
            (2, 4 << 20, 2 << 20, Some("0x82"), Some("swap"))
        ]
    );
    assert_eq!(content.summary(), "dos, 2 partitions (ext2, swap)");
    assert!(!content.is_empty());
}

#[test]
fn a_table_that_points_behind_the_disk_is_still_a_table() {
    let file = disk();
    write_mbr(&file, &[(0x83, 2048, 0xffff_0000), (0x83, 0xffff_0000, 0x1000)]);
    let content = probe(&file, SIZE).unwrap();
    assert!(!content.is_empty(), "{content:?}");
}

#[test]
fn lvm_and_luks_are_told_by_name() {
    let file = disk();
    let mut label = [0_u8; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8..16].copy_from_slice(&1_u64.to_le_bytes());
    label[20..24].copy_from_slice(&32_u32.to_le_bytes());
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"abcdefabcdefabcdefabcdefabcdefab");
    file.write_all_at(&label, 512).unwrap();
    let signature = probe(&file, SIZE).unwrap().signature.unwrap();
    assert_eq!(
        (signature.kind.as_str(), signature.usage),
        ("LVM2_member", Usage::Raid)
    );

    let file = disk();
    let mut luks = [0_u8; 592];
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    luks[168..204].copy_from_slice(b"11111111-2222-3333-4444-555555555555");
    file.write_all_at(&luks, 0).unwrap();
    let signature = probe(&file, SIZE).unwrap().signature.unwrap();
    assert_eq!(
        (signature.kind.as_str(), signature.usage),
        ("crypto_LUKS", Usage::Crypto)
    );
}

#[test]
fn contents_that_contradict_each_other_count_as_content() {
    let file = disk();
    write_ext2(&file, 0, b"old");
    let mut swap = [0_u8; 4096];
    swap[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    file.write_all_at(b"SWAPSPACE2", 4086).unwrap();
    // XFS magic would hit the boot sector; swap and ext2 do not overlap.
    let content = probe(&file, SIZE).unwrap();
    assert!(!content.is_empty(), "{content:?}");
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_an_empty_disk() {
    let file = disk();
    let err = probe(&file, SIZE + 4096).unwrap_err();
    assert!(
        matches!(err, ProbeError::Read { offset, .. } if offset == SIZE),
        "{err}"
    );
    let dir = tempfile::tempdir().unwrap();
    let write_only = File::create(dir.path().join("x")).unwrap();
    write_only.set_len(SIZE).unwrap();
    assert!(matches!(
        probe(&write_only, SIZE),
        Err(ProbeError::Read { offset: 0, .. })
    ));
}

#[test]
fn probing_changes_nothing() {
    let file = disk();
    write_mbr(&file, &[(0x83, 2048, 4096)]);
    write_ext2(&file, 2048 * 512, b"x");
    let read = || {
        let mut bytes = vec![0_u8; usize::try_from(SIZE).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = read();
    probe(&file, SIZE).unwrap();
    assert!(read() == before);
}

#[test]
fn data_that_nobody_knows_is_not_called_empty() {
    let size = 8 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    assert!(probe(&file, size).unwrap().is_empty());
    for offset in [0, 4095, size - 1, size / SAMPLES * 7] {
        std::os::unix::fs::FileExt::write_at(&file, &[0x5a], offset).unwrap();
        let content = probe(&file, size).unwrap();
        assert!(content.unrecognised && !content.is_empty(), "a byte at {offset}");
        assert_eq!(content.summary(), "data of an unknown kind");
        std::os::unix::fs::FileExt::write_at(&file, &[0], offset).unwrap();
    }
    assert!(probe(&file, size).unwrap().is_empty());
}
