//! The ioctls of block devices, one safe function each.
//!
//! This module knows numbers and structures, not what they are for: which device may be zeroed or asked is
//! decided by its callers. Every function takes an open descriptor and either fills plain values or changes
//! nothing of this process' memory. Where the kernel's errors mean something a caller can act on, it stays
//! in the returned `errno`.
//!
//! Numbers and layouts follow the kernel's `include/uapi/linux/fs.h` and `include/uapi/scsi/sg.h`.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

use crate::buffer::AlignedBuf;

/// Unsafe bindings, each the transcription of one line of the uapi headers.
mod raw {
    use nix::{
        ioctl_none, ioctl_read, ioctl_read_bad, ioctl_readwrite, ioctl_readwrite_bad, ioctl_write_ptr_bad,
        libc, request_code_none,
    };

    // #define BLKGETSIZE64 _IOR(0x12,114,size_t)  -- the number says size_t, the value is always a u64.
    ioctl_read!(blkgetsize64, 0x12, 114, libc::size_t);
    // #define BLKROGET _IO(0x12,94), #define BLKSSZGET _IO(0x12,104), #define BLKPBSZGET _IO(0x12,123):
    // declared without a size, yet the kernel writes an int through the argument.
    ioctl_read_bad!(blkroget, request_code_none!(0x12, 94), libc::c_int);
    ioctl_read_bad!(blksszget, request_code_none!(0x12, 104), libc::c_int);
    ioctl_read_bad!(blkpbszget, request_code_none!(0x12, 123), libc::c_uint);
    // #define BLKRRPART _IO(0x12,95)
    ioctl_none!(blkrrpart, 0x12, 95);
    // #define BLKDISCARD _IO(0x12,119), #define BLKZEROOUT _IO(0x12,127): the kernel reads uint64_t[2].
    ioctl_write_ptr_bad!(blkdiscard, request_code_none!(0x12, 119), [u64; 2]);
    ioctl_write_ptr_bad!(blkzeroout, request_code_none!(0x12, 127), [u64; 2]);
    // #define LOOP_GET_STATUS64 0x4C05
    ioctl_read_bad!(loop_get_status64, 0x4c05, super::LoopInfo64);
    // #define FIFREEZE _IOWR('X', 119, int), #define FITHAW _IOWR('X', 120, int): neither reads nor writes the int.
    ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
    ioctl_readwrite!(fithaw, b'X', 120, libc::c_int);
    // #define SG_IO 0x2285
    ioctl_readwrite_bad!(sg_io, 0x2285, super::SgIoHeader);
}

/// Size of the device, bytes.
///
/// # Errors
/// `ENOTTY` when it is not a block device.
pub fn size_bytes(device: impl AsFd) -> Result<u64, Errno> {
    let mut value: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes one u64 ("return size in bytes (u64 *arg)") through the pointer, which is
    // valid for the call. The cast only renames the pointee, 8 bytes on the 64-bit targets built for; on a
    // 32-bit target the pointee is still the u64.
    unsafe { raw::blkgetsize64(device.as_fd().as_raw_fd(), (&raw mut value).cast()) }?;
    Ok(value)
}

/// Logical block size, bytes: the smallest unit the device reads or writes.
///
/// # Errors
/// `ENOTTY` when it is not a block device, `ERANGE` when the kernel's answer is no size.
pub fn logical_block_size(device: impl AsFd) -> Result<u32, Errno> {
    let mut value: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int through the pointer, which is valid for the call.
    unsafe { raw::blksszget(device.as_fd().as_raw_fd(), &raw mut value) }?;
    u32::try_from(value)
        .ok()
        .filter(|size| size.is_power_of_two())
        .ok_or(Errno::ERANGE)
}

/// Physical block size, bytes: the smallest unit the device writes without reading first.
///
/// # Errors
/// `ENOTTY` when it is not a block device.
pub fn physical_block_size(device: impl AsFd) -> Result<u32, Errno> {
    let mut value: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes one unsigned int through the pointer, which is valid for the call.
    unsafe { raw::blkpbszget(device.as_fd().as_raw_fd(), &raw mut value) }?;
    Ok(value)
}

/// Whether the kernel holds the device read-only.
///
/// # Errors
/// `ENOTTY` when it is not a block device.
pub fn read_only(device: impl AsFd) -> Result<bool, Errno> {
    let mut value: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int through the pointer, which is valid for the call.
    unsafe { raw::blkroget(device.as_fd().as_raw_fd(), &raw mut value) }?;
    Ok(value != 0)
}

