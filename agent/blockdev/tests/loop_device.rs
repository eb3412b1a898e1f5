//! `BlockDevice` on real loop devices, a real full file system and a real failing flush.

use std::path::Path;

use mt_blockdev::buffer::AlignedBuf;
use mt_blockdev::device::{Access, BlockDevice, DeviceOp, OpenOptions, ZeroMethod};
use mt_blockdev::ioctl::{self, InquiryError};
use nix::errno::Errno;

mod support;
use support::{Loop, Mount, image, program_or_skip, root_or_skip, run, scratch};

const RW: OpenOptions = OpenOptions {
    access: Access::ReadWrite,
    exclusive: false,
};
const RO: OpenOptions = OpenOptions {
    access: Access::ReadOnly,
    exclusive: false,
};
const EXCLUSIVE: OpenOptions = OpenOptions {
    access: Access::ReadWrite,
    exclusive: true,
};

fn filled(len: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    buf.fill(byte);
    buf
}

#[test]
fn root_a_loop_device_is_read_written_zeroed_and_asked() {
    if !root_or_skip("root_a_loop_device_is_read_written_zeroed_and_asked") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", 16 << 20);
    let device_file = Loop::attach(&file, &[]);
    let device = BlockDevice::open(&device_file.path, EXCLUSIVE).unwrap();
    assert_eq!((device.size(), device.logical_block_size()), (16 << 20, 512));
    assert!(device.is_block_device() && device.is_direct() && device.rdev().is_some() && !device.read_only());
    assert!(device.physical_block_size() >= 512);

    device.write_all_at(&filled(2 << 20, 0xee), 1 << 20).unwrap();
    assert_eq!(
        device.zero_range((1 << 20) + 4096, 1 << 20).unwrap(),
        ZeroMethod::BlkZeroOut
    );
    device.flush().unwrap();
    let content = std::fs::read(&file).unwrap();
    assert_eq!(content.len(), 16 << 20);
    for (index, byte) in content.iter().enumerate() {
        let written = ((1 << 20)..(3 << 20)).contains(&index);
        let zeroed = ((1 << 20) + 4096..(2 << 20) + 4096).contains(&index);
        assert_eq!(*byte, if written && !zeroed { 0xee } else { 0 }, "at {index:#x}");
    }
    let mut back = vec![0_u8; 1000];
    device.read_exact_at(&mut back, (1 << 20) + 3600).unwrap();
    assert!(back[..496].iter().all(|b| *b == 0xee) && back[496..].iter().all(|b| *b == 0));

    assert!(
        device.write_all_at(&filled(512, 1), 16 << 20).is_err(),
        "behind the end"
    );
    assert!(
        device.write_all_at(&filled(512, 1), 100).is_err(),
        "not on a block"
    );
    assert_eq!(device.next_data(4096).unwrap(), Some(4096));
    assert_eq!(ioctl::inquiry(&device, Some(0x83)), Err(InquiryError::NotScsi));
    assert_eq!(ioctl::inquiry(&device, None), Err(InquiryError::NotScsi));
    // A loop device attached without partition scan has no table to read again.
    assert_eq!(ioctl::reread_partitions(&device), Err(Errno::EINVAL));
}

#[test]
fn root_a_device_with_4096_byte_blocks_wants_whole_blocks() {
    if !root_or_skip("root_a_device_with_4096_byte_blocks_wants_whole_blocks") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", 8 << 20);
    let device_file = Loop::attach(&file, &["--sector-size", "4096"]);
    let device = BlockDevice::open(&device_file.path, RW).unwrap();
    assert_eq!(device.logical_block_size(), 4096);
    assert!(device.write_all_at(&filled(512, 1), 512).is_err());
    device.write_all_at(&filled(4096, 0x11), 4096).unwrap();
    let mut back = [0_u8; 10];
    device.read_exact_at(&mut back, 4091).unwrap();
    assert_eq!(back, [0, 0, 0, 0, 0, 0x11, 0x11, 0x11, 0x11, 0x11]);
}

