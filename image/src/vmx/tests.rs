// SPDX-License-Identifier: MIT OR Apache-2.0
//! The setting is found in every form, set without touching anything else, and refused where that is not safe.

use proptest::prelude::*;

use super::*;

const BASE: &str =
    "#!/usr/bin/vmware\n.encoding = \"UTF-8\"\nconfig.version = \"8\"\nvirtualHW.version = \"13\"\n";

fn file(text: &str) -> VmxFile {
    VmxFile::parse(text.as_bytes().to_vec()).unwrap()
}

#[test]
fn every_way_to_write_the_setting_is_understood() {
    for (line, state) in [
        ("disk.EnableUUID = \"TRUE\"", EnableUuid::On),
        ("disk.enableuuid=true", EnableUuid::On),
        ("  DISK.ENABLEUUID   =   \"True\"  ", EnableUuid::On),
        ("disk.EnableUUID = \"FALSE\"", EnableUuid::Off("FALSE".into())),
        ("disk.EnableUUID = \"\"", EnableUuid::Off(String::new())),
        ("# disk.EnableUUID = \"TRUE\"", EnableUuid::Missing),
        ("disk.EnableUUIDs = \"TRUE\"", EnableUuid::Missing),
        (
            "disk.EnableUUID = \"TRUE\"\ndisk.enableUUID = \"FALSE\"",
            EnableUuid::Repeated,
        ),
        ("disk.EnableUUID = \"TRUE", EnableUuid::Unclosed { line: 5 }),
        (
            "x = \"y\"\ndisk.EnableUUID = \"",
            EnableUuid::Unclosed { line: 6 },
        ),
        ("disk.EnableUUID = TRUE\"", EnableUuid::Off("TRUE\"".into())),
    ] {
        assert_eq!(file(&format!("{BASE}{line}\n")).enable_uuid(), state, "{line}");
        assert_eq!(
            file(&format!("{BASE}{line}\n")).with_enable_uuid().enable_uuid(),
            EnableUuid::On,
            "{line}"
        );
    }
}

#[test]
fn everything_else_stays_byte_for_byte() {
    let before =
        b"\xef\xbb\xbfconfig.version = \"8\"\r\nvirtualHW.version = \"13\"\r\nname = \"\xfc\xff\"\r\n"
            .to_vec();
    let after = b"\xff weird line\r\nlast = \"x\"".to_vec();
    let mut bytes = [
        before.clone(),
        b"disk.enableUUID = \"false\"\r\n".to_vec(),
        after.clone(),
    ]
    .concat();
    let expected = [
        before.clone(),
        b"disk.EnableUUID = \"TRUE\"\r\n".to_vec(),
        after.clone(),
    ]
    .concat();
    bytes.drain(..3);
    let changed = VmxFile::parse(bytes).unwrap().with_enable_uuid();
    assert_eq!(changed.as_bytes(), &expected[3..]);
    let appended = VmxFile::parse([before[3..].to_vec(), after.clone()].concat())
        .unwrap()
        .with_enable_uuid();
    assert_eq!(
        appended.as_bytes(),
        [&before[3..], &after, b"\r\ndisk.EnableUUID = \"TRUE\"\r\n"].concat()
    );
}

/// Some editors put a mark before the text. It belongs to the file, and to no line of it.
#[test]
fn a_byte_order_mark_stays_and_hides_nothing() {
    let rest = b"config.version = \"8\"\r\nvirtualHW.version = \"13\"\r\n";
    for (first, state) in [
        (&b"disk.EnableUUID = \"TRUE\"\r\n"[..], EnableUuid::On),
        (
            b"disk.EnableUUID = \"FALSE\"\r\n",
            EnableUuid::Off("FALSE".into()),
        ),
        (b"disk.EnableUUID = \"TRUE\r\n", EnableUuid::Unclosed { line: 1 }),
    ] {
        let found = VmxFile::parse([BYTE_ORDER_MARK, first, rest].concat()).unwrap();
        assert_eq!(found.enable_uuid(), state);
        let expected = [BYTE_ORDER_MARK, b"disk.EnableUUID = \"TRUE\"\r\n", rest].concat();
        assert_eq!(found.with_enable_uuid().as_bytes(), expected);
    }
    // The first line is one that the file cannot do without.
    let found = VmxFile::parse([BYTE_ORDER_MARK, rest].concat()).unwrap();
    assert_eq!(found.enable_uuid(), EnableUuid::Missing);
    let expected = [BYTE_ORDER_MARK, rest, b"disk.EnableUUID = \"TRUE\"\r\n"].concat();
    assert_eq!(found.with_enable_uuid().as_bytes(), expected);
}

#[test]
fn other_files_are_refused() {
    for text in ["", "hello", "KDMV\0", "config.version = \"8\"\n"] {
        assert!(VmxFile::parse(text.as_bytes().to_vec()).is_err(), "{text:?}");
    }
}

#[test]
fn the_change_is_refused_while_the_machine_runs() {
    for lock in [
        "vm.vmx.lck",
        ".vm.vmx.lck",
        "vm.vmem.lck",
        ".lck-3b00000000000000",
        "vm-28a1f5d5.vswp",
        "vmx-vm-28a1f5d5-1.vswp",
        "vm.vswp",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let vmx = folder.path().join("vm.vmx");
        std::fs::write(&vmx, BASE).unwrap();
        std::fs::create_dir(folder.path().join(lock)).unwrap();
        assert_eq!(enable_uuid(&vmx).unwrap_err().kind, Kind::Refused);
        assert_eq!(std::fs::read_to_string(&vmx).unwrap(), BASE);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

#[test]
fn the_change_is_made_beside_what_tells_of_other_machines() {
    for other in ["vm2.vmx.lck", "vmother-1.vswp", "vm.vmsd", "vm.nvram", "lck-1"] {
        let folder = tempfile::tempdir().unwrap();
        let vmx = folder.path().join("vm.vmx");
        std::fs::write(&vmx, BASE).unwrap();
        std::fs::write(folder.path().join(other), "").unwrap();
        assert!(enable_uuid(&vmx).unwrap(), "{other}");
    }
}

#[test]
fn the_change_keeps_the_mode_and_happens_once() {
    let folder = tempfile::tempdir().unwrap();
    let (vmx, link) = (folder.path().join("my vm.vmx"), folder.path().join("link.vmx"));
    std::fs::write(&vmx, BASE).unwrap();
    std::fs::set_permissions(&vmx, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(&vmx, &link).unwrap();
    assert!(enable_uuid(&link).unwrap());
    assert!(!enable_uuid(&vmx).unwrap());
    assert_eq!(
        std::fs::read_to_string(&vmx).unwrap(),
        format!("{BASE}disk.EnableUUID = \"TRUE\"\n")
    );
    assert_eq!(vmx.metadata().unwrap().mode() & 0o7777, 0o755);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

proptest! {
    #[test]
    fn lines_without_the_key_are_never_changed(lines in prop::collection::vec("[ -~]{0,40}", 0..20)) {
        let others: Vec<String> =
            lines.into_iter().filter(|line| !line.to_ascii_lowercase().contains("disk.enableuuid")).collect();
        let text = format!("{BASE}{}\n", others.join("\n"));
        let changed = file(&text).with_enable_uuid();
        let expected = format!("{text}disk.EnableUUID = \"TRUE\"\n");
        prop_assert_eq!(changed.as_bytes(), expected.as_bytes());
        prop_assert_eq!(changed.enable_uuid(), EnableUuid::On);
        prop_assert_eq!(changed.with_enable_uuid(), changed);
    }
}