/// Makes the kernel read the partition table again.
///
/// # Errors
/// `EBUSY` while a partition is in use or another process holds the disk; `EINVAL` on a partition or a
/// device that cannot have any.
pub fn reread_partitions(device: impl AsFd) -> Result<(), Errno> {
    // SAFETY: BLKRRPART takes no argument and writes nothing to user memory.
    unsafe { raw::blkrrpart(device.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// Tells the device that a byte range is not needed any more. What reads there return afterwards is up to
/// the device: this is *not* a way to write zeros, and nothing of the write path calls it.
///
/// # Errors
/// `EOPNOTSUPP` when the device cannot discard, `EINVAL` when the range is not aligned.
pub fn discard(device: impl AsFd, offset: u64, len: u64) -> Result<(), Errno> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64 (start, length) through the pointer, which is valid for the call.
    unsafe { raw::blkdiscard(device.as_fd().as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Makes a byte range read as zeros: by the device's own command where it has one, else by writing zeros,
/// which the kernel does itself. The kernel passes `BLKDEV_ZERO_NOUNMAP`, so thin storage stays allocated.
///
/// # Errors
/// `EINVAL` when the range is not aligned to logical blocks or ends behind the device; the errors of a write.
pub fn zero_out(device: impl AsFd, offset: u64, len: u64) -> Result<(), Errno> {
    let range = [offset, len];
    // SAFETY: BLKZEROOUT reads two u64 (start, length) through the pointer, which is valid for the call.
    unsafe { raw::blkzeroout(device.as_fd().as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Stops all writing to the file system that holds an open file or folder, after what was written has reached its disk. It
/// stays so until [`thaw`], whatever becomes of this process: whoever calls this makes sure that somebody thaws.
///
/// # Errors
/// `EBUSY` when it is frozen already, `EOPNOTSUPP` when its kind cannot be frozen, `EPERM` without privilege.
pub fn freeze(file_system: impl AsFd) -> Result<(), Errno> {
    let mut unused: libc::c_int = 0;
    // SAFETY: FIFREEZE takes no argument (fs/ioctl.c, ioctl_fsfreeze); the pointer is valid nevertheless.
    unsafe { raw::fifreeze(file_system.as_fd().as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// Undoes [`freeze`].
///
/// # Errors
/// `EINVAL` when it is not frozen.
pub fn thaw(file_system: impl AsFd) -> Result<(), Errno> {
    let mut unused: libc::c_int = 0;
    // SAFETY: FITHAW takes no argument (fs/ioctl.c, ioctl_fsthaw); the pointer is valid nevertheless.
    unsafe { raw::fithaw(file_system.as_fd().as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// `struct loop_info64` of linux/loop.h, same names.
#[repr(C)]
pub struct LoopInfo64 {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; 64],
    lo_crypt_name: [u8; 64],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232, "struct loop_info64 has 232 bytes");

/// What a loop device is attached to, as the kernel holds it: no path, which may be of another namespace or
/// lead elsewhere by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopBacking {
    /// Device number of the file system that holds the backing file, as `st_dev`.
    pub dev: u64,
    /// Inode of the backing file, as `st_ino`.
    pub inode: u64,
    /// Device number of the backing device when the backing file is a device node, as `st_rdev`; else 0.
    pub rdev: u64,
}

/// What a loop device is attached to; `None` when it is attached to nothing.
///
/// # Errors
/// `ENOTTY` or `EINVAL` when it is no loop device.
pub fn loop_backing(device: impl AsFd) -> Result<Option<LoopBacking>, Errno> {
    // SAFETY: `struct loop_info64` is plain integers, for which all zeros is a value.
    let mut info: LoopInfo64 = unsafe { std::mem::zeroed() };
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64` (layout asserted above) through the pointer,
    // which is valid for the call.
    match unsafe { raw::loop_get_status64(device.as_fd().as_raw_fd(), &raw mut info) } {
        Ok(_) => Ok(Some(LoopBacking {
            dev: info.lo_device,
            inode: info.lo_inode,
            rdev: info.lo_rdevice,
        })),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What direct I/O on a regular file has to be aligned to, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of the address in memory; 0 when the file has no direct I/O.
    pub memory: u32,
    /// Of offset and length; 0 when the file has no direct I/O.
    pub offset: u32,
}

/// What direct I/O on this file has to be aligned to (`statx`, `STATX_DIOALIGN`, kernel 6.1 and newer).
/// `None` when kernel or file system do not tell.
pub fn direct_alignment(file: impl AsFd) -> Option<DirectAlignment> {
    // SAFETY: `struct statx` is plain integers, for which all zeros is a value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH takes to mean the descriptor itself;
    // `answer` is a `struct statx` valid for the call.
    let result = unsafe {
        libc::statx(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    (result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DirectAlignment {
        memory: answer.stx_dio_mem_align,
        offset: answer.stx_dio_offset_align,
    })
}

/// `struct sg_io_hdr` of scsi/sg.h, version 3, same names.
#[repr(C)]
pub struct SgIoHeader {
    interface_id: libc::c_int,
    dxfer_direction: libc::c_int,
    cmd_len: libc::c_uchar,
    mx_sb_len: libc::c_uchar,
    iovec_count: libc::c_ushort,
    dxfer_len: libc::c_uint,
    dxferp: *mut libc::c_void,
    cmdp: *mut libc::c_uchar,
    sbp: *mut libc::c_uchar,
    timeout: libc::c_uint,
    flags: libc::c_uint,
    pack_id: libc::c_int,
    usr_ptr: *mut libc::c_void,
    status: libc::c_uchar,
    masked_status: libc::c_uchar,
    msg_status: libc::c_uchar,
    sb_len_wr: libc::c_uchar,
    host_status: libc::c_ushort,
    driver_status: libc::c_ushort,
    resid: libc::c_int,
    duration: libc::c_uint,
    info: libc::c_uint,
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(
    size_of::<SgIoHeader>() == 88,
    "struct sg_io_hdr has 88 bytes on 64-bit kernels"
);

/// Why an INQUIRY got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InquiryError {
    /// The kernel has no SCSI commands for this device: a loop device, virtio-blk, NVMe, or a file.
    #[error("the device takes no SCSI commands")]
    NotScsi,
    /// The device took the command and refused it: the page does not exist.
    #[error(
        "the device refused it (SCSI status {status:#04x}, sense key {sense_key:#x}, code {code:#04x}/{qualifier:#04x})"
    )]
    Refused {
        /// SCSI status byte.
        status: u8,
        /// Sense key, 0 when the device sent no sense data.
        sense_key: u8,
        /// Additional sense code.
        code: u8,
        /// Additional sense code qualifier.
        qualifier: u8,
    },
    /// The command did not reach the device or timed out in the host adapter.
    #[error("it did not reach the device (host status {host:#06x}, driver status {driver:#06x})")]
    Transport {
        /// Host adapter status.
        host: u16,
        /// Driver status.
        driver: u16,
    },
    /// The ioctl itself failed.
    #[error("{0}")]
    Os(#[from] Errno),
}

/// Longest INQUIRY answer asked for, bytes. A page 0x83 of a real disk has well under 300.
const INQUIRY_BYTES_MAX: u16 = 4096;
/// What is asked for first: some devices answer nothing when asked for more than one byte can say.
const INQUIRY_BYTES_FIRST: u16 = 252;
/// Time a device has for its answer, milliseconds.
const INQUIRY_TIMEOUT_MS: u32 = 10_000;
/// The driver passes sense data along; not an error by itself (scsi/sg.h, SG_LIB_DRIVER_SENSE).
const DRIVER_SENSE: u16 = 0x08;

/// Asks the device for its standard INQUIRY data (`page` is `None`) or one VPD page, by SG_IO.
///
/// The answer is what the device sent, cut to the length it gave; [`crate::scsi`] decodes it.
///
/// # Errors
/// [`InquiryError`] says whether the device is none of SCSI, refused the page, or could not be reached.
pub fn inquiry(device: impl AsFd, page: Option<u8>) -> Result<Vec<u8>, InquiryError> {
    let answer = inquiry_once(&device, page, INQUIRY_BYTES_FIRST)?;
    // Bytes 2-3 of a VPD page are its length; ask again with room for all of it, within reason.
    let declared = match (page, answer.get(2..4)) {
        (Some(_), Some(&[high, low])) => u32::from(u16::from_be_bytes([high, low])) + 4,
        _ => return Ok(answer),
    };
    if declared <= u32::from(INQUIRY_BYTES_FIRST) {
        return Ok(answer);
    }
    inquiry_once(
        &device,
        page,
        u16::try_from(declared).unwrap_or(u16::MAX).min(INQUIRY_BYTES_MAX),
    )
}

fn inquiry_once(device: &impl AsFd, page: Option<u8>, len: u16) -> Result<Vec<u8>, InquiryError> {
    let [len_high, len_low] = len.to_be_bytes();
    // INQUIRY (SPC-4, 6.6): operation code, EVPD bit, page code, allocation length, control.
    let mut command = [
        0x12,
        u8::from(page.is_some()),
        page.unwrap_or(0),
        len_high,
        len_low,
        0,
    ];
    let mut sense = [0_u8; 32];
    let mut data = AlignedBuf::zeroed(usize::from(len));
    let mut header = SgIoHeader {
        interface_id: libc::c_int::from(b'S'),
        dxfer_direction: -3, // SG_DXFER_FROM_DEV
        cmd_len: 6,
        mx_sb_len: 32,
        iovec_count: 0,
        dxfer_len: libc::c_uint::from(len),
        dxferp: data.as_mut_ptr().cast(),
        cmdp: command.as_mut_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: INQUIRY_TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: `header` is a `struct sg_io_hdr` (layout asserted above); its three pointers are valid for
    // dxfer_len, cmd_len and mx_sb_len bytes, and live until the synchronous call returns.
    match unsafe { raw::sg_io(device.as_fd().as_raw_fd(), &raw mut header) } {
        Ok(_) => {}
        // Drivers without SCSI commands answer with any of these.
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENODEV)
            if !is_gone(device) =>
        {
            return Err(InquiryError::NotScsi);
        }
        Err(errno) => return Err(InquiryError::Os(errno)),
    }
    if header.host_status != 0 || header.driver_status & !DRIVER_SENSE != 0 {
        return Err(InquiryError::Transport {
            host: header.host_status,
            driver: header.driver_status,
        });
    }
    if header.status != 0 {
        let (sense_key, code, qualifier) =
            decode_sense(&sense[..usize::from(header.sb_len_wr).min(sense.len())]);
        return Err(InquiryError::Refused {
            status: header.status,
            sense_key,
            code,
            qualifier,
        });
    }
    let missing = usize::try_from(header.resid).unwrap_or(0);
    Ok(data[..usize::from(len).saturating_sub(missing)].to_vec())
}

/// Whether the device behind an open descriptor has been taken away.
fn is_gone(device: &impl AsFd) -> bool {
    matches!(size_bytes(device), Err(Errno::ENXIO | Errno::ENODEV))
}

/// Sense key, additional sense code and qualifier of fixed and descriptor format sense data (SPC-4, 4.5).
fn decode_sense(sense: &[u8]) -> (u8, u8, u8) {
    let byte = |index: usize| sense.get(index).copied().unwrap_or(0);
    match byte(0) & 0x7f {
        0x70 | 0x71 => (byte(2) & 0xf, byte(12), byte(13)),
        0x72 | 0x73 => (byte(1) & 0xf, byte(2), byte(3)),
        _ => (0, 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_regular_file_takes_none_of_them() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(size_bytes(&file), Err(Errno::ENOTTY));
        assert_eq!(logical_block_size(&file), Err(Errno::ENOTTY));
        assert_eq!(physical_block_size(&file), Err(Errno::ENOTTY));
        assert_eq!(read_only(&file), Err(Errno::ENOTTY));
        assert_eq!(reread_partitions(&file), Err(Errno::ENOTTY));
        assert_eq!(zero_out(&file, 0, 512), Err(Errno::ENOTTY));
        assert_eq!(inquiry(&file, Some(0x83)), Err(InquiryError::NotScsi));
        assert_eq!(
            inquiry(File::open("/dev/null").unwrap(), None),
            Err(InquiryError::NotScsi)
        );
    }

    #[test]
    fn sense_data_is_read_in_both_formats_and_cut_short() {
        let mut fixed = [0_u8; 18];
        fixed[0] = 0x70;
        fixed[2] = 0x05;
        fixed[12] = 0x24;
        assert_eq!(decode_sense(&fixed), (5, 0x24, 0));
        assert_eq!(decode_sense(&[0x72, 0x05, 0x24, 0x01]), (5, 0x24, 1));
        assert_eq!(decode_sense(&[0x70, 0, 5]), (5, 0, 0));
        assert_eq!(decode_sense(&[]), (0, 0, 0));
    }
}
