// SPDX-License-Identifier: MIT OR Apache-2.0
//! OVAs of this program and damaged ones.

use std::os::unix::fs::FileExt;

use super::read::read;
use super::*;
use crate::manifest::{Algorithm, Digests, Signer, line};
use crate::ovf::{OvfDisk, render};
use crate::spec::{Firmware, parse};
use crate::vmdk::writer::{self, WriteOptions};

/// A small OVA as `ova build` makes it; `edit` may change the descriptor before it is digested.
fn ova(algorithm: Algorithm, signer: Option<&Signer>, edit: impl FnOnce(String) -> String) -> Vec<u8> {
    let raw = tempfile::tempfile().unwrap();
    raw.set_len(1 << 20).unwrap();
    raw.write_all_at(b"data", 70_000).unwrap();
    let disk = tempfile::tempfile().unwrap();
    let options = WriteOptions {
        level: 6,
        threads: 1,
        extent_name: "mt-disk1.vmdk".into(),
        tools_version: 1,
    };
    let summary = writer::write(&raw, 1 << 20, &disk, &options, &mut |_| {}).unwrap();
    let mut disk_bytes = vec![0; usize::try_from(summary.file_size).unwrap()];
    disk.read_exact_at(&mut disk_bytes, 0).unwrap();
    let spec = parse(include_str!("../../specs/debian.toml")).unwrap();
    let described = OvfDisk {
        href: "mt-disk1.vmdk".into(),
        file_size: summary.file_size,
        capacity: 1 << 20,
        populated: 65_536,
    };
    let ovf = edit(String::from_utf8(render(&spec, Firmware::Efi, &described).unwrap()).unwrap());
    let manifest = line(algorithm, "mt.ovf", Digests::of(ovf.as_bytes()).by(algorithm))
        + &line(algorithm, "mt-disk1.vmdk", Digests::of(&disk_bytes).by(algorithm));
    let certificate = signer.map(|signer| signer.sign("mt.mf", manifest.as_bytes()).unwrap());
    let mut parts = vec![
        Part {
            name: "mt.ovf",
            bytes: ovf.as_bytes(),
        },
        Part {
            name: "mt.mf",
            bytes: manifest.as_bytes(),
        },
    ];
    if let Some(certificate) = &certificate {
        parts.push(Part {
            name: "mt.cert",
            bytes: certificate.as_bytes(),
        });
    }
    let file = tempfile::tempfile().unwrap();
    write(&file, &parts, "mt-disk1.vmdk", &disk, summary.file_size, 0).unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_is_written_is_good() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha1] {
        let report = read(&ova(algorithm, None, |ovf| ovf)[..]).unwrap();
        assert_eq!(report.faults, []);
        assert!(report.manifest_verified && !report.signature_verified);
        assert_eq!(report.enable_uuid.as_deref(), Some("TRUE"));
        let names: Vec<_> = report.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["mt.ovf", "mt.mf", "mt-disk1.vmdk"]);
    }
}

/// Every flipped byte of descriptor, manifest, disk and tar headers is a fault. Left are the zeros between members,
/// which no reader looks at, and the field of the tar's checksum, which may be padded with zeros or with spaces.
#[test]
fn every_flipped_byte_is_noticed() {
    let good = ova(Algorithm::Sha256, None, |ovf| ovf);
    let mut unnoticed = Vec::new();
    for at in 0..good.len() - 1024 {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        if read(&bad[..]).unwrap().faults.is_empty() {
            unnoticed.push(at);
        }
    }
    for at in unnoticed {
        let block = at / 512 * 512;
        let is_header = good[block + 257..].starts_with(b"ustar");
        if is_header && (148..156).contains(&(at - block)) {
            continue;
        }
        assert!(
            !is_header && good[at..block + 512].iter().all(|&byte| byte == 0),
            "byte {at:#x} went unnoticed"
        );
    }
}

/// Behind the two empty blocks that end a tar stand zeros, or nothing: what else is there no digest covers.
#[test]
fn data_behind_the_end_is_a_fault_and_zeros_are_not() {
    let good = ova(Algorithm::Sha256, None, |ovf| ovf);
    for zeros in [0, 1, 512, 8_192, 200_000] {
        let mut bytes = [good.clone(), vec![0; zeros]].concat();
        assert_eq!(read(&bytes[..]).unwrap().faults, [], "{zeros}");
        bytes.push(7);
        let faults = read(&bytes[..]).unwrap().faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(
            (faults[0].code, faults[0].offset),
            ("tar-end", Some((good.len() + zeros) as u64))
        );
    }
    let twice = [good.clone(), good.clone()].concat();
    assert_eq!(read(&twice[..]).unwrap().faults[0].code, "tar-end");
    // Within the second of the two.
    let mut bytes = good.clone();
    let last = bytes.len() - 1;
    bytes[last] = 1;
    assert_eq!(read(&bytes[..]).unwrap().faults[0].code, "tar-end");
}

#[test]
fn another_kind_of_file_is_named() {
    for (bytes, says) in [
        (&b"PK\x03\x04and more"[..], "a ZIP archive"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"KDMV\x03", "a VMDK"),
        (b"<?xml version=\"1.0\"?>", "it is XML"),
        (&[7; 2_000], "\"ustar\" at byte 257 is missing"),
    ] {
        let faults = read(bytes).unwrap().faults;
        assert!(faults[0].text.contains(says), "{faults:?}");
    }
}

