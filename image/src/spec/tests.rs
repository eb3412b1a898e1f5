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

/// The one fault of a spec.
fn fault(text: &str) -> SpecFault {
    let mut faults = parse(text).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn unknown_keys_are_refused_with_line_and_nearest_key() {
    let text = DEBIAN.replace("vcpus =", "vcpu =");
    let found = fault(&text);
    let line = 1 + text.lines().position(|line| line.starts_with("vcpu =")).unwrap();
    assert_eq!(found.line, Some(line));
    assert_eq!(found.nearest.as_deref(), Some("vcpus"));
    let found = fault(&DEBIAN.replace("[hardware]", "[hardwear]"));
    assert_eq!(found.nearest.as_deref(), Some("hardware"), "{found:?}");
    // A word that is like none of them is no misspelt one.
    for other in ["zebra", "x", "cpu_count_of_the_machine"] {
        let found = fault(&DEBIAN.replace("vcpus =", &format!("{other} =")));
        assert_eq!(found.nearest, None, "{found:?}");
        assert!(
            found.text.contains("vcpus"),
            "the known keys are listed: {found:?}"
        );
    }
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
        (
            "source_date",
            "0",
            "allowed are 315532800 (1980) to 4294967295 (2106)",
        ),
        ("source_date", "4294967296", "allowed are"),
        ("source_date", "9223372036854775807", "allowed are"),
        ("ova_mib_max", "0", "allowed are 1 to 16777216"),
        ("iso_mib_max", "0", "allowed are 1 to 16777216"),
        ("iso_mib_max", "9223372036854775807", "allowed are"),
        ("overlay", "\"\"", "is empty"),
        ("guest_os", "\"penguin\"", "no guest identifier"),
        (
            "guest_os",
            "\"other3xlinux64Guest\"",
            "did you mean other3xLinux64Guest?",
        ),
        ("release", "\"trixie\"", "of the release bookworm"),
        ("name", "\"../x\"", "no name"),
        ("network", "\"\\u0001\"", "no network name"),
    ] {
        let text = with(key, value);
        let line = 1 + text
            .lines()
            .position(|line| line.starts_with(&format!("{key} =")))
            .unwrap();
        let faults = parse(&text).unwrap_err();
        assert!(
            faults.iter().any(|fault| fault.text.contains(says)),
            "{key} = {value}: {faults:?}"
        );
        assert!(
            faults.iter().any(|fault| fault.line == Some(line)),
            "{key} = {value}: {faults:?}"
        );
    }
    let bios = with("firmware", "\"bios\"").replace("secure_boot = false", "secure_boot = true");
    assert!(fault(&bios).text.contains("Secure Boot needs"));
    let unsecured = DEBIAN.replace(" bookworm-security", " bookworm-backports");
    assert!(fault(&unsecured).text.contains("security suite"));
    let mixed = DEBIAN.replace(" bookworm-updates main", " trixie-updates main");
    assert!(
        fault(&mixed)
            .text
            .contains("the suite trixie-updates is of the release trixie")
    );
    let own = DEBIAN.replace(
        "    \"deb http://deb.debian.org/debian bookworm-updates main\",",
        "    \"deb http://example.com stable main\",",
    );
    assert!(parse(&own).is_ok(), "others name their suites as they like");
    let mixed = EL.replace("base = \"el\"", "base = \"debian\"");
    assert!(parse(&mixed).is_err());
    let twice = format!(
        "{DEBIAN}\n[[properties]]\nkey = \"guestinfo.hostname\"\ncategory = \"x\"\nlabel = \"x\"\nkind = \"string\"\n"
    );
    assert!(fault(&twice).text.contains("twice"));
    let secret = format!(
        "{DEBIAN}\n[[properties]]\nkey = \"guestinfo.x\"\ncategory = \"x\"\nlabel = \"x\"\nkind = \"string\"\npassword = true\nvalue = \"x\"\n"
    );
    assert!(fault(&secret).text.contains("secret"));
    for release in ["8", "11", "9.1"] {
        let text = EL.replace("release = \"9\"", &format!("release = \"{release}\""));
        assert_eq!(fault(&text).line, line_of(&text, "rootfs.release"), "{release}");
    }
}

/// Found in a moment, and not after the many minutes of a build whose image would not start.
#[test]
fn what_no_image_starts_without_is_to_be_named() {
    for (package, says) in [
        ("linux-image-amd64", "has no kernel: add linux-image-amd64"),
        ("systemd-sysv", "has no systemd-sysv"),
        ("grub-pc-bin", "boot loader for BIOS: add it"),
        ("shim-signed", "has no shim-signed"),
    ] {
        let without = DEBIAN
            .replace(&format!("\"{package}\", "), "")
            .replace(&format!(", \"{package}\""), "");
        assert!(fault(&without).text.contains(says), "{package}");
    }
    let other = DEBIAN.replace("linux-image-amd64", "linux-image-cloud-amd64");
    assert!(parse(&other).is_ok());
    let removed = fault(&DEBIAN.replace("\"nano\"", "\"nano-\""));
    assert!(removed.text.contains("\"nano-\" is no package name"), "{removed}");
    assert!(parse(&DEBIAN.replace("\"nano\"", "\"g++\"")).is_ok());
}