#[test]
fn root_a_read_only_device_says_so_and_cannot_be_written() {
    if !root_or_skip("root_a_read_only_device_says_so_and_cannot_be_written") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", 1 << 20);
    let device_file = Loop::attach(&file, &["--read-only"]);
    let device = BlockDevice::open(&device_file.path, RO).unwrap();
    assert!(device.read_only());
    // Whether the kernel refuses the open or the write, nothing arrives.
    if let Ok(device) = BlockDevice::open(&device_file.path, RW) {
        device.write_all_at(&filled(512, 1), 0).unwrap_err();
    }
    assert!(std::fs::read(&file).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn root_an_exclusive_open_fails_while_the_disk_is_mounted_and_keeps_mounts_away() {
    let test = "root_an_exclusive_open_fails_while_the_disk_is_mounted_and_keeps_mounts_away";
    if !root_or_skip(test) || !program_or_skip(test, "mkfs.ext4") {
        return;
    }
    let dir = scratch();
    let file = image(dir.path(), "disk.img", 16 << 20);
    let device_file = Loop::attach(&file, &[]);
    run("mkfs.ext4", &["-q", device_file.text()]);
    let mount = Mount::new(device_file.text(), &dir.path().join("mnt"), &[]);
    let err = BlockDevice::open(&device_file.path, EXCLUSIVE).unwrap_err();
    assert!(
        err.is_busy() && err.op() == DeviceOp::Open,
        "{err}: {}",
        err.io_error()
    );
    drop(mount);

    let held = BlockDevice::open(&device_file.path, EXCLUSIVE).unwrap();
    assert!(
        BlockDevice::open(&device_file.path, EXCLUSIVE)
            .unwrap_err()
            .is_busy()
    );
    let status = std::process::Command::new("/usr/bin/mount")
        .args([device_file.text(), dir.path().join("mnt").to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "a mount must fail while the disk is held");
    drop(held);
    BlockDevice::open(&device_file.path, EXCLUSIVE).unwrap();
}

/// What is at stake: the kernel reports a lost write to one `fsync` and then forgets it. So a program that
/// flushes again is told that all is well, although the data is gone. The scene: a file on a file system on
/// a loop device whose own backing file cannot grow any more, because the memory file system under it is
/// full. Writing goes to the page cache and works; the flush fails; room is made; now the kernel says yes to
/// a flush, which is shown by asking it past the latch, and our device must still say no.
#[test]
fn root_a_failed_flush_latches_though_the_kernel_would_say_yes_the_second_time() {
    let test = "root_a_failed_flush_latches_though_the_kernel_would_say_yes_the_second_time";
    if !root_or_skip(test) || !program_or_skip(test, "mkfs.ext4") {
        return;
    }
    let dir = scratch();
    let memory = Mount::new(
        "tmpfs",
        &dir.path().join("memory"),
        &["-t", "tmpfs", "-o", "size=24m"],
    );
    let backing = image(&memory.at, "backing.img", 64 << 20);
    let device_file = Loop::attach(&backing, &[]);
    // No journal and no lazy work of the kernel: the only write that can fail is the test's own.
    run(
        "mkfs.ext4",
        &[
            "-q",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=0",
            device_file.text(),
        ],
    );
    let mount = Mount::new(
        device_file.text(),
        &dir.path().join("mnt"),
        &["-o", "errors=continue"],
    );
    // A size that is no multiple of a block makes the device take the page cache.
    let file = image(&mount.at, "disk.img", (16 << 20) + 1);
    // Give the file its blocks now, so that only the data has to be written later.
    run("fallocate", &["--length", "16777217", file.to_str().unwrap()]);
    run("sync", &["--file-system", file.to_str().unwrap()]);

    let device = BlockDevice::open(&file, RW).unwrap();
    assert!(!device.is_direct());
    let witness = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .unwrap();
    let filler = memory.at.join("filler");
    fill(&filler);

    device.write_all_at(&filled(8 << 20, 0x77), 0).unwrap();
    let err = device.flush().unwrap_err();
    assert_eq!(err.op(), DeviceOp::Flush);
    assert!(
        !err.is_latched() && device.is_latched(),
        "{err}: {}",
        err.io_error()
    );
    assert!(witness.sync_data().is_err(), "every open file is told once");

    std::fs::remove_file(&filler).unwrap();
    witness
        .sync_data()
        .expect("the kernel has forgotten the loss: this is why the device latches");
    let err = device.flush().unwrap_err();
    assert!(err.is_latched(), "{err}");
    assert!(err.to_string().ends_with(
        "an earlier flush failed, nothing is written until the disk is opened again and resynced"
    ));
    assert!(
        device
            .write_all_at(&filled(512, 0x78), 0)
            .unwrap_err()
            .is_latched()
    );
    assert!(device.zero_range(0, 512).unwrap_err().is_latched());
    device.read_exact_at(&mut [0_u8; 16], 0).expect("reading goes on");
    // A new open starts afresh.
    let device = BlockDevice::open(&file, RW).unwrap();
    device.write_all_at(&filled(512, 0x79), 0).unwrap();
    device.flush().unwrap();
}

/// Writes until there is no room.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("the memory file system is mounted");
    while file.write_all(&[0xaa; 4096]).is_ok() {}
}

#[test]
fn root_a_full_datastore_is_told_from_other_errors() {
    let test = "root_a_full_datastore_is_told_from_other_errors";
    if !root_or_skip(test) {
        return;
    }
    let dir = scratch();
    let memory = Mount::new(
        "tmpfs",
        &dir.path().join("memory"),
        &["-t", "tmpfs", "-o", "size=1m"],
    );
    let file = image(&memory.at, "disk.img", 8 << 20);
    let device = BlockDevice::open(&file, RW).unwrap();
    let err = device.write_all_at(&filled(4 << 20, 1), 0).unwrap_err();
    assert!(err.is_no_space(), "{err}: {}", err.io_error());
    assert!(!device.is_latched(), "a failed write is not a failed flush");
}
