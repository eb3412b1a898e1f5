// SPDX-License-Identifier: MIT OR Apache-2.0
//! What lies on disks.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Corpus;

pub fn make(corpus: &Corpus) {
    scsi(corpus);
    contents(corpus);
    mounts(corpus);
    retention(corpus);
}

fn scsi(corpus: &Corpus) {
    let page = |designators: &[(u8, &[u8])]| {
        let mut body = Vec::new();
        for (kind, bytes) in designators {
            body.extend_from_slice(&[1, *kind, 0, u8::try_from(bytes.len()).unwrap()]);
            body.extend_from_slice(bytes);
        }
        let mut page = vec![0, 0x83];
        page.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        page.extend_from_slice(&body);
        page
    };
    let naa = [
        0x60, 0x00, 0xc2, 0x9a, 0x71, 0xe0, 0x2b, 0x4c, 0x9d, 0x11, 0x8e, 0x55, 0x03, 0x7f, 0xaa, 0x01,
    ];
    corpus.put("scsi_answers", "vmware", page(&[(3, &naa)]));
    let several = page(&[
        (1, b"VMware  Virtual disk 6000c29a71e02b4c"),
        (2, &[0xcc; 8]),
        (2, &[0xbb; 12]),
        (0x13, &[0x60; 8]),
        (3, &naa[..8]),
        (8, b"naa.6000c29a71e02b4c9d118e55037faa01\0\0\0\0"),
        (3, &naa),
    ]);
    corpus.put("scsi_answers", "several", several);
    corpus.put("scsi_answers", "pages", [0, 0, 0, 5, 0, 0x80, 0x83, 0xb0, 0xb2]);
    corpus.put("scsi_answers", "serial", b"\0\x80\0\x106000c29a71e02b4c");
    let mut inquiry = vec![0, 0, 6, 2, 0x5b, 0, 0, 2];
    inquiry.extend_from_slice(b"VMware  Virtual disk    2.0 ");
    inquiry.resize(96, 0);
    corpus.put("scsi_answers", "inquiry", inquiry);
}

/// The sectors of an image that are not zero, in the form that the entry takes; of the first MiB and the last 64 KiB.
fn pieces(image: &[u8], most: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let count = image.len() / 512;
    let mut at = 0;
    while at < count.min(1 << 16) {
        let sector = |at: usize| &image[at * 512..(at + 1) * 512];
        let begin = at;
        while at < count && sector(at).iter().any(|byte| *byte != 0) && at - begin < 16 {
            at += 1;
        }
        if at > begin && (begin < 2048 || begin + 128 >= count) && out.len() < most {
            // A piece of a list of zeros says nothing: the end of each is cut.
            let content = &image[begin * 512..at * 512];
            let len = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
            out.extend_from_slice(&u16::try_from(begin).unwrap().to_le_bytes());
            out.extend_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
            out.extend_from_slice(&content[..len]);
        } else {
            at = at.max(begin + 1);
        }
    }
    out.truncate(16 << 10);
    out
}

fn run(program: &str, arguments: &[&str], image: &Path, input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .arg(image)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}");
}

fn contents(corpus: &Corpus) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let fresh = |size| File::create(&image).unwrap().set_len(size).unwrap();
    for (name, size, program, arguments, input) in [
        ("ext4", 4 << 20, "mkfs.ext4", &["-q", "-F"][..], ""),
        ("xfs", 300 << 20, "mkfs.xfs", &["-q", "-f"], ""),
        ("swap", 4 << 20, "mkswap", &[], ""),
        (
            "mbr",
            4 << 20,
            "sfdisk",
            &["-q"],
            "label: dos\n64,2000,83\n4096,2000,E\n",
        ),
        (
            "gpt",
            4 << 20,
            "sfdisk",
            &["-q"],
            "label: gpt\n64,2000\n4096,2000,L\n",
        ),
    ] {
        fresh(size);
        run(program, arguments, &image, input);
        let bytes = fs::read(&image).unwrap();
        // The entry's disk has 4 MiB.
        corpus.put("disk_content", name, pieces(&bytes[..4 << 20], 6 << 10));
    }
    let lvm = lvm_label();
    corpus.put(
        "disk_content",
        "lvm",
        [
            &[1, 0],
            &u16::try_from(lvm.len()).unwrap().to_le_bytes()[..],
            &lvm,
        ]
        .concat(),
    );
    corpus.put(
        "disk_content",
        "unknown",
        b"\x08\0\x20\0data that no program has ever written",
    );
    corpus.put("disk_content", "empty", b"");
}

/// The label of a physical volume (lib/format_text/layout.h of LVM2), with its CRC.
fn lvm_label() -> Vec<u8> {
    let mut label = vec![0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"0123456789abcdef0123456789abcdef");
    label[64..72].copy_from_slice(&(4_u64 << 20).to_le_bytes());
    let mut crc: u32 = 0xf597_a6cf;
    for byte in &label[20..512] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    label[16..20].copy_from_slice(&crc.to_le_bytes());
    label
}

fn mounts(corpus: &Corpus) {
    let info = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                29 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n\
                40 29 0:41 /a /b\\040c\\011d rw shared:2 master:3 propagate_from:4 - btrfs /dev/sdb\\134x rw\n\
                41 29 7:0 / /media/loop ro - squashfs /dev/loop0 ro\n";
    corpus.put("mount_tables", "mountinfo", info);
    let swaps = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                 /dev/sda3                               partition\t1048572\t\t0\t\t-2\n\
                 /swap\\040file                           file\t\t524284\t\t12\t\t-3\n";
    corpus.put("mount_tables", "swaps", swaps);
}

fn retention(corpus: &Corpus) {
    for (name, part) in mt_fuzz::retention_parts() {
        corpus.put("retention_parts", &name, part);
    }
    // Kind, object, then the fields: see `mt_fuzz::patches`.
    for target in ["retention_store", "retention_forged"] {
        corpus.put(target, "nothing", []);
        for object in 0..8 {
            let write = [0, object, 44, 0, 0, 0, 4, 1, 2, 3, 4];
            let copy = [1, object, 8, 0, object + 1, 8, 0];
            let zero = [2, object, 16, 0];
            let cut = [3, object, 0, 0x50, 0, 0];
            let name = [5, object, 255, 0, 0, 0, 0, 0, 0, 0];
            corpus.put(target, &format!("name-{object}"), name);
            corpus.put(target, &format!("write-{object}"), write);
            corpus.put(
                target,
                &format!("several-{object}"),
                [&copy[..], &zero, &cut, &[4, object]].concat(),
            );
        }
        // Entries of a footer, fields of a head, of a trailer and of a superblock.
        for (name, object, at) in [
            ("footer", 2, 0xe000_u32),
            ("head", 3, 0x1020),
            ("body", 3, 0x1080),
            ("header", 4, 0x40),
            ("super", 0, 0x40),
        ] {
            let mut write = vec![0, object];
            write.extend_from_slice(&at.to_le_bytes());
            write.extend_from_slice(&[8, 255, 255, 255, 255, 0, 0, 0, 0]);
            corpus.put(target, name, write);
        }
    }
}