#[test]
fn units_are_named_with_their_type() {
    for name in ["ssh", "ssh.servic", "service", "ssh."] {
        let found = fault(&DEBIAN.replace("\"ssh.service\"", &format!("{name:?}")));
        assert!(found.text.contains("is no unit"), "{found}");
    }
    assert!(parse(&DEBIAN.replace("\"ssh.service\"", "\"serial-getty@ttyS0.service\"")).is_ok());
}

#[test]
fn old_hardware_has_less_room() {
    let old = |key: &str, value: &str| with(key, value).replace("vmx = 13", "vmx = 10");
    assert!(fault(&old("vcpus", "128")).text.contains("at most 64"));
    assert!(
        fault(&old("memory_mib", "1035268"))
            .text
            .contains("at most 1035264")
    );
    assert!(parse(&old("vcpus", "64")).is_ok());
    assert!(parse(&with("vcpus", "128")).is_ok());
}

/// The wizard would ask, and the appliance never look at the answer.
#[test]
fn misspelt_properties_are_refused_and_own_ones_are_not() {
    for (misspelt, meant) in [
        ("host-name", "hostname"),
        ("Hostname", "hostname"),
        ("adress", "address"),
        ("time_zone", "timezone"),
        ("root.password.hash", "root_password_hash"),
    ] {
        let from = format!("key = \"guestinfo.{meant}\"");
        let found = fault(&DEBIAN.replace(&from, &format!("key = \"guestinfo.{misspelt}\"")));
        assert!(
            found.text.contains(&format!("did you mean guestinfo.{meant}?")),
            "{found}"
        );
    }
    for own in ["site", "proxy", "dn", "backup_host", "ntq"] {
        let text = DEBIAN.replace("key = \"guestinfo.ntp\"", &format!("key = \"guestinfo.{own}\""));
        assert_eq!(parse(&text).is_ok(), own != "ntq" && own != "dn", "{own}");
    }
}

/// The line is the one of the key that is wrong, also where the same key stands in many places.
#[test]
fn faults_point_to_their_own_line() {
    let line_with =
        |text: &str, part: &str| Some(1 + text.lines().position(|line| line.contains(part)).unwrap());
    for (from, to) in [
        ("key = \"guestinfo.dns\"", "key = \"dns\""),
        (
            "key = \"guestinfo.gateway\"",
            "key = \"guestinfo.address\" # again",
        ),
        ("value = \"UTC\"", "value = \"\\u0001\""),
        ("qualifiers = \"MaxLen(253)\"", "qualifiers = \"MaxLen(x)\""),
        ("    \"sound\", \"drivers/media\"", "    \"sound\", \".\""),
        ("\"/usr/share/bug\", ", "\"/boot\", "),
        ("    \"lsscsi\", ", "    \"ls scsi\", "),
        ("iso_mib_max = 350", "iso_mib_max = 0"),
    ] {
        let text = DEBIAN.replacen(from, to, 1);
        assert_ne!(text, DEBIAN, "{from}");
        assert_eq!(fault(&text).line, line_with(&text, to.trim()), "{to}");
    }
}

#[test]
fn all_faults_are_found_in_the_order_of_their_lines() {
    let text = DEBIAN
        .replace("vcpus = 4", "vcpus = 0")
        .replace("disk_gib = 16", "disk_gib = 1")
        .replace(
            "kind = \"string\"\nvalue = \"UTC\"",
            "kind = \"boolean\"\nvalue = \"maybe\"",
        );
    let faults = parse(&text).unwrap_err();
    let keys: Vec<&str> = faults
        .iter()
        .map(|fault| fault.text.split(':').next().unwrap())
        .collect();
    assert_eq!(
        keys,
        ["sizes.disk_gib", "hardware.vcpus", "properties.value"],
        "{faults:?}"
    );
    let error = error_of(Path::new("x.toml"), &faults);
    assert_eq!(error.kind, Kind::Config);
    let said = error.to_string();
    assert!(
        said.starts_with("image spec x.toml has 3 faults:\n  line "),
        "{said}"
    );
}

#[test]
fn no_text_makes_the_parser_panic() {
    for cut in 0..DEBIAN.len() {
        if DEBIAN.is_char_boundary(cut) {
            let _ = parse(&DEBIAN[..cut]);
        }
    }
}
