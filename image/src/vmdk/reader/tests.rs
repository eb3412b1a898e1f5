// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reader against files of the writer, against the footer layout, and against damage.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::super::descriptor::{NewDescriptor, TOOLS_VERSION_UNKNOWN};
use super::super::grain::{GrainCompressor, grain_digest};
use super::super::marker::{END_OF_STREAM, grain_marker};
use super::super::writer::{self, WriteOptions};
use super::*;

/// Collects a disk in memory.
struct Disk(Vec<u8>);

impl GrainTaker for Disk {
    fn take(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Collects only the grains that are there.
#[derive(Default, PartialEq)]
struct Grains(Vec<(u64, Vec<u8>)>);

impl GrainTaker for Grains {
    fn take(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.push((offset, data.to_vec()));
        Ok(())
    }
}

fn options(threads: usize) -> WriteOptions {
    WriteOptions {
        level: 6,
        threads,
        extent_name: "disk1.vmdk".into(),
        tools_version: TOOLS_VERSION_UNKNOWN,
    }
}

fn vmdk_of(raw: &[u8], threads: usize) -> (Vec<u8>, writer::WriteSummary) {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(raw).unwrap();
    vmdk_of_file(&input, raw.len() as u64, threads)
}

fn vmdk_of_file(input: &File, size: u64, threads: usize) -> (Vec<u8>, writer::WriteSummary) {
    let output = tempfile::tempfile().unwrap();
    let summary = writer::write(input, size, &output, &options(threads), &mut |_| {}).unwrap();
    let mut bytes = vec![0u8; usize::try_from(output.metadata().unwrap().len()).unwrap()];
    output.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(summary.file_size, bytes.len() as u64);
    (bytes, summary)
}

fn disk_of(vmdk: &[u8]) -> (VmdkReport, Vec<u8>) {
    let probe = read(vmdk, &mut Discard).unwrap();
    let mut disk = Disk(vec![0u8; usize::try_from(probe.capacity.min(1 << 28)).unwrap()]);
    let report = read(vmdk, &mut disk).unwrap();
    (report, disk.0)
}

/// A disk with data in the first and second table, a hole between, and incompressible bytes.
fn sample_disk() -> Vec<u8> {
    let mut raw = vec![0u8; 40 << 20];
    for (index, byte) in raw[70_000..200_000].iter_mut().enumerate() {
        *byte = u8::try_from(index % 251).unwrap();
    }
    for (index, byte) in raw[(36 << 20)..(36 << 20) + 70_000].iter_mut().enumerate() {
        let mixed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *byte = mixed.to_le_bytes()[7];
    }
    raw
}

/// Writes the same disk in the layout of VMware's text: tables in the stream, footer at the end.
fn footer_layout(raw: &[u8]) -> Vec<u8> {
    let capacity = raw.len() as u64 / 512;
    let mut hasher = ContentHasher::new(capacity);
    let mut body = Vec::new();
    let mut directory = vec![0u8; usize::try_from(directory_sectors(capacity) * 512).unwrap()];
    let sector_of = |body: &Vec<u8>| u32::try_from(128 + body.len() / 512).unwrap();
    for (table, tables) in raw.chunks(512 * GRAIN_SIZE).enumerate() {
        let mut entries = vec![0u8; 2048];
        for (index, grain) in tables.chunks(GRAIN_SIZE).enumerate() {
            if is_zero(grain) {
                continue;
            }
            entries[index * 4..index * 4 + 4].copy_from_slice(&sector_of(&body).to_le_bytes());
            let packed = GrainCompressor::new(6).compress(grain).unwrap().to_vec();
            let lba = (table * 512 + index) as u64 * GRAIN_SECTORS;
            hasher.add(lba, &grain_digest(grain));
            body.extend_from_slice(&grain_marker(lba, u32::try_from(packed.len()).unwrap()));
            body.extend_from_slice(&packed);
            body.resize(body.len().next_multiple_of(512), 0);
        }
        if !is_zero(&entries) {
            body.extend_from_slice(&metadata_marker(4, 1));
            directory[table * 4..table * 4 + 4].copy_from_slice(&sector_of(&body).to_le_bytes());
            body.extend_from_slice(&entries);
        }
    }
    body.extend_from_slice(&metadata_marker(directory.len() as u64 / 512, 2));
    let directory_at = u64::from(sector_of(&body));
    body.extend_from_slice(&directory);
    let mut header = SparseHeader {
        flags: 0x30001,
        capacity_sectors: capacity,
        descriptor_sectors: 20,
        redundant_directory: 0,
        directory: DIRECTORY_AT_END,
        overhead: 128,
    };
    let mut file = header.encode().to_vec();
    let descriptor = NewDescriptor {
        capacity_sectors: capacity,
        content_id: hasher.finish(),
        extent_name: "disk1.vmdk",
        tools_version: TOOLS_VERSION_UNKNOWN,
    };
    file.extend_from_slice(&descriptor.encode().unwrap());
    file.resize(128 * 512, 0);
    file.extend_from_slice(&body);
    header.directory = directory_at;
    file.extend_from_slice(&metadata_marker(1, 3));
    file.extend_from_slice(&header.encode());
    file.extend_from_slice(&END_OF_STREAM);
    file
}

fn metadata_marker(sectors: u64, kind: u8) -> [u8; SECTOR_SIZE] {
    let mut marker = [0u8; SECTOR_SIZE];
    marker[..8].copy_from_slice(&sectors.to_le_bytes());
    marker[12] = kind;
    marker
}

#[test]
fn what_is_written_is_read_back() {
    let raw = sample_disk();
    let (vmdk, summary) = vmdk_of(&raw, 2);
    let (report, disk) = disk_of(&vmdk);
    assert_eq!(report.faults, []);
    assert_eq!(report.layout, Some(Layout::Front));
    assert_eq!(report.grains, summary.grains);
    assert!(report.content_id_matches);
    assert!(disk == raw, "the disk differs");
}

#[test]
fn threads_and_repetition_do_not_change_the_bytes() {
    let raw = sample_disk();
    let (one, _) = vmdk_of(&raw, 1);
    assert!(
        one == vmdk_of(&raw, 5).0,
        "the number of threads changed the file"
    );
    assert!(one == vmdk_of(&raw, 1).0, "a repetition changed the file");
}

#[test]
fn the_footer_layout_is_read() {
    let raw = sample_disk();
    let (report, disk) = disk_of(&footer_layout(&raw));
    assert_eq!(report.faults, []);
    assert_eq!(report.layout, Some(Layout::Footer));
    assert!(
        report.content_id_matches,
        "the identity must not depend on the layout"
    );
    assert!(disk == raw, "the disk differs");
}

#[test]
fn sizes_that_are_no_whole_grains_are_rounded_up() {
    let raw = vec![9u8; 65_536 + 512];
    let (vmdk, summary) = vmdk_of(&raw, 1);
    assert_eq!(summary.capacity_sectors, 256);
    assert_eq!(summary.padding_bytes, 65_024);
    let (report, disk) = disk_of(&vmdk);
    assert_eq!(report.faults, []);
    assert_eq!(&disk[..raw.len()], &raw[..]);
    assert!(is_zero(&disk[raw.len()..]));
}

#[test]
fn sizes_that_no_disk_has_are_refused() {
    for size in [0, 1, 511, 513, 65_535, 200_000] {
        assert!(writer::check_size(size).is_err(), "{size}");
    }
    for size in [512, 65_536, 66_048, 62 << 40] {
        assert_eq!(writer::check_size(size), Ok(()), "{size}");
    }
    assert!(writer::check_size((62 << 40) + 512).is_err());
    assert!(writer::check_size(u64::MAX).is_err());
}

#[test]
fn holes_are_not_read() {
    let mut input = tempfile::tempfile().unwrap();
    input.set_len(64 << 30).unwrap();
    input.seek(SeekFrom::Start(40 << 30)).unwrap();
    input.write_all(b"here").unwrap();
    let (vmdk, summary) = vmdk_of_file(&input, 64 << 30, 2);
    assert_eq!(summary.grains, 1);
    assert!(
        summary.skipped_bytes > (63 << 30),
        "{} bytes skipped",
        summary.skipped_bytes
    );
    assert_eq!(read(&vmdk[..], &mut Discard).unwrap().faults, []);
}

#[test]
fn an_empty_disk_still_ends_with_the_marker() {
    let (vmdk, summary) = vmdk_of(&vec![0u8; 1 << 20], 1);
    assert_eq!(summary.grains, 0);
    assert_eq!(vmdk[vmdk.len() - 512..], END_OF_STREAM);
    assert_eq!(read(&vmdk[..], &mut Discard).unwrap().faults, []);
}

#[test]
fn bytes_behind_the_end_are_a_fault() {
    let (mut vmdk, _) = vmdk_of(&sample_disk(), 1);
    vmdk.extend_from_slice(&[0; 512]);
    let report = read(&vmdk[..], &mut Discard).unwrap();
    assert_eq!(report.faults.len(), 1);
    assert_eq!(report.faults[0].code, "after-end");
    assert!(
        report.faults[0].text.starts_with("512 bytes follow"),
        "{}",
        report.faults[0]
    );
}

#[test]
fn every_shorter_file_is_a_fault() {
    let (vmdk, _) = vmdk_of(&sample_disk(), 1);
    for len in (0..vmdk.len())
        .step_by(509)
        .chain([vmdk.len() - 1, vmdk.len() - 512])
    {
        let report = read(&vmdk[..len], &mut Discard).unwrap();
        assert!(!report.faults.is_empty(), "cut to {len} bytes went unnoticed");
    }
}

/// Header, tables, markers, padding: a flipped byte anywhere is a fault. Descriptor and deflate streams have bits that
/// say nothing about the disk; flips there must be faults or leave the disk as it is.
fn every_flip_is_noticed(good: &[u8]) {
    let mut undamaged = Grains::default();
    let capacity = read(good, &mut undamaged).unwrap().capacity;
    let in_data = compressed_data(good);
    assert_eq!(in_data.len(), undamaged.0.len());
    for at in 0..good.len() {
        // All bytes of metadata, a sample of the compressed data.
        if at > 60_000 && at % 61 != 0 && at + 4096 < good.len() {
            continue;
        }
        let mut bad = good.to_vec();
        bad[at] ^= 1 << (at % 8);
        let mut grains = Grains::default();
        let report = read(&bad[..], &mut grains).unwrap();
        let may_keep_the_disk =
            (512..21 * 512).contains(&at) || in_data.iter().any(|data| data.contains(&at));
        let same = report.capacity == capacity && grains == undamaged;
        assert!(
            !report.faults.is_empty() || (may_keep_the_disk && same),
            "flipped byte {at:#x} went unnoticed"
        );
    }
}

/// Where the compressed data of a file is, found without the reader under test.
fn compressed_data(vmdk: &[u8]) -> Vec<std::ops::Range<usize>> {
    let overhead = usize::try_from(u32_at(vmdk, 64)).unwrap();
    let mut at = overhead * 512;
    let mut found = Vec::new();
    while at < vmdk.len() {
        let size = usize::try_from(u32_at(vmdk, at + 8)).unwrap();
        if size > 0 {
            found.push(at + 12..at + 12 + size);
            at += (12 + size).next_multiple_of(512);
        } else {
            at += 512 + usize::try_from(u32_at(vmdk, at)).unwrap() * 512;
        }
    }
    found
}

#[test]
fn every_flipped_byte_is_noticed_with_tables_in_front() {
    every_flip_is_noticed(&vmdk_of(&small_disk(), 1).0);
}

#[test]
fn every_flipped_byte_is_noticed_with_a_footer() {
    every_flip_is_noticed(&footer_layout(&small_disk()));
}

/// Two tables, so that the directory has something to say, and little data, so that every byte can be tried.
fn small_disk() -> Vec<u8> {
    let mut raw = vec![0u8; 33 << 20];
    raw[1000] = 1;
    raw[300_000..300_200].fill(0x55);
    raw[(32 << 20) + 5] = 7;
    raw
}

#[test]
fn grains_out_of_order_are_a_fault() {
    let raw = small_disk();
    let good = footer_layout(&raw);
    let mut bad = good.clone();
    // The first two grains have one-sector records at sectors 128 and 129: exchange them.
    bad[128 * 512..129 * 512].copy_from_slice(&good[129 * 512..130 * 512]);
    bad[129 * 512..130 * 512].copy_from_slice(&good[128 * 512..129 * 512]);
    let report = read(&bad[..], &mut Discard).unwrap();
    assert!(
        report.faults.iter().any(|fault| fault.code == "order"),
        "{:?}",
        report.faults
    );
}

#[test]
fn progress_markers_of_vsphere_are_skipped() {
    let good = footer_layout(&vec![0u8; 1 << 20]);
    let mut with_progress = good[..128 * 512].to_vec();
    with_progress.extend_from_slice(&metadata_marker(0, 4));
    with_progress.extend_from_slice(&good[128 * 512..]);
    // The directory has moved by a sector, which the footer must say.
    let footer_at = with_progress.len() - 1024;
    let moved = u32_at(&with_progress, footer_at + 56) + 1;
    with_progress[footer_at + 56..footer_at + 60].copy_from_slice(&moved.to_le_bytes());
    assert_eq!(read(&with_progress[..], &mut Discard).unwrap().faults, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_disk_round_trips(
        sectors in 1usize..2_000,
        writes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1usize..70_000), 0..12),
        threads in 1usize..4,
    ) {
        let mut raw = vec![0u8; sectors * 512];
        for (at, byte, len) in writes {
            let at = at.index(raw.len());
            let end = raw.len().min(at + len);
            raw[at..end].fill(byte);
        }
        let (vmdk, _) = vmdk_of(&raw, threads);
        let (report, disk) = disk_of(&vmdk);
        prop_assert_eq!(report.faults, vec![]);
        prop_assert!(disk[..raw.len()] == raw[..] && is_zero(&disk[raw.len()..]));
    }

    #[test]
    fn any_bytes_are_judged_without_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..8_192),
        keep_header in any::<bool>(),
    ) {
        if keep_header && bytes.len() >= 512 {
            let (vmdk, _) = vmdk_of(&[1u8; 512], 1);
            bytes[..512].copy_from_slice(&vmdk[..512]);
        }
        prop_assert!(!read(&bytes[..], &mut Discard).unwrap().faults.is_empty());
    }

    #[test]
    fn several_damaged_bytes_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        footer in any::<bool>(),
    ) {
        let raw = small_disk();
        let mut bytes = if footer { footer_layout(&raw) } else { vmdk_of(&raw, 1).0 };
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read(&bytes[..], &mut Discard).unwrap();
    }
}
