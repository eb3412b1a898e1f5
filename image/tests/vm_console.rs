// SPDX-License-Identifier: MIT OR Apache-2.0
//! The appliance's screen, driven over the serial line, and what a healthy appliance looks like behind it: every unit
//! runs, names are resolved by the servers of DHCP, the disk has names of its own, a crash leaves a dump.
//!
//! `MT_OVA` names the appliance file: `scripts/test` builds one for all tests.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "common/appliance.rs"]
mod appliance;
mod common;
#[path = "common/vm.rs"]
mod vm;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use appliance::{HOST, PASSWORD, disk_of, environment, given_ova, log_in, succeed};
use vm::{Firmware, Restart, Vm, scratch};

/// What the machine with the disk and the CD is made of. Enough memory for a kernel that writes crash dumps.
fn devices(disk: &Path, cd: &Path) -> Vec<String> {
    let disk = format!("file={},if=none,id=d0,format=qcow2", disk.display());
    let cd = format!("file={},if=none,id=c1,media=cdrom,readonly=on", cd.display());
    [
        "-m", "2048",
        "-device", "pvscsi,id=s0",
        "-drive", &disk,
        "-device", "scsi-hd,drive=d0,bus=s0.0,scsi-id=0,wwn=0x5000c29000000001,vendor=VMware,product=Virtual disk,bootindex=0",
        "-drive", &cd,
        "-device", "ide-cd,drive=c1",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// UUIDs of the disk's table, partitions, file systems and swap, and the serial number of the EFI system partition.
fn names(vm: &mut Vm) -> BTreeSet<String> {
    // Read from the disk itself: what udev and the kernel know may be older.
    let said = vm.shell(
        "D=/dev/$(cat /run/mt-system/disk); for d in $D $D?; do for t in PTUUID PART_ENTRY_UUID UUID; do \
         blkid -p -o value -s $t $d; done; done",
    );
    said.lines()
        .map(str::to_owned)
        .filter(|line| !line.is_empty())
        .collect()
}

/// Sets the root password on the screen, where none was given.
fn set_password(vm: &mut Vm) {
    vm.press("p");
    vm.wait_for("New root password");
    vm.press(&format!("{PASSWORD}\r"));
    vm.wait_for("once more");
    vm.press(&format!("{PASSWORD}\r"));
    vm.wait_for("the password is set");
}

/// What an appliance without a fault says; waits until nothing is starting any more.
fn assert_healthy(vm: &mut Vm) {
    let state = vm.shell("systemctl is-system-running --wait");
    assert_eq!(vm.failed_units(), "");
    assert_eq!(state.trim(), "running");
    for unit in [
        "master-target",
        "master-target-broker",
        "master-target-firewall",
        "master-target-first-boot",
        "master-target-scsi-ids",
        "mt-bind",
        "chrony",
        "systemd-networkd",
        "systemd-resolved",
        "kdump-tools",
        "master-target-console@tty1",
    ] {
        assert_eq!(
            vm.shell(&format!("systemctl is-active {unit}")).trim(),
            "active",
            "{unit}"
        );
    }
}

fn ova() -> Option<PathBuf> {
    given_ova(&["qemu-system-x86_64", "qemu-img", "bsdtar", "xorriso"])
}

#[test]
fn vm_the_screen_on_the_serial_line_of_a_healthy_appliance() {
    let Some(ova) = ova() else { return };
    let folder = scratch();
    let folder = folder.path();
    let disk = disk_of(&ova, folder);
    let cd = environment(
        folder,
        &[
            ("guestinfo.hostname", HOST),
            ("guestinfo.address", "10.0.2.77/24"),
            ("guestinfo.gateway", "10.0.2.2"),
        ],
        &[],
    );
    let mut vm = Vm::start(folder, Firmware::Bios, Restart::Runs, &devices(&disk, &cd));

    // 1. The screen, with the settings of the deployment; whoever has no password yet sets one.
    for text in [
        "name       failback1",
        "address    10.0.2.77 (",
        "SCSI IDs   good: 1 SCSI disk",
        "agent      running",
        "pairs      0, 0 jobs running",
        "p set the root password   n network   l log   r restart",
    ] {
        vm.wait_for(text);
    }
    set_password(&mut vm);
    vm.wait_for("Enter log in   i identity   n network   p password   l log   r restart");
    vm.press("l");
    let log = vm.wait_for("any key: back");
    assert!(log.contains("failback1 "), "{log}");
    vm.press(" ");
    vm.wait_for("Enter log in");

    // What machines register with: for root's eyes, and the passphrase once.
    for (times, wanted) in [(1, "it is shown this once"), (2, "mt-agent passphrase rotate")] {
        vm.press("i");
        vm.wait_for("Root password of this appliance");
        vm.press(&format!("{PASSWORD}\r"));
        let said = vm.wait_for(wanted);
        assert!(said.contains("CA fingerprint"), "time {times}: {said}");
        vm.wait_for("any key: back");
        vm.press(" ");
        vm.wait_for("Enter log in");
    }

    // 2. The network's settings: nobody gets there without the password.
    vm.press("n");
    vm.wait_for("Root password of this appliance");
    vm.press("wrong password\r");
    vm.wait_for("that is not root's password");
    vm.press("n");
    vm.wait_for("Root password of this appliance");
    vm.press(&format!("{PASSWORD}\r"));
    vm.wait_for("> failback1_");
    vm.press("\r");
    vm.wait_for("> 2  a static address");
    vm.press("1");
    vm.wait_for("> 1  DHCP");
    vm.press("\r");
    vm.wait_for("DNS servers");
    vm.press("\r");
    vm.wait_for("address  by DHCP");
    vm.press("a");
    vm.wait_for("the network's settings are in effect");
    vm.wait_for("address    10.0.2.15 (");

    // 3. Behind the screen: the same on tty1, everything runs, DHCP's name server is asked.
    log_in(&mut vm);
    assert_healthy(&mut vm);
    let tty1 = vm.shell("fold -w 80 /dev/vcs1");
    assert!(
        tty1.contains("Master target 0.") && tty1.contains("name       failback1"),
        "{tty1}"
    );
    assert!(tty1.contains("Enter log in   i identity   n network"), "{tty1}");
    let servers = vm.shell("cat /etc/resolv.conf");
    assert!(
        servers.lines().any(|line| line == "nameserver 10.0.2.3"),
        "{servers}"
    );
    let own = vm.shell("wc -c < /etc/machine-id; ls /etc/ssh/ssh_host_*_key | wc -l");
    assert_eq!(own.split_whitespace().next(), Some("33"), "{own}");
    assert_ne!(own.split_whitespace().nth(1), Some("0"), "{own}");

    // 4. Names of its own: none of the image's is left, and the boot menu knows the new one.
    let started_from = vm.shell("grep -o 'mt.root=[^ ]*' /proc/cmdline");
    let names_now = names(&mut vm);
    let image_root = started_from.trim().trim_start_matches("mt.root=").to_owned();
    assert!(names_now.len() >= 12, "{names_now:?}");
    assert!(
        !names_now.contains(&image_root),
        "{image_root} is still in {names_now:?}"
    );
    let menu = vm.shell("grep -o 'mt.root=[^ ]*' /boot/grub/master-target.cfg | sort -u");
    let root = menu.trim().trim_start_matches("mt.root=").to_owned();
    assert!(names_now.contains(&root), "{root} is not in {names_now:?}");

    // 5. The end of a session brings the screen back. A restart finds the disk by its new name and its SCSI ID.
    vm.press("exit\r");
    vm.wait_for("Enter log in");
    vm.press("r");
    vm.wait_for("y restart");
    vm.press("y");
    // Until it goes down the screen is shown as before.
    vm.wait_for("GNU GRUB");
    vm.wait_for("agent      running");
    vm.press(" ");
    log_in(&mut vm);
    assert_healthy(&mut vm);
    let line = vm.shell("cat /proc/cmdline");
    assert!(
        line.contains(&format!("mt.root={root} mt.disk=naa.5000c29000000001 ")),
        "{line}"
    );
    assert_eq!(names(&mut vm), names_now);
    assert_eq!(
        vm.shell("ls /etc/master-target/image-names 2>&1 | grep -c 'No such'")
            .trim(),
        "1"
    );

    vm.press("systemctl poweroff\r");
    vm.wait_for_end();
}

/// A crash: another kernel writes the dump and restarts the machine.
#[test]
fn long_a_crash_leaves_a_dump() {
    let Some(ova) = ova() else { return };
    let folder = scratch();
    let folder = folder.path();
    let disk = disk_of(&ova, folder);
    let cd = environment(folder, &[("guestinfo.hostname", HOST)], &[]);
    let mut vm = Vm::start(folder, Firmware::Bios, Restart::Runs, &devices(&disk, &cd));
    vm.wait_for("agent      running");
    set_password(&mut vm);
    log_in(&mut vm);
    vm.shell("systemctl is-system-running --wait");
    let ready = vm.shell("cat /sys/kernel/kexec_crash_loaded; ls /var/crash");
    assert!(ready.starts_with('1'), "{ready}");
    vm.press("sync; echo c > /proc/sysrq-trigger\r");
    vm.wait_for("GNU GRUB");
    vm.wait_for("agent      running");
    vm.press(" ");
    log_in(&mut vm);
    // The format of makedumpfile, or the one that it writes to a pipe: both begin with a name.
    let dump = vm.shell("head -c 5 /var/crash/*/dump.*; echo; tail -n 60 /var/crash/*/dmesg.*");
    assert!(
        dump.starts_with("KDUMP\n") || dump.starts_with("maked\n"),
        "{dump}"
    );
    assert!(dump.contains("sysrq: Trigger a crash"), "{dump}");
    vm.press("systemctl poweroff\r");
    vm.wait_for_end();
    drop(vm);
}

/// Settings that cannot be used and a disk without an ID: both are on the screen, nothing was applied, and the appliance
/// can be set up from there.
#[test]
fn long_the_screen_tells_of_wrong_settings_and_of_a_disk_without_an_id() {
    let Some(ova) = ova() else { return };
    let folder = scratch();
    let folder = folder.path();
    let disk = disk_of(&ova, folder);
    let cd = environment(
        folder,
        &[
            ("guestinfo.hostname", "$(reboot)"),
            ("guestinfo.timezone", "Mars/Olympus"),
        ],
        &[],
    );
    let other = folder.join("other.img");
    fs::File::create(&other).unwrap().set_len(64 << 20).unwrap();
    let mut more = devices(&disk, &cd);
    more.extend([
        "-drive".to_owned(),
        format!("file={},if=none,id=d1,format=raw", other.display()),
        "-device".to_owned(),
        "scsi-hd,drive=d1,bus=s0.0,scsi-id=1,vendor=VMware,product=Virtual disk".to_owned(),
    ]);
    let mut vm = Vm::start(folder, Firmware::Bios, Restart::Ends, &more);
    for text in [
        "SCSI IDs   IN DOUBT: 1 of 2 SCSI disks show no ID; set disk.EnableUUID=TRUE",
        "agent      running",
        "! 1 of the SCSI disks shows no SCSI ID: ",
        "Settings given at deployment cannot be used; none was applied:",
        "! guestinfo.hostname: ",
        "! guestinfo.timezone: ",
    ] {
        vm.wait_for(text);
    }
    set_password(&mut vm);
    // A host name for the login below, which also is the first setting of the network.
    vm.press("n");
    vm.wait_for("Root password of this appliance");
    vm.press(&format!("{PASSWORD}\r"));
    vm.wait_for("Host name");
    vm.press(&format!("\x15{HOST}\r"));
    vm.wait_for("> 1  DHCP");
    vm.press("\r");
    vm.wait_for("DNS servers");
    vm.press("\r");
    vm.wait_for("a apply");
    vm.press("a");
    vm.wait_for("the network's settings are in effect");
    log_in(&mut vm);
    let failed = vm.shell("systemctl list-units --failed --no-legend --plain | cut -d' ' -f1");
    assert_eq!(
        failed.split_whitespace().collect::<Vec<_>>(),
        [
            "master-target-first-boot.service",
            "master-target-scsi-ids.service"
        ]
    );
    let alarms =
        vm.shell("mt-agent status --json | tr -d '\\n ' | grep -o 'scsi-id-missing\\|critical' | sort -u");
    assert_eq!(
        alarms.split_whitespace().collect::<Vec<_>>(),
        ["critical", "scsi-id-missing"]
    );
    vm.press("systemctl poweroff\r");
    vm.wait_for_end();
    succeed("qemu-img", &["check".as_ref(), disk.as_path()]);
}