/// A tar cut at the border of a member looks like a whole one that lacks its end.
#[test]
fn a_missing_end_is_a_warning() {
    let good = ova(Algorithm::Sha256, None, |ovf| ovf);
    assert!(read(&good[..]).unwrap().warnings.is_empty());
    let end = good.len() - 1024;
    for (left, warned) in [(0, true), (512, true), (1_024, false)] {
        let report = read(&good[..end + left]).unwrap();
        assert_eq!(report.faults, [], "{left}");
        assert_eq!(
            report.warnings.len(),
            usize::from(warned),
            "{left}: {:?}",
            report.warnings
        );
    }
}

#[test]
fn what_no_machine_can_be_made_of_is_a_fault() {
    for (from, to, says) in [
        (
            "<rasd:VirtualQuantity>4</rasd:VirtualQuantity>",
            "<rasd:VirtualQuantity>0</rasd:VirtualQuantity>",
            "gets 0 of processors",
        ),
        (
            "<rasd:VirtualQuantity>4</rasd:VirtualQuantity>",
            "",
            "gets no number of processors",
        ),
        (
            "ovf:populatedSize=\"65536\"",
            "ovf:populatedSize=\"99999999999\"",
            "more than the disk's",
        ),
        (
            "ovf:key=\"guestinfo.dns\"",
            "ovf:key=\"guestinfo.ntp\"",
            "given twice",
        ),
        (
            "</Envelope>",
            "<x:Own xmlns:x=\"urn:x\"><Info/></x:Own></Envelope>",
            "vSphere does not know it",
        ),
        (
            "</VirtualSystem>",
            "<x:Own xmlns:x=\"urn:x\" x:required=\"true\"/></VirtualSystem>",
            "vSphere does not know it",
        ),
    ] {
        let bytes = ova(Algorithm::Sha256, None, |ovf| {
            let changed = ovf.replacen(from, to, 1);
            assert_ne!(changed, ovf, "{from}");
            changed
        });
        let faults = read(&bytes[..]).unwrap().faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].text.contains(says), "{faults:?}");
    }
    let left_out = ova(Algorithm::Sha256, None, |ovf| {
        ovf.replace(
            "</Envelope>",
            "<x:Own xmlns:x=\"urn:x\" ovf:required=\"false\"/></Envelope>",
        )
    });
    assert_eq!(read(&left_out[..]).unwrap().faults, []);
}

/// vSphere takes such a machine for "Other", which is no fault of the file and not what its maker meant.
#[test]
fn a_guest_that_vsphere_does_not_know_is_a_warning() {
    for (guest, odd) in [
        ("other3xLinux64Guest", false),
        ("*other3xLinux64Guest", false),
        ("other3xLinuxGuest64", true),
        ("penguin", true),
    ] {
        let bytes = ova(Algorithm::Sha256, None, |ovf| {
            ovf.replace("osType=\"other3xLinux64Guest\"", &format!("osType=\"{guest}\""))
        });
        let report = read(&bytes[..]).unwrap();
        assert_eq!(report.faults, []);
        assert_eq!(
            report.warnings.len(),
            usize::from(odd),
            "{guest}: {:?}",
            report.warnings
        );
    }
}

#[test]
fn every_shorter_file_is_a_fault() {
    let good = ova(Algorithm::Sha256, None, |ovf| ovf);
    for len in (0..good.len() - 1024).step_by(97) {
        assert!(
            !read(&good[..len]).unwrap().faults.is_empty(),
            "cut to {len} bytes went unnoticed"
        );
    }
}

#[test]
fn descriptor_and_disk_must_agree() {
    for (from, to, code) in [
        (
            "ovf:capacity=\"1048576\"",
            "ovf:capacity=\"524288\"",
            "disk-capacity",
        ),
        (
            "ovf:href=\"mt-disk1.vmdk\"",
            "ovf:href=\"mt-disk2.vmdk\"",
            "file-missing",
        ),
        ("ovf:size=\"", "ovf:size=\"1", "file-size"),
        ("ovf:size=\"", "ovf:size=\"-1\" ovf:old=\"", "ovf-file"),
    ] {
        let bytes = ova(Algorithm::Sha256, None, |ovf| ovf.replace(from, to));
        let report = read(&bytes[..]).unwrap();
        assert!(
            report.faults.iter().any(|fault| fault.code == code),
            "{from}: {:?}",
            report.faults
        );
        assert!(
            report.manifest_verified,
            "the manifest was made for this descriptor"
        );
    }
}

#[test]
fn large_members_get_gnu_headers_and_small_ones_ustar() {
    let below = member_header("x.vmdk", USTAR_SIZE_LIMIT - 1, 0).unwrap();
    assert_eq!(&below.as_bytes()[257..265], b"ustar\x0000");
    assert_eq!(&below.as_bytes()[124..135], b"77777777777");
    let at = member_header("x.vmdk", USTAR_SIZE_LIMIT, 0).unwrap();
    assert_eq!(&at.as_bytes()[257..265], b"ustar  \0");
    assert_eq!(at.as_bytes()[124], 0x80);
    assert_eq!(at.entry_size().unwrap(), USTAR_SIZE_LIMIT);
    assert!(member_header("a/b", 1, 0).is_err());
    assert!(member_header(&"x".repeat(100), 1, 0).is_err());
}

#[test]
fn other_orders_and_kinds_of_member_are_faults() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    builder
        .append_data(&mut header.clone(), "a.mf", &b"abc"[..])
        .unwrap();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "b.ovf", "/etc/passwd").unwrap();
    let report = read(&builder.into_inner().unwrap()[..]).unwrap();
    let codes: Vec<_> = report.faults.iter().map(|fault| fault.code).collect();
    assert!(
        codes.contains(&"tar-order") && codes.contains(&"tar-type") && codes.contains(&"ovf-missing"),
        "{codes:?}"
    );
    assert!(
        report
            .faults
            .iter()
            .any(|fault| fault.text.contains("that is a symbolic link"))
    );
}
