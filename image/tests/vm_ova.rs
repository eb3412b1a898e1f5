// SPDX-License-Identifier: MIT OR Apache-2.0
//! The appliance as its users meet it: the OVA's disk, taken out of the VMDK by an independent reader, started in a
//! machine like VMware's with the properties of the deploy wizard on a CD.
//!
//! The machine has a BIOS, since the UEFI firmware that Debian packages for QEMU knows no PVSCSI controller.
//!
//! `MT_OVA` names the appliance file: `scripts/test` builds one for all tests.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "common/vm.rs"]
mod vm;

use std::fs;
use std::path::{Path, PathBuf};

use common::{mt_image_ok, run, text};
use vm::{Firmware, Restart, Vm};

const PASSWORD: &str = "correct horse";

fn appliance(programs: &[&str]) -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MT_OVA") else {
        common::skip_here("MT_OVA names no appliance file; scripts/test builds one");
        return None;
    };
    common::require(programs).then(|| PathBuf::from(path))
}

/// Runs a program that must succeed.
fn succeed(program: &str, arguments: &[&Path]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The disk out of the OVA, by bsdtar and qemu-img.
fn disk_of(ova: &Path, folder: &Path) -> PathBuf {
    let bsdtar: [&Path; 4] = ["-xf".as_ref(), ova, "-C".as_ref(), folder];
    succeed("bsdtar", &bsdtar);
    let vmdk = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "vmdk"))
        .unwrap();
    let check = mt_image_ok(&["vmdk", "check", vmdk.to_str().unwrap()]);
    assert!(check.contains("good"), "{check}");
    let disk = folder.join("disk.qcow2");
    let words = ["convert", "-f", "vmdk", "-O", "qcow2"].map(Path::new);
    succeed("qemu-img", &[&words[..], &[&vmdk, &disk]].concat());
    fs::remove_file(vmdk).unwrap();
    disk
}

/// A CD with what the deploy wizard was told, as vSphere makes it for the ISO transport.
fn environment(folder: &Path, properties: &[(&str, &str)]) -> PathBuf {
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment \
                   xmlns=\"http://schemas.dmtf.org/ovf/environment/1\" \
                   xmlns:oe=\"http://schemas.dmtf.org/ovf/environment/1\">\n  <PropertySection>\n"
        .to_owned();
    for (key, value) in properties {
        xml += &format!("    <Property oe:key=\"{key}\" oe:value=\"{value}\"/>\n");
    }
    xml += "  </PropertySection>\n</Environment>\n";
    let (file, iso) = (folder.join("ovf-env.xml"), folder.join("ovf-env.iso"));
    fs::write(&file, xml).unwrap();
    let words = "-as mkisofs -quiet -r -J -V OVFENV -o".split(' ').map(Path::new);
    let words: Vec<&Path> = words.chain([iso.as_path(), file.as_path()]).collect();
    succeed("xorriso", &words);
    iso
}

#[test]
fn vm_the_ova_reaches_a_login_with_the_agent_running() {
    let Some(ova) = appliance(&["qemu-system-x86_64", "qemu-img", "bsdtar", "xorriso", "openssl"]) else {
        return;
    };
    let size = ova.metadata().unwrap().len();
    assert!(size < 300 << 20, "the OVA has {size} bytes");
    let verdict = mt_image_ok(&["ova", "verify", ova.to_str().unwrap()]);
    assert!(verdict.contains("disk.EnableUUID is set"), "{verdict}");

    let folder = tempfile::Builder::new()
        .prefix("mt-vm-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let folder = folder.path();
    let disk = disk_of(&ova, folder);
    let hash = succeed("openssl", &["passwd", "-6", PASSWORD].map(Path::new));
    let cd = environment(
        folder,
        &[
            ("guestinfo.hostname", "failback1"),
            ("guestinfo.timezone", "Europe/Berlin"),
            ("guestinfo.root_password_hash", hash.trim()),
        ],
    );
    let mut devices = Vec::new();
    let mut add = |option: &str, value: String| devices.extend([option.to_owned(), value]);
    for number in 0..4 {
        add("-device", format!("pvscsi,id=s{number}"));
    }
    add(
        "-drive",
        format!("file={},if=none,id=d0,format=qcow2", disk.display()),
    );
    add(
        "-device",
        "scsi-hd,drive=d0,bus=s0.0,wwn=0x6000c29000000001,vendor=VMware,product=Virtual disk,bootindex=0"
            .to_owned(),
    );
    add(
        "-drive",
        format!("file={},if=none,id=c1,media=cdrom,readonly=on", cd.display()),
    );
    add("-device", "ide-cd,drive=c1".to_owned());
    let mut vm = Vm::start(folder, Firmware::Bios, Restart::Ends, &devices);
    vm.wait_for("failback1 login: ");
    vm.press("root\r");
    vm.wait_for("Password: ");
    vm.press(&format!("{PASSWORD}\r"));
    vm.wait_for("root@failback1");
    // Put together by the shell, so that the echo of a command is not taken for its result.
    vm.press(
        "systemctl is-active --quiet master-target && mt-agent status >/dev/null && echo agent=$((40+2))\r",
    );
    vm.wait_for("agent=42");
    vm.press("echo failed=$(systemctl list-units --failed --no-legend | wc -l)=\r");
    vm.wait_for("failed=0=");
    vm.press("readlink /etc/localtime | sed s/^/zone=/\r");
    vm.wait_for("zone=/usr/share/zoneinfo/Europe/Berlin");
    vm.press("mt-agent disks list --json | tr -d ' \\n' | grep -o '6000c29000000001' | head -n 1 | sed s/^/disk=/\r");
    vm.wait_for("disk=6000c29000000001");
    vm.press("systemctl poweroff\r");
    vm.wait_for_end();
}
