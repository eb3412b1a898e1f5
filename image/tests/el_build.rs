// SPDX-License-Identifier: MIT OR Apache-2.0
//! A medium of the CentOS family from repositories of small packages: the whole build but for a kernel that starts.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "common/el.rs"]
mod el;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{mt_image_ok, run, text};
use el::{Lab, p};

const PACKAGES: &[&str] = &[
    "kernel",
    "dracut",
    "alpha",
    "shim-x64",
    "grub2-efi-x64",
    "grub2-efi-x64-cdboot",
    "grub2-pc-modules",
    "grub2-tools",
];
const ISO: &str = "master-target-el-0.1.0.iso";

fn lab(test: &str) -> Option<Lab> {
    if !common::require(&["mksquashfs", "xorriso", "mkfs.vfat", "mcopy", "strip"]) {
        return None;
    }
    let lab = Lab::make(test)?;
    // Stands for both programs of the appliance, which play no part here.
    let program = lab.at("program");
    let own = Path::new(env!("CARGO_BIN_EXE_mt-image"));
    let stripped = run("strip", &["--strip-all".as_ref(), "-o".as_ref(), &program, own]);
    assert!(stripped.status.success(), "{}", text(&stripped));
    Some(lab)
}

/// `mt-image VERB --spec SPEC` with everything that is not in its usual place; `before` starts it.
fn command(lab: &Lab, before: &[&str], verb: &str, spec: &Path, work: &Path, more: &[&str]) -> Command {
    let words = [before, &[env!("CARGO_BIN_EXE_mt-image"), verb]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("--spec").arg(spec);
    for option in ["--agent", "--installer"] {
        command.arg(option).arg(lab.at("program"));
    }
    command.arg("--work").arg(work).args(more);
    command
}

fn build(lab: &Lab, spec: &Path, work: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = command(lab, &[], "build", spec, work, more);
    command.arg("--iso").arg("--out").arg(out).output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A file of a medium.
fn on_medium(lab: &Lab, iso: &Path, name: &str) -> Vec<u8> {
    let to = lab.at("extracted");
    let words = ["-osirrox", "on", "-indev"].map(Path::new);
    let rest: [&Path; 3] = ["-extract".as_ref(), name.as_ref(), &to];
    let extracted = run("xorriso", &[&words[..], &[iso], &rest].concat());
    assert!(extracted.status.success(), "{}", text(&extracted));
    let bytes = fs::read(&to).unwrap();
    fs::remove_file(&to).unwrap();
    bytes
}

#[test]
fn el_medium_is_made_and_made_again_the_same() {
    let Some(lab) = lab("el_medium_is_made_and_made_again_the_same") else {
        return;
    };
    let spec = lab.spec(PACKAGES, |_| {});
    let (out, work) = (lab.at("out here"), lab.at("work"));
    let output = build(&lab, &spec, &work, &out, &["--keep-stage"]);
    assert!(output.status.success(), "{}", text(&output));
    let iso = out.join(ISO);
    assert!(mt_image_ok(&["iso", "verify", p(&iso)]).contains("good"));
    assert_eq!(on_medium(&lab, &iso, "/boot/vmlinuz"), b"kernel\n");
    let initramfs = String::from_utf8(on_medium(&lab, &iso, "/boot/initrd.img")).unwrap();
    assert!(
        initramfs.contains("add_dracutmodules+=\" master-target \""),
        "{initramfs}"
    );
    let packages = fs::read_to_string(out.join("master-target-el-0.1.0.packages.json")).unwrap();
    assert!(packages.contains("grub2-efi-x64-cdboot") && packages.contains("3:1.2-1.el9"));
    let bill = fs::read_to_string(out.join("master-target-el-0.1.0.spdx.json")).unwrap();
    assert!(bill.contains("pkg:rpm/centos/alpha@3%3A1.2-1.el9"), "{bill}");

    // GRUB of the family reads its menu beside itself; the loaders are those of its folder.
    let esp = lab.at("esp.img");
    let listed = run(
        "xorriso",
        &[
            "-indev".as_ref(),
            &iso,
            "-report_el_torito".as_ref(),
            "plain".as_ref(),
        ],
    );
    assert!(text(&listed).contains("UEFI"), "{}", text(&listed));
    let words = ["-osirrox", "on", "-indev"].map(Path::new);
    let rest: [&Path; 3] = [
        "-extract_boot_images".as_ref(),
        &lab.at("boot images"),
        "--".as_ref(),
    ];
    let extracted = run("xorriso", &[&words[..], &[&iso], &rest].concat());
    assert!(extracted.status.success(), "{}", text(&extracted));
    let image = names(&lab.at("boot images"))
        .into_iter()
        .find(|name| name.contains("gpt_part2"))
        .unwrap();
    fs::rename(lab.at("boot images").join(image), &esp).unwrap();
    for (name, holds) in [
        ("BOOTX64.EFI", "shimx64\n"),
        ("grubx64.efi", "gcdx64\n"),
        ("mmx64.efi", "mmx64\n"),
        ("grub.cfg", "/mt/payload.sha256"),
    ] {
        let inner = format!("::/EFI/BOOT/{name}");
        let read = run("mtype", &["-i".as_ref(), &esp, inner.as_ref()]);
        assert!(text(&read).contains(holds), "{name}: {}", text(&read));
    }

    // dnf drops the line break and works elsewhere: refused before.
    let odd = lab.at("a line\nbreak");
    let output = build(&lab, &spec, &odd, &lab.at("second"), &[]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("a line\\nbreak"), "{}", text(&output));
    assert!(names(&odd).is_empty() && !lab.at("second").exists());

    // From nothing, in a folder of an odd name: the same bytes.
    let odd = lab.at("an odd;name & \"more\"");
    let output = build(&lab, &spec, &odd, &lab.at("second"), &[]);
    assert!(output.status.success(), "{}", text(&output));
    for name in names(&out) {
        let pair = [out.join(&name), lab.at("second").join(&name)];
        let same = run("cmp", &pair.each_ref().map(PathBuf::as_path));
        assert!(same.status.success(), "{}", text(&same));
    }
    assert!(!odd.exists(), "{:?}", names(&odd));

    // The lock file holds; one new version in the repository is named, and refused when that was asked for.
    let lock = lab.at("spec.lock.toml");
    let output = command(&lab, &[], "lock", &spec, &work, &[]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("root file system: taken from "),
        "{}",
        text(&output)
    );
    assert!(fs::read_to_string(&lock).unwrap().contains("3:1.2-1.el9"));
    let output = build(&lab, &spec, &work, &out, &["--locked", "--force", "--keep-stage"]);
    assert!(output.status.success(), "{}", text(&output));
    lab.packages(&["--define", "alpha_version 1.3"]);
    let before = fs::read(&iso).unwrap();
    let output = build(&lab, &spec, &work, &out, &["--locked", "--force", "--keep-stage"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    for says in [
        "alpha",
        "3:1.2-1.el9",
        "3:1.3-1.el9",
        "hint: look at what changed",
    ] {
        assert!(text(&output).contains(says), "{says}: {}", text(&output));
    }
    assert!(
        fs::read(&iso).unwrap() == before,
        "the medium of before was touched"
    );
    let output = build(&lab, &spec, &work, &out, &["--force"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("warning: the packages are not those of"),
        "{}",
        text(&output)
    );
    assert!(
        fs::read(&iso).unwrap() != before,
        "the new package is not in the medium"
    );
    assert!(!work.exists(), "{:?}", names(&work));
}

#[test]
fn el_names_what_no_medium_can_be_made_without() {
    let Some(lab) = lab("el_names_what_no_medium_can_be_made_without") else {
        return;
    };
    let (out, work) = (lab.at("out"), lab.at("work"));
    for (without, says) in [
        ("shim-x64", "add shim-x64 to rootfs.packages"),
        ("grub2-pc-modules", "add grub2-pc-modules to rootfs.packages"),
    ] {
        let packages: Vec<&str> = PACKAGES.iter().copied().filter(|name| *name != without).collect();
        let spec = lab.spec(&packages, |_| {});
        let output = build(&lab, &spec, &work, &out, &[]);
        assert_eq!(output.status.code(), Some(3), "{without}: {}", text(&output));
        assert!(text(&output).contains(says), "{without}: {}", text(&output));
        assert!(
            names(&work).is_empty() && !out.exists(),
            "{without}: {:?}",
            names(&work)
        );
    }
    // A program that the image's libraries cannot start.
    let mut broken = fs::read(lab.at("program")).unwrap();
    let at = broken
        .windows(8)
        .position(|window| window == b"ld-linux")
        .unwrap();
    broken[at] = b'X';
    fs::write(lab.at("program"), broken).unwrap();
    let spec = lab.spec(PACKAGES, |_| {});
    let output = build(&lab, &spec, &work, &out, &[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let says = "the installer does not run in the root file system of the image";
    assert!(text(&output).contains(says), "{}", text(&output));
    assert!(names(&work).is_empty() && !out.exists());
}

/// Space runs out in the work folder, at one stage after the other as it grows: the index, the packages, the initramfs,
/// the packing. Each time it is told as that, and nothing is left.
#[test]
fn el_without_space_nothing_is_left_at_any_stage() {
    let Some(lab) = lab("el_without_space_nothing_is_left_at_any_stage") else {
        return;
    };
    let spec = lab.spec(PACKAGES, |_| {});
    let (work, out) = (lab.at("little work"), lab.at("out"));
    fs::create_dir(&work).unwrap();
    let mut reached = Vec::new();
    for mib in [1, 3, 6, 10, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128] {
        // In a mount namespace of its own, so that the file system goes with the process.
        let script = format!(
            "mount -t tmpfs -o size={mib}m tmpfs \"$0\" && \"$@\"; code=$?; echo \"left: $(ls -A \"$0\")\" >&2; exit $code"
        );
        let before = ["unshare", "--mount", "sh", "-c", &script, p(&work)];
        let mut command = command(&lab, &before, "build", &spec, &work, &["--iso"]);
        let output = command.arg("--out").arg(&out).output().unwrap();
        let said = text(&output);
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), Some(1), "{mib} MiB: {said}");
        assert!(said.contains("hint: free space"), "{mib} MiB: {said}");
        assert!(
            said.ends_with("left: \n"),
            "{mib} MiB: something was left behind: {said}"
        );
        assert!(
            !out.exists() || names(&out).is_empty(),
            "{mib} MiB: {:?}",
            names(&out)
        );
        let mut step = said
            .lines()
            .filter(|line| !line.contains(':') || line.contains("root file system:"));
        reached.push(format!("{mib} MiB: {}", step.next_back().unwrap_or("the index")));
    }
    println!("{}", reached.join("\n"));
    assert!(out.join(ISO).is_file(), "never enough space: {reached:?}");
    assert!(reached.len() >= 3, "too few stages were tried: {reached:?}");
}
