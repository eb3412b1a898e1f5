// SPDX-License-Identifier: MIT OR Apache-2.0
#![allow(clippy::unwrap_used, reason = "test code")]

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const HASH: &str = "$6$Zp2bq1pl$yLw0kAoG1c5dqyqTgr6NUE8k5hvDpDlz9MC1YwF6d9T1z2fE";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxYcVZ4sTzZ0lqb0c2dY8S0o0Qe2X3wq1J5Yb6m7n8p operator";
const DATE: &str = "2026-03-02T10:14:07Z";

/// The system as the OVA's disk has it.
fn system() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("etc/hostname", "master-target\n");
    put(
        "etc/hosts",
        "127.0.0.1 localhost\n127.0.1.1 master-target\n::1 localhost\n",
    );
    put(
        "etc/shadow",
        "root:*:19700:0:99999:7:::\ndaemon:*:19700:0:99999:7:::\n",
    );
    fs::set_permissions(root.path().join("etc/shadow"), fs::Permissions::from_mode(0o640)).unwrap();
    put(
        "etc/systemd/network/50-mt-0.network",
        "[Match]\n[Network]\nDHCP=ipv4\n",
    );
    put("etc/systemd/network/50-mt-1.network", "[Match]\n");
    put("etc/systemd/network/10-operator.network", "[Match]\n");
    put("usr/share/zoneinfo/Europe/Berlin", "TZif2");
    fs::create_dir_all(root.path().join("etc/systemd/system")).unwrap();
    symlink("/dev/null", root.path().join("etc/systemd/system/ssh.service")).unwrap();
    root
}

fn given(pairs: &[(&str, &str)]) -> Given {
    Given {
        properties: pairs
            .iter()
            .map(|(key, value)| (format!("guestinfo.{key}"), (*value).to_owned()))
            .collect(),
        sources: vec!["ovf-env.xml on /dev/sr0".to_owned()],
    }
}

