// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine of one's own becomes a master target by the tarball: a plain Debian, started, given the tarball on a CD, the
//! step killed once, run, run again, and the machine restarted. That Debian has no LVM, md, multipath, nftables, SSH and
//! kdump, so that it is a system without most of the step's parts too.
//!
//! `MT_PROGRAMS` names the folder with the appliance's programs, as `scripts/test` leaves them.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "common/appliance.rs"]
mod appliance;
mod common;
#[path = "common/vm.rs"]
mod vm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use appliance::{SERVED, succeed};
use common::{mt_image_ok, text};
use vm::{Firmware, Restart, Vm, scratch};

const ID: &str = "5000c29000000002";

/// The disk of a Debian that is no appliance, below a layer that takes what is written.
fn plain_debian(folder: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/make-source-disk");
    let made = Command::new(script).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let image = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let layer = folder.join("system.qcow2");
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &image].map(Path::new);
    succeed("qemu-img", &[&words[..], &[&layer]].concat());
    layer
}

/// A CD with the tarball.
fn tarball_on_cd(folder: &Path, programs: &Path) -> PathBuf {
    let [agent, installer] = ["mt-agent", "mt-installer"].map(|name| programs.join(name));
    mt_image_ok(&[
        "agent-tarball",
        "--agent",
        agent.to_str().unwrap(),
        "--installer",
        installer.to_str().unwrap(),
        "--version",
        "1.2.3",
        "--out",
        folder.to_str().unwrap(),
    ]);
    let (tarball, cd) = (
        folder.join("master-target-agent-1.2.3.tar.gz"),
        folder.join("tarball.iso"),
    );
    let words = "-as mkisofs -quiet -r -J -V TARBALL -o".split(' ').map(Path::new);
    let words: Vec<&Path> = words.chain([cd.as_path(), tarball.as_path()]).collect();
    succeed("xorriso", &words);
    cd
}

fn log_in(vm: &mut Vm) {
    vm.wait_for("db01 login: ");
    vm.press("root\r");
    vm.wait_for("# ");
}

#[test]
fn long_a_plain_debian_becomes_a_master_target_by_the_tarball() {
    let Some(programs) = std::env::var_os("MT_PROGRAMS") else {
        common::skip_here("MT_PROGRAMS names no folder of programs; scripts/test builds them");
        return;
    };
    if !common::require_root() || !common::require(&["qemu-system-x86_64", "qemu-img", "xorriso"]) {
        return;
    }
    let folder = scratch();
    let folder = folder.path();
    let (system, cd) = (plain_debian(folder), tarball_on_cd(folder, Path::new(&programs)));
    let guests = folder.join("guest.img");
    fs::File::create(&guests).unwrap().set_len(64 << 20).unwrap();
    succeed("mkswap", &["-L".as_ref(), "guest".as_ref(), guests.as_path()]);
    let before = fs::read(&guests).unwrap();

    let mut devices = vec!["-device".to_owned(), "pvscsi,id=s0".to_owned()];
    for (number, image, format) in [(1, &system, "qcow2"), (2, &guests, "raw")] {
        devices.push("-drive".to_owned());
        devices.push(format!(
            "file={},if=none,id=d{number},format={format}",
            image.display()
        ));
        devices.push("-device".to_owned());
        devices.push(format!(
            "scsi-hd,drive=d{number},bus=s0.0,scsi-id={number},vendor=VMware,product=Virtual disk,\
             wwn=0x5000c2900000000{number}"
        ));
    }
    devices.push("-drive".to_owned());
    devices.push(format!(
        "file={},if=none,id=c1,media=cdrom,readonly=on",
        cd.display()
    ));
    devices.extend(["-device".to_owned(), "ide-cd,drive=c1".to_owned()]);
    let mut vm = Vm::start(folder, Firmware::Bios, Restart::Runs, &devices);

    log_in(&mut vm);
    let unpacked = vm.shell(
        "mount -o ro /dev/sr0 /mnt && cd /root && tar -zxf /mnt/master-target-agent-1.2.3.tar.gz && \
         cd master-target-agent-1.2.3 && chmod 755 ApplyCustomChanges.sh && echo ready",
    );
    assert!(unpacked.contains("ready"), "{unpacked}");
    vm.shell(
        "printf '#!/bin/sh\\necho once >> /root/own-step\\n' > custom.d/10-own; chmod 755 custom.d/10-own",
    );
    let planned =
        vm.shell("./mt-installer custom-change plan > /root/plan; echo code=$?; ls /etc/master-target");
    assert!(planned.contains("code=0"), "{planned}");
    assert!(
        planned.contains("No such file"),
        "plan changes nothing: {planned}"
    );

    // Killed while it works, as soon as its journal says that it has begun.
    let journal = "/var/lib/master-target/custom-change/journal";
    let killed = vm.shell(&format!(
        "./mt-installer custom-change apply --tarball . > /root/killed 2>&1 & \
         while ! test -s {journal}; do :; done; kill -9 $!; wait $!; echo code=$?"
    ));
    assert!(killed.contains("code=137"), "{killed}");
    let done = vm.shell("./ApplyCustomChanges.sh > /root/said 2>&1; echo code=$?; tail -n 30 /root/said");
    assert!(done.contains("code=0"), "{done}");
    let again = vm.shell("./ApplyCustomChanges.sh; echo code=$?");
    assert!(again.contains("code=5"), "{again}");
    assert!(again.contains("the custom changes were made on 20"), "{again}");

    // The screen is there instead of the login.
    vm.press("sync; systemctl reboot\r");
    vm.log_in("db01", None);
    let agent = vm.shell(SERVED);
    assert_eq!(agent, "active\nserved\n");
    let status = vm.shell("mt-installer custom-change status; echo code=$?");
    assert!(status.contains("code=0"), "{status}");
    assert_eq!(vm.shell("cat /root/own-step"), "once\n");
    let disks = vm.shell("mt-agent disks list");
    assert!(disks.contains(&format!("naa.{ID}")), "{disks}");
    assert_eq!(vm.failed_units(), "");
    assert_eq!(
        vm.shell("tail -n +2 /proc/swaps"),
        "",
        "a guest's swap is left alone"
    );
    vm.press("systemctl poweroff\r");
    vm.wait_for_end();
    drop(vm);
    assert!(
        fs::read(&guests).unwrap() == before,
        "the guest's disk was changed"
    );
}
