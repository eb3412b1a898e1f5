// SPDX-License-Identifier: MIT OR Apache-2.0
//! Installs onto loop devices and into image files, and kills the installer at every step.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Output;

use common::{
    Disk, assert_complete, can_install, done, identities, installer, partitions, payload, scratch, text,
};

const SIZE: u64 = 6 << 30;

/// Where the installer is killed: before and after each step, and within those that write most.
const CUTS: &[&str] = &[
    "check_payload.before",
    "wipe.before",
    "wipe.first",
    "wipe.after",
    "make_file_systems.part3",
    "make_file_systems.part4",
    "make_file_systems.part6",
    "unpack.before",
    "unpack.after",
    "configure.after",
    "boot_files.after",
    "close_file_systems.before",
    "close_file_systems.after",
    "boot_partitions.core",
    "boot_partitions.after",
    "backup_table.after",
    "primary_table.before",
    "primary_table.after",
    "first_sector.before",
    "first_sector.after",
];

fn apply(disk: &Disk, folder: &Path, payload: &Path, cut: Option<&str>) -> Output {
    let mut command = installer();
    command
        .args([
            "apply",
            "--any-device",
            "--disk",
            &disk.node,
            "--wipe",
            &disk.node,
            "--payload",
        ])
        .arg(payload)
        .arg("--work")
        .arg(folder)
        .arg("--state")
        .arg(folder.join("state.json"));
    if let Some(cut) = cut {
        command.env("MT_INSTALLER_CUT", cut);
    }
    command.output().unwrap()
}