fn text(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn settings_become_files() {
    let root = system();
    let all = given(&[
        ("hostname", "mt1.example.org"),
        ("address", "192.0.2.10/24"),
        ("gateway", "192.0.2.1"),
        ("dns", "192.0.2.53,192.0.2.54"),
        ("ntp", "192.0.2.5"),
        ("timezone", "Europe/Berlin"),
        ("root_password_hash", HASH),
        ("ssh_key", KEY),
        ("retention_disk", "6000c29a71e02b4c9d118e55037faa01"),
    ]);
    let done = apply(root.path(), &all, DATE).unwrap();
    assert_eq!(done.state, State::Applied);
    assert_eq!(
        done.applied,
        [
            "hostname",
            "address",
            "ntp",
            "timezone",
            "root_password_hash",
            "ssh_key",
            "retention_disk"
        ]
    );
    let root = root.path();
    assert_eq!(text(root, "etc/hostname"), "mt1.example.org\n");
    assert_eq!(
        text(root, "etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 mt1.example.org mt1\n"
    );
    let network = text(root, "etc/systemd/network/50-mt-0.network");
    for line in [
        "Address=192.0.2.10/24",
        "Gateway=192.0.2.1",
        "DHCP=no",
        "DNS=192.0.2.54",
    ] {
        assert!(network.lines().any(|found| found == line), "{line}: {network}");
    }
    assert!(
        !root.join("etc/systemd/network/50-mt-1.network").exists(),
        "of the installation"
    );
    assert!(root.join("etc/systemd/network/10-operator.network").exists());
    assert_eq!(
        text(root, "etc/resolv.conf"),
        "nameserver 192.0.2.53\nnameserver 192.0.2.54\n"
    );
    assert_eq!(
        fs::read_link(root.join("etc/localtime")).unwrap(),
        Path::new("/usr/share/zoneinfo/Europe/Berlin")
    );
    assert_eq!(
        text(root, "etc/shadow"),
        format!("root:{HASH}:19700:0:99999:7:::\ndaemon:*:19700:0:99999:7:::\n")
    );
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("etc/shadow"), 0o640);
    assert_eq!(
        (mode("root/.ssh"), mode("root/.ssh/authorized_keys")),
        (0o700, 0o600)
    );
    assert_eq!(text(root, "root/.ssh/authorized_keys"), format!("{KEY}\n"));
    assert!(
        root.join("etc/systemd/system/ssh.service")
            .symlink_metadata()
            .is_err(),
        "not masked any more"
    );
    assert!(
        root.join("etc/systemd/system/multi-user.target.wants/ssh.service")
            .symlink_metadata()
            .is_ok()
    );
    assert_eq!(
        text(root, "etc/master-target/firewall.d/ssh.nft"),
        "tcp dport 22 accept\n"
    );
    assert!(text(root, "etc/master-target/own-disks").contains("\nnaa.6000c29a71e02b4c9d118e55037faa01\n"));
    // Cut before the report was written: the same again ends the same.
    let before = text(root, "root/.ssh/authorized_keys");
    assert_eq!(apply(root, &all, DATE).unwrap(), done);
    assert_eq!(text(root, "root/.ssh/authorized_keys"), before);
    assert_eq!(report(root).unwrap().unwrap(), done);
}

#[test]
fn one_fault_refuses_all_and_changes_nothing() {
    let root = system();
    let refused = apply(
        root.path(),
        &given(&[
            ("hostname", "$(reboot)"),
            ("address", "192.0.2.10/24"),
            ("timezone", "Mars/Olympus"),
        ]),
        DATE,
    )
    .unwrap();
    assert_eq!(refused.state, State::Refused);
    assert_eq!(refused.faults.len(), 2);
    assert!(
        refused.faults[0].starts_with("guestinfo.hostname: "),
        "{:?}",
        refused.faults
    );
    assert_eq!(text(root.path(), "etc/hostname"), "master-target\n");
    assert!(text(root.path(), "etc/systemd/network/50-mt-0.network").contains("DHCP=ipv4"));
    assert_eq!(report(root.path()).unwrap().unwrap(), refused);
}

#[test]
fn nothing_given_changes_nothing() {
    let root = system();
    let none = apply(root.path(), &Given::default(), DATE).unwrap();
    assert_eq!(none.state, State::NoneGiven);
    assert_eq!(text(root.path(), "etc/hostname"), "master-target\n");
    assert!(!root.path().join("root").exists());
}

#[test]
fn dhcp_stays_where_only_name_servers_are_given() {
    let root = system();
    apply(root.path(), &given(&[("dns", "192.0.2.53")]), DATE).unwrap();
    let network = text(root.path(), "etc/systemd/network/50-mt-0.network");
    assert!(
        network.contains("DHCP=ipv4") && network.contains("DNS=192.0.2.53"),
        "{network}"
    );
}

/// Documents that a deployment could bring, by accident or on purpose: each is refused as a whole, says so without a
/// control character of its own, and leaves the system as it was.
#[test]
fn bad_documents_are_refused_and_change_nothing() {
    let long = "x".repeat(10 << 10);
    let long_address = format!("192.0.2.10/24{long}");
    for (properties, reason) in [
        (vec![("hostname", "a&#10;b")], "character 2 is no printable"),
        (vec![("hostname", "a&#x1b;[2Jb")], "character 2 is no printable"),
        (vec![("hostname", "a&#127;b")], "character 2 is no printable"),
        (vec![("hostname", "$(reboot)")], "letters, digits and dashes"),
        (vec![("hostname", "`reboot`")], "letters, digits and dashes"),
        (
            vec![("ntp", "ntp.example.org$(reboot)")],
            "letters, digits and dashes",
        ),
        (vec![("timezone", "$(reboot)")], "is no time zone"),
        (vec![("ssh_key", "ssh-ed25519 $(reboot)")], "no public key"),
        (
            vec![("root_password_hash", "$6$salt$$(reboot)aaaaaaaaaaaaaaaa")],
            "no password hash",
        ),
        (vec![("hostname", long.as_str())], "the value has 10240 bytes"),
        (
            vec![("address", long_address.as_str())],
            "the value has 10253 bytes",
        ),
        (
            vec![("hostname", "a"), ("hostname", "b")],
            "\"guestinfo.hostname\" is given twice",
        ),
        (
            vec![("hostname", "a"), ("hostname", "a")],
            "\"guestinfo.hostname\" is given twice",
        ),
        (
            vec![("address", "192.0.2.10/24"), ("gateway", "192.0.3.1")],
            "not in the net",
        ),
        (
            vec![("gateway", "192.0.2.1"), ("hostname", "mt1")],
            "without guestinfo.address",
        ),
        (
            vec![("address", "192.0.2.10/24"), ("dns", "192.0.2.53,192.0.2.10")],
            "own address",
        ),
        (vec![("hostname", "a&b;")], "cannot be read"),
    ] {
        let root = system();
        let before = tree(root.path());
        let list: String = properties
            .iter()
            .map(|(key, value)| format!("<Property key=\"guestinfo.{key}\" value=\"{value}\"/>"))
            .collect();
        let text = format!("<Environment><PropertySection>{list}</PropertySection></Environment>");
        let file = root.path().join("ovf-env.xml");
        fs::write(&file, text).unwrap();
        let report = match source::from_file(&file) {
            Ok(given) => apply(root.path(), &given, DATE).unwrap(),
            Err(fault) => refuse(root.path(), &fault, DATE).unwrap(),
        };
        assert_eq!(report.state, State::Refused, "{properties:?}");
        assert!(
            report.faults[0].contains(reason),
            "{reason:?}: {:?}",
            report.faults
        );
        assert!(
            !report.faults.iter().any(|fault| fault.contains('\x1b')),
            "{:?}",
            report.faults
        );
        fs::remove_file(&file).unwrap();
        fs::remove_dir_all(root.path().join("var")).unwrap();
        assert_eq!(tree(root.path()), before, "{properties:?}");
    }
}

/// Every file below a folder with its content.
fn tree(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_symlink() {
            found.push((
                path.clone(),
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes(),
            ));
        } else if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn name_servers_go_to_systemd_resolved_where_it_keeps_the_file() {
    let root = system();
    let link = root.path().join("etc/resolv.conf");
    symlink("/run/systemd/resolve/resolv.conf", &link).unwrap();
    apply(root.path(), &given(&[("dns", "192.0.2.53")]), DATE).unwrap();
    assert!(link.is_symlink());
    assert!(text(root.path(), "etc/systemd/network/50-mt-0.network").contains("DNS=192.0.2.53"));
}
