// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rendered descriptor against its golden text and against the reader.

use super::*;
use crate::spec;

fn spec() -> ImageSpec {
    spec::parse(include_str!("../../specs/debian.toml")).unwrap()
}

fn disk() -> OvfDisk {
    OvfDisk {
        href: "mt-disk1.vmdk".into(),
        file_size: 123_456_789,
        capacity: 16 << 30,
        populated: 65_536 * 99,
    }
}

#[test]
fn golden_text() {
    let text = String::from_utf8(render(&spec(), Firmware::Efi, &disk()).unwrap()).unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/debian.ovf");
    if std::env::var_os("MT_UPDATE_GOLDEN").is_some() {
        std::fs::write(golden, &text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(golden).unwrap(),
        "after an intended change: MT_UPDATE_GOLDEN=1"
    );
}

#[test]
fn what_is_rendered_is_read_back_without_fault() {
    let (read, faults) = read::parse(&render(&spec(), Firmware::Bios, &disk()).unwrap()).unwrap();
    assert_eq!(faults, []);
    assert_eq!(read.families, ["vmx-13"]);
    assert_eq!(read.files[0].size, Some(123_456_789));
    assert_eq!(read.disks[0].capacity, Some(16 << 30));
    assert_eq!(
        read.extra_config,
        [("disk.EnableUUID".to_owned(), "TRUE".to_owned())]
    );
    assert!(read.config.contains(&("firmware".to_owned(), "bios".to_owned())));
    let controllers: Vec<_> = read.items.iter().filter(|item| item.kind == 6).collect();
    assert_eq!(controllers.len(), 4);
    assert!(controllers.iter().all(|item| item.sub_type == "VirtualSCSI"));
    let hard_disk = read.items.iter().find(|item| item.kind == 17).unwrap();
    assert_eq!(hard_disk.parent.as_deref(), Some(controllers[0].id.as_str()));
    assert_eq!(read.properties.len(), spec().properties.len());
}

#[test]
fn markup_in_texts_stays_text() {
    let mut spec = spec();
    spec.product.name = "a <b> & \"c\" 'd'".into();
    spec.properties[0].value = "<x y=\"&\">".into();
    let (read, faults) = read::parse(&render(&spec, Firmware::Efi, &disk()).unwrap()).unwrap();
    assert_eq!(faults, []);
    assert_eq!(read.name, spec.product.name);
}

/// Each of these was reported by users of other appliances; see the table in the OVA documentation.
#[test]
fn known_import_errors_are_named() {
    let good = String::from_utf8(render(&spec(), Firmware::Efi, &disk()).unwrap()).unwrap();
    for (from, to, says) in [
        ("vmx-13", "virtualbox-2.2", "Unsupported hardware family"),
        ("vmx-13", "vmx-16", "Unsupported hardware family"),
        (">VirtualSCSI<", ">virtualscsi<", "the case matters"),
        ("ovf:fileRef=\"file1\"", "ovf:fileRef=\"file9\"", "does not list"),
        ("ovf:/disk/vmdisk1", "ovf:/disk/vmdisk7", "names no disk"),
        (
            "capacityAllocationUnits=\"byte\"",
            "capacityAllocationUnits=\"blocks\"",
            "is no size",
        ),
        ("#streamOptimized", "#sparse", "has the format"),
        (
            "ovf:size=\"123456789\"",
            "ovf:size=\"-1\"",
            "file file1: size \"-1\" is no number of bytes",
        ),
        (
            "ovf:populatedSize=\"",
            "ovf:populatedSize=\"+",
            "is no number of bytes",
        ),
        (
            "<rasd:VirtualQuantity>4",
            "<rasd:VirtualQuantity>four",
            "VirtualQuantity \"four\" is no number",
        ),
        ("ovf:capacity=\"", "ovf:capacity=\"-", "is no size"),
        (
            "<rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>",
            "",
            "HostResource is missing",
        ),
        (
            "<rasd:Connection>VM Network</rasd:Connection>",
            "",
            "Connection is missing",
        ),
        (
            "ovf:/disk/vmdisk1",
            "ovf:/disk/vmdisk7",
            "HostResource \"ovf:/disk/vmdisk7\" names no disk",
        ),
        (
            "<rasd:Parent>3</rasd:Parent>",
            "<rasd:Parent>1</rasd:Parent>",
            "DiskControllerReference",
        ),
        (
            "<rasd:Connection>VM Network",
            "<rasd:Connection>Other",
            "does not list",
        ),
    ] {
        let bad = good.replacen(from, to, if from.contains("VirtualSCSI") { 9 } else { 1 });
        assert_ne!(bad, good, "{from}");
        let (_, faults) = read::parse(bad.as_bytes()).unwrap();
        assert!(
            faults.iter().any(|fault| fault.text.contains(says)),
            "{from} -> {to}: {faults:?}"
        );
        assert!(
            !faults.iter().any(|fault| fault.text.contains("Some(")),
            "{faults:?}"
        );
    }
}

#[test]
fn damaged_documents_are_faults_and_never_panic() {
    let good = render(&spec(), Firmware::Efi, &disk()).unwrap();
    for cut in (0..good.len() - 2).step_by(37) {
        assert!(read::parse(&good[..cut]).is_err(), "cut at {cut}");
    }
    for at in (0..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 0x15;
        let _ = read::parse(&bad);
    }
    assert!(read::parse(b"<!DOCTYPE x [<!ENTITY a \"b\">]><Envelope>&a;</Envelope>").is_err());
    assert!(read::parse("<a>".repeat(100_000).as_bytes()).is_err());
}
