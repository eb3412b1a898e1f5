use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use super::*;

const RW: OpenOptions = OpenOptions {
    access: Access::ReadWrite,
    exclusive: false,
};
const RO: OpenOptions = OpenOptions {
    access: Access::ReadOnly,
    exclusive: false,
};

/// A file on a real file system (not /tmp, which may be in memory and then says nothing about direct I/O).
fn image(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new()
        .prefix("mt-blockdev-")
        .tempfile_in("/var/tmp")
        .unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap() ^ seed).collect()
}

#[test]
fn what_is_written_is_read_back_and_nothing_else_changes() {
    let file = image(4 << 20);
    file.as_file().write_all_at(&pattern(4 << 20, 0), 0).unwrap();
    let device = BlockDevice::open(file.path(), RW).unwrap();
    assert_eq!((device.size(), device.logical_block_size()), (4 << 20, 512));
    assert!(!device.is_block_device() && device.rdev().is_none() && !device.read_only());

    let mut expected = pattern(4 << 20, 0);
    let data = pattern(BOUNCE_BYTES + 1024, 0x5a);
    // An address one byte out of line takes the way through the aligned buffer, in two pieces.
    let mut unaligned = vec![0_u8; data.len() + 1];
    let shift = usize::from(unaligned.as_ptr().addr().is_multiple_of(2));
    unaligned[shift..shift + data.len()].copy_from_slice(&data);
    device
        .write_all_at(&unaligned[shift..shift + data.len()], 512)
        .unwrap();
    expected[512..512 + data.len()].copy_from_slice(&data);
    device.flush().unwrap();

    assert_eq!(std::fs::read(file.path()).unwrap(), expected);
    let mut back = AlignedBuf::zeroed(4 << 20);
    device.read_exact_at(&mut back, 0).unwrap();
    assert!(*back == *expected);
}

#[test]
fn reads_of_any_offset_and_length_work_with_direct_io() {
    let file = image(3 << 20);
    let content = pattern(3 << 20, 0x33);
    file.as_file().write_all_at(&content, 0).unwrap();
    let device = BlockDevice::open(file.path(), RO).unwrap();
    for (offset, len) in [
        (0, 1),
        (1, 511),
        (511, 2),
        (513, 4096),
        (1, (2 << 20) + 3),
        ((3 << 20) - 1, 1),
        (77, 0),
    ] {
        let mut buf = vec![0_u8; len];
        device
            .read_exact_at(&mut buf, u64::try_from(offset).unwrap())
            .unwrap();
        assert!(buf == content[offset..offset + len], "{len} bytes at {offset}");
    }
}

#[test]
fn nothing_outside_the_device_is_touched() {
    let file = image(8192);
    let device = BlockDevice::open(file.path(), RW).unwrap();
    let buf = AlignedBuf::zeroed(512);
    for offset in [8192, 7936, u64::MAX - 100, u64::MAX] {
        let err = device.write_all_at(&buf, offset).unwrap_err();
        assert_eq!(err.io_error().kind(), io::ErrorKind::InvalidInput, "{offset:#x}");
        assert_eq!(
            (err.op(), err.offset(), err.len_bytes()),
            (DeviceOp::Write, Some(offset), Some(512))
        );
        assert!(device.zero_range(offset, 512).is_err(), "{offset:#x}");
        assert!(
            device.read_exact_at(&mut [0_u8; 512], offset).is_err(),
            "{offset:#x}"
        );
    }
    assert_eq!(
        std::fs::metadata(file.path()).unwrap().len(),
        8192,
        "the file has not grown"
    );
    let err = device.write_all_at(&buf, 8192).unwrap_err();
    assert_eq!(
        err.to_string(),
        format!("cannot write 512 bytes at 0x2000 of {}", file.path().display())
    );
    assert_eq!(
        err.io_error().to_string(),
        "the range is outside the device, which has 8192 bytes"
    );
}

#[test]
fn a_write_that_would_need_its_neighbours_is_refused() {
    let file = image(8192);
    let device = BlockDevice::open(file.path(), RW).unwrap();
    assert!(device.is_direct(), "the file system of /var/tmp has direct I/O");
    for (offset, len) in [(1, 512), (512, 100), (0, 511)] {
        let err = device.write_all_at(&AlignedBuf::zeroed(len), offset).unwrap_err();
        assert_eq!(
            err.io_error().kind(),
            io::ErrorKind::InvalidInput,
            "{len} at {offset}"
        );
    }
    assert!(device.zero_range(1, 511).is_err());
}