#[test]
fn loop_killed_at_any_step_the_disk_does_not_boot_or_is_complete() {
    if !can_install("loop_killed_at_any_step_the_disk_does_not_boot_or_is_complete") {
        return;
    }
    let folder = scratch();
    let payload = payload(folder.path());
    let disk = Disk::new(folder.path(), SIZE);
    // An installation that is there must not survive half: it is what an operator replaces.
    let first = apply(&disk, folder.path(), &payload, None);
    assert!(first.status.success(), "{}", text(&first));
    assert_complete(&disk.file, "a first installation");
    let first_names = identities(&disk.file);
    let mut whole = 1;
    for cut in CUTS {
        let killed = apply(&disk, folder.path(), &payload, Some(cut));
        assert_eq!(killed.status.signal(), Some(9), "{cut}: {}", text(&killed));
        // Each run starts on what the one before has left, so reaching this cut shows that a next run goes well.
        if disk.read(0, 512).iter().all(|byte| *byte == 0) {
            let state = fs::read_to_string(folder.path().join("state.json")).unwrap();
            assert!(state.contains("\"finished\": false"), "{cut}: {state}");
        } else {
            assert_complete(&disk.file, cut);
            whole += 1;
        }
        assert!(done("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]).contains("disk.img"));
    }
    // Complete: the old installation before the first write, and the new one after the last.
    assert_eq!(whole, 4, "which cuts leave a disk that boots");
    let last = apply(&disk, folder.path(), &payload, None);
    assert!(last.status.success(), "{}", text(&last));
    assert_complete(&disk.file, "the run after all cuts");
    assert!(
        identities(&disk.file).is_disjoint(&first_names),
        "every installation has names of its own"
    );
    let left = done(
        "losetup",
        &["--noheadings", "--output", "NAME", "--associated", &disk.node],
    );
    assert_eq!(left.trim(), "", "loop devices are left over");
}

#[test]
fn loop_refusals_change_nothing() {
    if !can_install("loop_refusals_change_nothing") {
        return;
    }
    let folder = scratch();
    let payload = payload(folder.path());
    let disk = Disk::new(folder.path(), SIZE);
    done("mkfs.ext4", &["-q", "-F", &disk.node]);
    done("sync", &[]);
    let before = folder.path().join("before.img");
    done(
        "cp",
        &[
            "--sparse=always",
            disk.file.to_str().unwrap(),
            before.to_str().unwrap(),
        ],
    );
    let refused = |arguments: &[&str], code: i32, says: &str| {
        let output = installer()
            .args(["apply", "--any-device", "--disk", &disk.node, "--payload"])
            .arg(&payload)
            .arg("--work")
            .arg(folder.path())
            .arg("--state")
            .arg(folder.path().join("state.json"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains(says), "{says} is not in {}", text(&output));
        done("sync", &[]);
        let compared = common::run("cmp", &[disk.file.to_str().unwrap(), before.to_str().unwrap()]);
        assert!(
            compared.status.success(),
            "{says}: the disk was changed: {}",
            text(&compared)
        );
    };
    refused(&[], 5, "it holds ext4");
    refused(&["--wipe", "sdz"], 5, "--wipe names sdz");
    let wrong = "0".repeat(64);
    refused(
        &["--wipe", &disk.node, "--payload-sha256", &wrong],
        9,
        "is damaged",
    );
    let held = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(&disk.node)
        .unwrap();
    refused(&["--wipe", &disk.node], 5, "nothing was written");
    drop(held);
}

use std::os::unix::fs::OpenOptionsExt as _;

#[test]
fn loop_disks_that_cannot_carry_the_system_are_refused_and_named() {
    if !can_install("loop_disks_that_cannot_carry_the_system_are_refused_and_named") {
        return;
    }
    let folder = scratch();
    let payload = payload(folder.path());
    let table: [(&[&str], u64, i32, &str); 3] = [
        (
            &["--sector-size", "4096"],
            SIZE,
            5,
            "its logical blocks have 4096 bytes",
        ),
        (&["--read-only"], SIZE, 5, "it is read-only"),
        (&[], 2 << 30, 4, "the disk is too small: it has 2.0 GiB"),
    ];
    for (options, size, code, says) in table {
        let disk = Disk::of_kind(folder.path(), size, options);
        let refused = apply(&disk, folder.path(), &payload, None);
        assert_eq!(refused.status.code(), Some(code), "{}", text(&refused));
        for words in [says, "nothing was written", "hint: "] {
            assert!(text(&refused).contains(words), "{words}: {}", text(&refused));
        }
        assert!(
            disk.read(0, 1 << 20).iter().all(|byte| *byte == 0),
            "{says}: the disk was written to"
        );
    }
}

/// Beyond 2 TiB a partition table of the BIOS's time ends. What starts the machine must lie before that, the table's copy
/// lies behind.
#[test]
fn loop_a_disk_of_three_tib_is_complete() {
    if !can_install("loop_a_disk_of_three_tib_is_complete") {
        return;
    }
    let folder = scratch();
    let payload = payload(folder.path());
    let disk = Disk::new(folder.path(), 3 << 40);
    let installed = apply(&disk, folder.path(), &payload, None);
    assert!(installed.status.success(), "{}", text(&installed));
    assert_complete(&disk.file, "3 TiB");
    for (label, start, size) in partitions(&disk.file) {
        assert!(start + size <= 2 << 40, "{label} ends at {}", start + size);
    }
    assert_eq!(disk.read((3 << 40) - 512, 8), b"EFI PART", "the table's copy");
}

/// A plan is what apply would do: what apply refuses has no plan.
#[test]
fn loop_an_image_that_cannot_be_made_has_no_plan() {
    let folder = scratch();
    let existing = folder.path().join("there.img");
    fs::write(&existing, "kept").unwrap();
    let inside = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let good = "6442450944";
    let table = [
        (inside("no/such/folder.img"), good, 2, "there is no folder"),
        (inside("there.img"), good, 5, "it exists and is kept"),
        (inside(""), good, 2, "no plain file"),
        ("/dev/null".to_owned(), good, 2, "a disk is named with --disk"),
        (inside("new.img"), "0", 4, "too small"),
        (inside("new.img"), "1073741824", 4, "too small"),
        (inside("new.img"), "6442450945", 2, "no whole MiB"),
        (inside("new.img"), "18446744073708503040", 2, "up to 62 TiB"),
        (inside("new.img"), "-1", 2, "unexpected argument"),
        (inside("new.img"), "6G", 2, "invalid value"),
    ];
    for (image, size, code, says) in table {
        for verb in [
            &["plan"][..],
            &["apply", "--payload", "/nowhere/payload.squashfs"][..],
        ] {
            let output = installer()
                .args(verb)
                .args(["--image", &image, "--size", size])
                .output()
                .unwrap();
            let said = text(&output);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{verb:?} {image} {size}: {said}"
            );
            assert!(said.contains(says), "{verb:?} {image} {size}: {said}");
        }
    }
    assert_eq!(fs::read(&existing).unwrap(), b"kept");
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let plan = installer()
        .args(["plan", "--force", "--size", good, "--image"])
        .arg(&existing)
        .output()
        .unwrap();
    assert!(plan.status.success(), "{}", text(&plan));
}

/// An image took the place of the payload that it was to be made from, and what lay under the name `IMAGE.part` was lost.
#[test]
fn loop_an_image_takes_the_place_of_no_input_and_of_nothing_beside_it() {
    if !can_install("loop_an_image_takes_the_place_of_no_input_and_of_nothing_beside_it") {
        return;
    }
    let folder = scratch();
    let payload = payload(folder.path());
    let digest = payload.with_extension("sha256");
    let answers = folder.path().join("answers.ks");
    fs::write(&answers, "lang en_US.UTF-8\n").unwrap();
    let before = [&payload, &digest, &answers].map(|path| fs::read(path).unwrap());
    let link = folder.path().join("link");
    fs::hard_link(&payload, &link).unwrap();
    let apply = |image: &Path| {
        installer()
            .args(["apply", "--force", "--size", "6442450944", "--memory", "1024"])
            .arg("--answers")
            .arg(&answers)
            .arg("--image")
            .arg(image)
            .arg("--payload")
            .arg(&payload)
            .arg("--work")
            .arg(folder.path())
            .output()
            .unwrap()
    };
    for image in [&payload, &digest, &answers, &link] {
        let refused = apply(image);
        assert_eq!(refused.status.code(), Some(5), "{}", text(&refused));
        assert!(
            text(&refused).contains("is to be read itself"),
            "{}",
            text(&refused)
        );
    }
    let (victim, beside) = (folder.path().join("victim"), folder.path().join("k.img.part"));
    fs::write(&victim, "kept").unwrap();
    std::os::unix::fs::symlink(&victim, &beside).unwrap();
    let made = apply(&folder.path().join("k.img"));
    assert!(made.status.success(), "{}", text(&made));
    assert_eq!(fs::read(&victim).unwrap(), b"kept");
    assert!(beside.symlink_metadata().unwrap().is_symlink());
    let after = [&payload, &digest, &answers].map(|path| fs::read(path).unwrap());
    assert!(before == after);
}

#[test]
fn loop_an_image_of_the_same_inputs_has_the_same_bytes() {
    if !can_install("loop_an_image_of_the_same_inputs_has_the_same_bytes") {
        return;
    }
    let folder = scratch();
    let payload = payload(folder.path());
    let make = |name: &str| {
        let image = folder.path().join(name);
        let output = installer()
            .args([
                "apply",
                "--size",
                "6442450944",
                "--source-date",
                "1767225600",
                "--memory",
                "1024",
            ])
            .arg("--image")
            .arg(&image)
            .arg("--payload")
            .arg(&payload)
            .arg("--work")
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert_complete(&image, name);
        let again = installer()
            .args(["apply", "--size", "6442450944", "--image"])
            .arg(&image)
            .arg("--payload")
            .arg(&payload)
            .output()
            .unwrap();
        assert_eq!(
            again.status.code(),
            Some(5),
            "an image that exists is kept: {}",
            text(&again)
        );
        image
    };
    let (one, two) = (make("one.img"), make("two.img"));
    done("cmp", &[one.to_str().unwrap(), two.to_str().unwrap()]);
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            name.starts_with(".mt-install-") || name.ends_with(".json") || name.starts_with("mt-install-")
        })
        .collect();
    assert_eq!(left, Vec::<String>::new());
}
