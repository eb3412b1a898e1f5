// SPDX-License-Identifier: MIT OR Apache-2.0
//! OVA files between this program and independent readers: bsdtar, sha256sum, openssl, COT, qemu-img.

mod common;

use std::path::Path;
use std::process::Command;

use common::{mt_image, mt_image_ok, require, run, sample_disk, text};

const SPEC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/debian.toml");
const BASE: &str = "master-target-0.1.0";

fn p(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn build(folder: &Path, name: &str, more: &[&str]) -> std::path::PathBuf {
    let (disk, ova) = (folder.join("disk.raw"), folder.join(name));
    if !disk.exists() {
        sample_disk(&disk, 48);
    }
    let fixed = [
        "ova",
        "build",
        "--spec",
        SPEC,
        "--disk",
        p(&disk),
        "--out",
        p(&ova),
    ];
    mt_image_ok(&[&fixed[..], more].concat());
    ova
}

#[test]
fn bsdtar_sha256sum_and_qemu_img_agree() {
    if !require(&["bsdtar", "sha256sum", "qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ova = build(folder.path(), "a b.ova", &[]);
    assert!(mt_image_ok(&["ova", "verify", p(&ova)]).contains("all digests of the manifest are right"));
    let list = run("bsdtar", &["-tf".as_ref(), &ova]);
    let names = String::from_utf8(list.stdout).unwrap();
    assert_eq!(names, format!("{BASE}.ovf\n{BASE}.mf\n{BASE}-disk1.vmdk\n"));

    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    assert!(
        run("bsdtar", &["-xf".as_ref(), &ova, "-C".as_ref(), &unpacked])
            .status
            .success()
    );
    let manifest = std::fs::read_to_string(unpacked.join(format!("{BASE}.mf"))).unwrap();
    // sha256sum wants "SHA256 (name) = hex", importers the form without the first space.
    let sums = manifest.replace("SHA256(", "SHA256 (").replace(")= ", ") = ");
    std::fs::write(unpacked.join("sums"), sums).unwrap();
    let check = Command::new("sha256sum")
        .args(["--check", "--strict", "sums"])
        .current_dir(&unpacked)
        .output()
        .unwrap();
    assert!(
        check.status.success() && text(&check).matches(": OK").count() == 2,
        "{}",
        text(&check)
    );
    let compare = run(
        "qemu-img",
        &[
            "compare".as_ref(),
            "-f".as_ref(),
            "raw".as_ref(),
            "-F".as_ref(),
            "vmdk".as_ref(),
            &folder.path().join("disk.raw"),
            &unpacked.join(format!("{BASE}-disk1.vmdk")),
        ],
    );
    assert!(compare.status.success(), "{}", text(&compare));
    // The size in the descriptor is exact.
    let ovf = std::fs::read_to_string(unpacked.join(format!("{BASE}.ovf"))).unwrap();
    let size = unpacked
        .join(format!("{BASE}-disk1.vmdk"))
        .metadata()
        .unwrap()
        .len();
    assert!(ovf.contains(&format!("ovf:size=\"{size}\"")));
}

#[test]
fn two_builds_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let one = std::fs::read(build(folder.path(), "one.ova", &[])).unwrap();
    let two = std::fs::read(build(folder.path(), "two.ova", &[])).unwrap();
    assert!(one == two, "the OVAs differ");
}

#[test]
fn sha1_firmware_and_hardware_version_can_be_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let ova = build(
        folder.path(),
        "old.ova",
        &["--manifest", "sha1", "--firmware", "bios", "--vmx", "10"],
    );
    let said = mt_image_ok(&["ova", "inspect", p(&ova)]);
    assert!(
        said.contains("vmx-10") && said.contains("firmware = bios"),
        "{said}"
    );
    let listed = Command::new("tar")
        .args(["-xOf", p(&ova), &format!("{BASE}.mf")])
        .output()
        .unwrap();
    assert!(text(&listed).contains("SHA1("), "{}", text(&listed));
    mt_image_ok(&["ova", "verify", p(&ova)]);
    let disk = folder.path().join("disk.raw");
    let out = folder.path().join("never.ova");
    let refused = mt_image(&[
        "ova",
        "build",
        "--spec",
        SPEC,
        "--disk",
        p(&disk),
        "--out",
        p(&out),
        "--vmx",
        "12",
    ]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(!out.exists());
    for version in ["1<\"&;", "", "../x", "a b"] {
        let refused = mt_image(&[
            "ova",
            "build",
            "--spec",
            SPEC,
            "--disk",
            p(&disk),
            "--out",
            p(&out),
            "--version",
            version,
        ]);
        assert_eq!(refused.status.code(), Some(2), "{version:?}: {}", text(&refused));
    }
}

#[test]
fn openssl_agrees_with_the_signature() {
    if !require(&["openssl", "tar"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("cert.pem"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
        ])
        .args(["-keyout", p(&key), "-out", p(&certificate)])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let ova = build(
        folder.path(),
        "signed.ova",
        &["--sign-key", p(&key), "--sign-certificate", p(&certificate)],
    );
    assert!(mt_image_ok(&["ova", "verify", p(&ova)]).contains("the signature fits"));

    let tar = Command::new("tar")
        .args(["-xf", p(&ova)])
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert!(tar.success());
    let signed = std::fs::read_to_string(folder.path().join(format!("{BASE}.cert"))).unwrap();
    let first = signed.lines().next().unwrap();
    let hex = first.strip_prefix(&format!("SHA256({BASE}.mf)= ")).unwrap();
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    std::fs::write(folder.path().join("signature"), bytes).unwrap();
    let public = Command::new("openssl")
        .args(["x509", "-in", p(&certificate), "-noout", "-pubkey"])
        .output()
        .unwrap();
    std::fs::write(folder.path().join("public.pem"), public.stdout).unwrap();
    let verified = Command::new("openssl")
        .args([
            "dgst",
            "-sha256",
            "-verify",
            "public.pem",
            "-signature",
            "signature",
            &format!("{BASE}.mf"),
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", text(&verified));

    // Another certificate for the same name is noticed when signing, and a foreign signature when verifying.
    let (other, _) = (folder.path().join("other.pem"), ());
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
        ])
        .args(["-keyout", "/dev/null", "-out", p(&other)])
        .output()
        .unwrap();
    assert!(made.status.success());
    let disk = folder.path().join("disk.raw");
    let out = folder.path().join("never.ova");
    let refused = mt_image(&[
        "ova",
        "build",
        "--spec",
        SPEC,
        "--disk",
        p(&disk),
        "--out",
        p(&out),
        "--sign-key",
        p(&key),
        "--sign-certificate",
        p(&other),
    ]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
    let forged = signed.replace(
        &std::fs::read_to_string(&certificate).unwrap(),
        &std::fs::read_to_string(&other).unwrap(),
    );
    std::fs::write(folder.path().join(format!("{BASE}.cert")), forged).unwrap();
    let forged_ova = folder.path().join("forged.ova");
    let tar = Command::new("tar")
        .args(["--format=ustar", "-cf", p(&forged_ova)])
        .args(["ovf", "mf", "cert"].map(|extension| format!("{BASE}.{extension}")))
        .arg(format!("{BASE}-disk1.vmdk"))
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert!(tar.success());
    let refused = mt_image(&["ova", "verify", p(&forged_ova)]);
    assert_eq!(refused.status.code(), Some(9));
    assert!(
        text(&refused).contains("signature does not fit"),
        "{}",
        text(&refused)
    );
}

/// COT (Common OVF Tool) is installed from PyPI; `MT_COT` names the program.
#[test]
fn cot_reads_the_appliance() {
    let Some(cot) = std::env::var_os("MT_COT") else {
        common::skip_here("MT_COT does not name COT's program");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let ova = build(folder.path(), "a.ova", &[]);
    let info = Command::new(cot)
        .args(["info", "--verbose", p(&ova)])
        .output()
        .unwrap();
    let said = text(&info);
    assert!(info.status.success(), "{said}");
    for expected in [
        "vmx-13",
        "Master target",
        "VM Network",
        "guestinfo.hostname",
        "48 MiB",
    ] {
        assert!(said.contains(expected), "{expected} is missing in\n{said}");
    }
}

/// Python's default tar is PAX: what oVirt and others stumbled over.
#[test]
fn tars_of_other_forms_are_refused() {
    if !require(&["tar"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ova = build(folder.path(), "good.ova", &[]);
    assert!(
        Command::new("tar")
            .args(["-xf", p(&ova)])
            .current_dir(folder.path())
            .status()
            .unwrap()
            .success()
    );
    let names = [
        format!("{BASE}.ovf"),
        format!("{BASE}.mf"),
        format!("{BASE}-disk1.vmdk"),
    ];
    for (format, order, says) in [
        ("--format=posix", [0, 1, 2], "tar-pax"),
        (
            "--format=gnu",
            [2, 1, 0],
            "Did not find an .ovf file at the beginning",
        ),
    ] {
        let bad = folder.path().join("bad.ova");
        let tar = Command::new("tar")
            .args([format, "-cf", p(&bad)])
            .args(order.map(|index| &names[index]))
            .current_dir(folder.path())
            .status()
            .unwrap();
        assert!(tar.success());
        let refused = mt_image(&["ova", "verify", p(&bad)]);
        assert_eq!(refused.status.code(), Some(9));
        assert!(text(&refused).contains(says), "{}", text(&refused));
    }
}

#[test]
fn a_full_file_system_is_said_and_leaves_nothing() {
    if !common::require_root() || !require(&["mount", "umount"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (small, disk) = (folder.path().join("small"), folder.path().join("disk.raw"));
    std::fs::create_dir(&small).unwrap();
    sample_disk(&disk, 48);
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs", p(&small)])
        .status()
        .unwrap();
    assert!(mounted.success());
    let (ova, vmdk) = (small.join("x.ova"), small.join("x.vmdk"));
    let full = [
        mt_image(&[
            "ova",
            "build",
            "--spec",
            SPEC,
            "--disk",
            p(&disk),
            "--out",
            p(&ova),
        ]),
        mt_image(&["vmdk", "write", p(&disk), p(&vmdk)]),
    ];
    let left: Vec<_> = std::fs::read_dir(&small)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    for output in full {
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(
            text(&output).contains("No space left") && text(&output).contains("hint:"),
            "{}",
            text(&output)
        );
    }
    assert_eq!(left, Vec::<std::ffi::OsString>::new());
}