#[test]
fn a_file_whose_size_is_no_multiple_of_a_block_works_without_direct_io() {
    let file = image(10_001);
    let device = BlockDevice::open(file.path(), RW).unwrap();
    assert!(!device.is_direct());
    device.write_all_at(b"tail", 9_997).unwrap();
    device.flush().unwrap();
    let mut buf = [0_u8; 5];
    device.read_exact_at(&mut buf, 9_996).unwrap();
    assert_eq!(&buf, b"\0tail");
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 10_001);
}

#[test]
fn zeros_are_zeros_inside_the_range_only() {
    let file = image(1 << 20);
    file.as_file().write_all_at(&vec![0xff; 1 << 20], 0).unwrap();
    let device = BlockDevice::open(file.path(), RW).unwrap();
    let method = device.zero_range(4096 + 512, 65536).unwrap();
    assert!(
        matches!(method, ZeroMethod::ZeroRange | ZeroMethod::PunchHole),
        "{method:?}"
    );
    device.flush().unwrap();
    let content = std::fs::read(file.path()).unwrap();
    assert_eq!(content.len(), 1 << 20);
    for (index, byte) in content.iter().enumerate() {
        let inside = (4608..4608 + 65536).contains(&index);
        assert_eq!(*byte, if inside { 0 } else { 0xff }, "at {index:#x}");
    }
    assert_eq!(device.zero_range(0, 0).unwrap(), ZeroMethod::Written);
}

#[test]
fn a_read_only_open_writes_nothing() {
    let file = image(4096);
    let device = BlockDevice::open(file.path(), RO).unwrap();
    let err = device.write_all_at(&AlignedBuf::zeroed(512), 0).unwrap_err();
    assert_eq!(err.io_error().kind(), io::ErrorKind::PermissionDenied);
    assert!(device.zero_range(0, 512).is_err());
}

#[test]
fn holes_are_found_and_the_data_between_them() {
    let file = image(8 << 20);
    file.as_file().write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.as_file().write_all_at(&[1; 4096], 4 << 20).unwrap();
    file.as_file().sync_all().unwrap();
    let device = BlockDevice::open(file.path(), RO).unwrap();
    let next = |offset| device.next_data(offset).unwrap();
    assert_eq!((next(0), next(1 << 20)), (Some(1 << 20), Some(1 << 20)));
    assert_eq!(next((1 << 20) + 100), Some((1 << 20) + 100), "inside the data");
    assert_eq!(next((1 << 20) + 4096), Some(4 << 20));
    assert_eq!(next((4 << 20) + 4096), None);
    assert_eq!((next(8 << 20), next(u64::MAX)), (None, None));
}

#[test]
fn only_one_exclusive_opener_of_a_file() {
    let file = image(4096);
    let exclusive = OpenOptions {
        access: Access::ReadWrite,
        exclusive: true,
    };
    let first = BlockDevice::open(file.path(), exclusive).unwrap();
    let err = BlockDevice::open(file.path(), exclusive).unwrap_err();
    assert!(err.is_busy() && err.op() == DeviceOp::Lock, "{err}");
    let err = BlockDevice::open(
        file.path(),
        OpenOptions {
            access: Access::ReadOnly,
            exclusive: true,
        },
    )
    .unwrap_err();
    assert!(err.is_busy(), "{err}");
    drop(first);
    BlockDevice::open(file.path(), exclusive).unwrap();
}

#[test]
fn only_disks_and_files_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [dir.path(), &fifo, Path::new("/dev/null")] {
        let err = BlockDevice::open(path, RO).unwrap_err();
        assert_eq!(
            err.io_error().kind(),
            io::ErrorKind::InvalidInput,
            "{}",
            path.display()
        );
    }
    let err = BlockDevice::open(&dir.path().join("absent"), RO).unwrap_err();
    assert_eq!(err.io_error().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_file_that_shrank_ends_in_an_error() {
    let mut file = image(8192);
    let device = BlockDevice::open(file.path(), RO).unwrap();
    file.as_file_mut().set_len(4096).unwrap();
    file.flush().unwrap();
    let err = device
        .read_exact_at(&mut AlignedBuf::zeroed(8192), 0)
        .unwrap_err();
    assert_eq!(err.io_error().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn errors_are_sorted_by_who_can_help() {
    let error = |errno: i32| {
        DeviceError::new(
            DeviceOp::Write,
            Path::new("/dev/sdb"),
            io::Error::from_raw_os_error(errno),
        )
    };
    assert!(error(libc::ENOSPC).is_no_space() && !error(libc::ENOSPC).is_device_gone());
    assert!(error(libc::ENXIO).is_device_gone() && error(libc::ENODEV).is_device_gone());
    assert!(error(libc::EBUSY).is_busy() && !error(libc::EIO).is_busy());
}
