// SPDX-License-Identifier: MIT OR Apache-2.0
//! The specs of the repository are good; each way to spoil them is refused with line and reason.

use super::*;

const DEBIAN: &str = include_str!("../../specs/debian.toml");
const EL: &str = include_str!("../../specs/el.toml");

#[test]
fn the_specs_of_the_repository_are_good() {
    let debian = parse(DEBIAN).unwrap();
    assert_eq!(debian.rootfs.base, Base::Debian);
    assert_eq!(debian.hardware.scsi_controllers, 4);
    assert_eq!(parse(EL).unwrap().rootfs.base, Base::El);
}

#[test]
fn unknown_keys_are_refused_with_line_and_nearest_key() {
    let text = DEBIAN.replace("vcpus =", "vcpu =");
    let fault = parse(&text).unwrap_err();
    let line = 1 + text.lines().position(|line| line.starts_with("vcpu =")).unwrap();
    assert_eq!(fault.line, Some(line));
    assert_eq!(fault.nearest.as_deref(), Some("vcpus"));
    let fault = parse(&DEBIAN.replace("[hardware]", "[hardwear]")).unwrap_err();
    assert_eq!(fault.nearest.as_deref(), Some("hardware"), "{fault:?}");
}

/// Replaces the value of the first `key = ...` line.
fn with(key: &str, value: &str) -> String {
    let mut done = false;
    let lines = DEBIAN.lines().map(|line| {
        if !done && line.starts_with(&format!("{key} =")) {
            done = true;
            return format!("{key} = {value}");
        }
        line.to_owned()
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    assert!(done, "no key {key}");
    text
}

#[test]
fn values_out_of_bounds_and_contradictions_are_refused_with_their_line() {
    for (key, value, says) in [
        ("vmx", "12", "Workstation"),
        ("vmx", "16", "Workstation"),
        ("scsi_controllers", "5", "1 to 4"),
        ("scsi_controllers", "0", "1 to 4"),
        ("vcpus", "0", "1 to 128"),
        ("memory_mib", "6145", "multiples of 4"),
        ("disk_gib", "1", "2 to 2048"),
        ("schema", "2", "reads 1"),
        ("version", "\"1<\\\"&;\"", "no version"),
        ("version", "\"\"", "no version"),
        ("name", "\"../x\"", "no name"),
        ("network", "\"\\u0001\"", "no network name"),
    ] {
        let fault = parse(&with(key, value)).unwrap_err();
        assert!(fault.text.contains(says), "{key} = {value}: {fault:?}");
        assert!(fault.line.is_some(), "{key} = {value}: {fault:?}");
    }
    let bios = with("firmware", "\"bios\"").replace("secure_boot = false", "secure_boot = true");
    assert!(parse(&bios).unwrap_err().text.contains("Secure Boot needs"));
    let unsecured = DEBIAN.replace(" bookworm-security", " bookworm-backports");
    assert!(parse(&unsecured).unwrap_err().text.contains("security suite"));
    let mixed = EL.replace("base = \"el\"", "base = \"debian\"");
    assert!(parse(&mixed).is_err());
    let twice = format!(
        "{DEBIAN}\n[[properties]]\nkey = \"guestinfo.hostname\"\ncategory = \"x\"\nlabel = \"x\"\nkind = \"string\"\n"
    );
    assert!(parse(&twice).unwrap_err().text.contains("twice"));
    let secret = format!(
        "{DEBIAN}\n[[properties]]\nkey = \"guestinfo.x\"\ncategory = \"x\"\nlabel = \"x\"\nkind = \"string\"\npassword = true\nvalue = \"x\"\n"
    );
    assert!(parse(&secret).unwrap_err().text.contains("secret"));
}

#[test]
fn no_text_makes_the_parser_panic() {
    for cut in 0..DEBIAN.len() {
        if DEBIAN.is_char_boundary(cut) {
            let _ = parse(&DEBIAN[..cut]);
        }
    }
}
