// SPDX-License-Identifier: MIT OR Apache-2.0
//! The installation medium in a machine, and somebody at the serial line: answers are typed, and disks that cannot be told
//! apart are named.
//!
//! `MT_ISO` names the medium: `scripts/test` builds one for all tests. The machines look like VMware's: PVSCSI, VMXNET3,
//! VMware in SMBIOS, SCSI IDs from VPD page 0x83.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "../../image/tests/common/vm.rs"]
mod vm;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use common::{done, medium, scratch};
use vm::{Firmware, Restart, Vm};

const SIZE: u64 = 8 << 30;
const PASSWORD: &str = "correct horse";

#[derive(Clone, Copy)]
struct DiskOf<'a> {
    image: &'a Path,
    /// Its SCSI ID; none: its VPD page 0x83 is empty.
    wwn: Option<u64>,
    boots: bool,
}

/// Devices of a machine: a SCSI controller, CDs (the first one is started from before any disk), disks.
fn devices(cds: &[&Path], disks: &[DiskOf<'_>]) -> Vec<String> {
    let mut more = Vec::new();
    let mut add = |option: &str, value: String| more.extend([option.to_owned(), value]);
    // From 2 GiB on memory is set aside for the kernel that writes a dump.
    add("-m", "2560".to_owned());
    add("-device", "pvscsi,id=s0".to_owned());
    for (number, disk) in disks.iter().enumerate() {
        let image = disk.image.display();
        add("-drive", format!("file={image},if=none,id=d{number},format=raw"));
        let name = disk
            .wwn
            .map_or_else(|| "device_id=".to_owned(), |wwn| format!("wwn={wwn:#x}"));
        let order = if disk.boots { ",bootindex=2" } else { "" };
        add(
            "-device",
            format!(
                "scsi-hd,drive=d{number},bus=s0.0,scsi-id={number},vendor=VMware,product=Virtual disk,{name}{order}"
            ),
        );
    }
    for (number, cd) in cds.iter().enumerate() {
        let image = cd.display();
        add(
            "-drive",
            format!("file={image},if=none,id=cd{number},media=cdrom,readonly=on"),
        );
        let order = if number == 0 { ",bootindex=1" } else { "" };
        add("-device", format!("ide-cd,drive=cd{number}{order}"));
    }
    more
}

/// Waits for the medium's boot menu and presses an entry's letter.
fn choose(vm: &mut Vm, letter: &str) {
    vm.wait_for("Check this medium");
    vm.press(letter);
}

/// What these tests start.
const PROGRAMS: &[&str] = &["qemu-system-x86_64", "xorriso"];

const OWN: u64 = 0x5000_c290_0000_0001;

fn empty(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// A CD with one file.
fn cd(folder: &Path, label: &str, name: &str, content: &str) -> PathBuf {
    let (file, iso) = (folder.join(name), folder.join(format!("{label}.iso")));
    fs::write(&file, content).unwrap();
    let words = format!("-as mkisofs -quiet -r -J -V {label} -o");
    let mut words: Vec<&str> = words.split(' ').collect();
    words.extend([iso.to_str().unwrap(), file.to_str().unwrap()]);
    done("xorriso", &words);
    iso
}

/// What vSphere puts on the CD of the ISO transport.
fn ovf_environment(folder: &Path, properties: &[(&str, &str)]) -> PathBuf {
    let properties: String = properties
        .iter()
        .map(|(key, value)| format!("<Property oe:key=\"guestinfo.{key}\" oe:value=\"{value}\"/>"))
        .collect();
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment xmlns=\"http://schemas.dmtf.org/ovf/environment/1\" \
         xmlns:oe=\"http://schemas.dmtf.org/ovf/environment/1\"><PropertySection>{properties}</PropertySection></Environment>\n"
    );
    cd(folder, "OVFENV", "ovf-env.xml", &text)
}

/// As somebody without a kickstart file does it: answers are typed, wrong ones are told, one is taken back, they are saved,
/// and the installation goes by them. The system that it leaves starts and is what was asked for.
#[test]
fn vm_answers_typed_on_the_serial_line_install_on_pvscsi() {
    let Some(medium) = medium("vm_answers_typed_on_the_serial_line_install_on_pvscsi", PROGRAMS) else {
        return;
    };
    let folder = scratch();
    let disk = empty(folder.path(), "disk.img", SIZE);
    let own = DiskOf {
        image: &disk,
        wwn: Some(OWN),
        boots: true,
    };
    let mut vm = Vm::start(
        folder.path(),
        Firmware::Bios,
        Restart::Ends,
        &devices(&[&medium], &[own]),
    );
    choose(&mut vm, "i");
    vm.wait_for("Press Enter to restart.");
    vm.press("i");
    vm.wait_for("Host name (1 of");
    vm.press("\x15mt_2");
    vm.wait_for("! \"mt_2\": a host name has letters");
    vm.press("\x15wrong\r");
    vm.wait_for("Network (2 of");
    vm.press("\x1b");
    vm.wait_for("> wrong_");
    vm.press("\x15mt02.example.com\r");
    vm.wait_for("Network (2 of");
    vm.press("2\r");
    vm.wait_for("Static address (3 of");
    vm.press("10.0.2.78/255.255.255.0\r");
    vm.wait_for("Default gateway (4 of");
    vm.press("10.0.3.2");
    vm.wait_for("! 10.0.3.2 is not in the net of 10.0.2.78/24");
    vm.press("\x1510.0.2.2\r");
    vm.wait_for("DNS servers (5 of");
    vm.press("10.0.2.3\r");
    vm.wait_for("Time zone (6 of");
    vm.press("\x15Europe/Berlin\r");
    vm.wait_for("Root password (7 of");
    vm.press(&format!("{PASSWORD}\r"));
    vm.wait_for("Root password, once more");
    vm.press(&format!("{PASSWORD}\r"));
    vm.wait_for("Disk to install on");
    vm.wait_for("naa.5000c29000000001");
    vm.press("\r");
    vm.wait_for("! type yes");
    vm.press("yes\r");
    vm.wait_for("Summary");
    vm.press("s");
    vm.wait_for("Save the answers");
    vm.press("\r");
    vm.wait_for("saved as /root/master-target.ks");
    vm.press("i");
    let said = vm.wait_for("[ 4/");
    for words in [
        "lines from the questions on this console",
        "install on naa.5000c29000000001 (sda)",
        "nothing: the disk is empty",
        "wipe old signatures at its ends",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    vm.wait_for("The master target is installed.");
    vm.wait_for_end();
    drop(vm);
    let mut vm = Vm::start(
        folder.path(),
        Firmware::Bios,
        Restart::Ends,
        &devices(&[], &[own]),
    );
    vm.log_in("mt02", Some(PASSWORD));
    let name = vm.shell("hostname --fqdn; readlink /etc/localtime; ip -brief -4 address show scope global");
    for words in ["mt02.example.com\n", "zoneinfo/Europe/Berlin\n", " 10.0.2.78/24"] {
        assert!(name.contains(words), "{words:?} is not in {name}");
    }
    assert_eq!(vm.failed_units(), "");
    assert_eq!(vm.shell("systemctl is-active master-target"), "active\n");
}

/// On VMware a disk without an ID stops the installation, whoever gives the answers: somebody at the console, before the
/// first question, or nobody.
#[test]
fn vm_disks_without_an_id_stop_the_installation_on_vmware() {
    let Some(medium) = medium("vm_disks_without_an_id_stop_the_installation_on_vmware", PROGRAMS) else {
        return;
    };
    let folder = scratch();
    let environment = ovf_environment(folder.path(), &[("hostname", "mt04")]);
    let [first, second] = ["one.img", "two.img"].map(|name| empty(folder.path(), name, SIZE));
    let disk = |image, wwn| DiskOf {
        image,
        wwn,
        boots: false,
    };
    let disks = [disk(&first, Some(OWN)), disk(&second, None)];
    let mut vm = Vm::start(
        folder.path(),
        Firmware::Bios,
        Restart::Runs,
        &devices(&[&medium, &environment], &disks),
    );
    choose(&mut vm, "i");
    vm.wait_for("Press Enter to restart.");
    vm.press("i");
    let asked = vm.wait_for("Press Enter to restart.");
    vm.press("\r");
    choose(&mut vm, "u");
    let unattended = vm.wait_for("Press Enter to restart.");
    assert!(
        unattended.contains("lines from the OVF environment (ovf-env.xml on /dev/sr"),
        "{unattended}"
    );
    for said in [asked, unattended] {
        for words in [
            "The installation failed: disks of this virtual machine cannot be told apart; nothing was written",
            "IN DOUBT: 1 of 2 SCSI disks show no ID",
            ":1:0         8 GiB  VPD page 0x83 is empty",
            "disk.EnableUUID = TRUE",
            "vSphere client: Edit settings",
            "govc vm.change",
            "mt-image vmx enable-uuid",
        ] {
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
        // Which disk the kernel finds first is chance: the one in doubt is named by its place, and only that one.
        assert_eq!(said.matches(":0         8 GiB").count(), 1, "{said}");
    }
    drop(vm);
    for image in [first, second] {
        assert_eq!(
            fs::metadata(&image).unwrap().blocks(),
            0,
            "{image:?} was written to"
        );
    }
}
