// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMDK files between this program and the independent readers and writers of QEMU and libvmdk.

mod common;

use std::path::Path;

use common::{mt_image, mt_image_ok, require, run, sample_disk, text};

fn p(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn independent_readers_agree_with_the_writer() {
    if !require(&["qemu-img", "vmdkinfo"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, vmdk) = (
        folder.path().join("disk.raw"),
        folder.path().join("a disk\nof two lines.vmdk"),
    );
    sample_disk(&raw, 200);
    mt_image_ok(&["vmdk", "write", p(&raw), p(&vmdk)]);

    let plain = folder.path().join("plain.vmdk");
    std::fs::copy(&vmdk, &plain).unwrap();
    let check = run(
        "qemu-img",
        &["check".as_ref(), "-f".as_ref(), "vmdk".as_ref(), &plain],
    );
    assert!(check.status.success(), "{}", text(&check));
    let compare = run(
        "qemu-img",
        &[
            "compare".as_ref(),
            "-f".as_ref(),
            "raw".as_ref(),
            "-F".as_ref(),
            "vmdk".as_ref(),
            &raw,
            &plain,
        ],
    );
    assert!(
        compare.status.success() && text(&compare).contains("identical"),
        "{}",
        text(&compare)
    );
    let info = run("vmdkinfo", &[&plain]);
    assert!(info.status.success(), "{}", text(&info));
    let said = text(&info);
    assert!(
        said.contains("Stream optimized") && said.contains("209715200 bytes"),
        "{said}"
    );

    // The writer's own reader, and the disk it gives back.
    assert!(mt_image_ok(&["vmdk", "check", p(&vmdk)]).contains("good"));
    let back = folder.path().join("back.raw");
    mt_image_ok(&["vmdk", "extract", p(&vmdk), p(&back)]);
    assert!(
        std::fs::read(&raw).unwrap() == std::fs::read(&back).unwrap(),
        "the extracted disk differs"
    );
}

/// qemu-img's files decode correctly, but zeros follow their end-of-stream marker, which is what breaks imports into
/// vSphere. Cut behind the marker they are good: so the check neither cries wolf nor sleeps.
#[test]
fn files_of_qemu_img_are_read_and_refused_for_what_follows_the_end() {
    if !require(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, vmdk) = (folder.path().join("disk.raw"), folder.path().join("qemu.vmdk"));
    sample_disk(&raw, 64);
    let convert: [&Path; 9] = [
        "convert".as_ref(),
        "-f".as_ref(),
        "raw".as_ref(),
        "-O".as_ref(),
        "vmdk".as_ref(),
        "-o".as_ref(),
        "subformat=streamOptimized".as_ref(),
        &raw,
        &vmdk,
    ];
    assert!(run("qemu-img", &convert).status.success());
    let refused = mt_image(&["vmdk", "check", p(&vmdk)]);
    assert_eq!(refused.status.code(), Some(9), "{}", text(&refused));
    let said = String::from_utf8(refused.stdout).unwrap();
    assert!(
        said.starts_with("after-end: at offset 0x") && said.lines().count() == 1,
        "{said}"
    );

    let at = said.split("offset 0x").nth(1).unwrap().split(':').next().unwrap();
    let end = u64::from_str_radix(at, 16).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&vmdk)
        .unwrap()
        .set_len(end)
        .unwrap();
    mt_image_ok(&["vmdk", "check", p(&vmdk)]);
    let back = folder.path().join("back.raw");
    mt_image_ok(&["vmdk", "extract", p(&vmdk), p(&back)]);
    assert!(
        std::fs::read(&raw).unwrap() == std::fs::read(&back).unwrap(),
        "the extracted disk differs"
    );
}

#[test]
fn an_empty_disk_of_qemu_img_has_no_end() {
    if !require(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let vmdk = folder.path().join("empty.vmdk");
    let create = [
        "create",
        "-q",
        "-f",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
        p(&vmdk),
        "1G",
    ];
    assert!(run("qemu-img", &create.map(Path::new)).status.success());
    let refused = mt_image(&["vmdk", "check", p(&vmdk)]);
    assert_eq!(refused.status.code(), Some(9));
    assert!(
        text(&refused).contains("without an end-of-stream marker"),
        "{}",
        text(&refused)
    );
}

#[test]
fn other_kinds_of_vmdk_are_refused_by_name() {
    if !require(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let vmdk = folder.path().join("sparse.vmdk");
    assert!(
        run(
            "qemu-img",
            &["create", "-q", "-f", "vmdk", p(&vmdk), "8M"].map(Path::new)
        )
        .status
        .success()
    );
    let refused = mt_image(&["vmdk", "check", p(&vmdk)]);
    assert_eq!(refused.status.code(), Some(9));
    assert!(text(&refused).contains("version is 1"), "{}", text(&refused));
}

#[test]
fn what_cannot_be_done_is_said_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, vmdk) = (folder.path().join("disk.raw"), folder.path().join("out.vmdk"));
    let missing = mt_image(&["vmdk", "write", p(&raw), p(&vmdk)]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing).contains("cannot open"), "{}", text(&missing));
    std::fs::write(&raw, "").unwrap();
    assert_eq!(
        mt_image(&["vmdk", "write", p(&raw), p(&vmdk)]).status.code(),
        Some(2)
    );
    assert!(!vmdk.exists());
    std::fs::write(&raw, "x".repeat(513)).unwrap();
    let odd = mt_image(&["vmdk", "write", p(&raw), p(&vmdk)]);
    assert_eq!(odd.status.code(), Some(2));
    assert!(
        text(&odd).contains("513 bytes are no disk: the size of a disk is a multiple of 512"),
        "{}",
        text(&odd)
    );
    assert!(!vmdk.exists());
    std::fs::write(&raw, "x".repeat(512)).unwrap();
    std::fs::write(&vmdk, "precious").unwrap();
    let refused = mt_image(&["vmdk", "write", p(&raw), p(&vmdk)]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(text(&refused).contains("exists already"), "{}", text(&refused));
    assert_eq!(std::fs::read(&vmdk).unwrap(), b"precious");
    let said = mt_image_ok(&["vmdk", "write", "--force", p(&raw), p(&vmdk)]);
    assert!(
        said.contains("from a disk of 512 bytes (and 65024 bytes of zeros") && said.contains(", 1 grain,"),
        "{said}"
    );
    let said = mt_image_ok(&["vmdk", "write", "--force", "--json", p(&raw), p(&vmdk)]);
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&document["capacity"], &document["padding_bytes"]),
        (&65_536.into(), &65_024.into())
    );
    assert!(mt_image_ok(&["vmdk", "check", p(&vmdk)]).contains("good, 1 grain,"));

    // A damaged file is not extracted, not even in part.
    let mut bytes = std::fs::read(&vmdk).unwrap();
    let last = bytes.len() - 520;
    bytes[last] ^= 1;
    std::fs::write(&vmdk, bytes).unwrap();
    let back = folder.path().join("back.raw");
    assert_eq!(
        mt_image(&["vmdk", "extract", p(&vmdk), p(&back)]).status.code(),
        Some(9)
    );
    assert!(!back.exists());
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}
