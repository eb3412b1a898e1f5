// SPDX-License-Identifier: MIT OR Apache-2.0
//! The appliance as its users meet it: the OVA's disk, taken out of the VMDK by an independent reader, started in a
//! machine like VMware's with the properties of the deploy wizard on a CD.
//!
//! Under BIOS its disk hangs on PVSCSI, as in the OVA. Under Secure Boot it hangs on SATA, since the UEFI firmware that Debian
//! packages for QEMU knows neither PVSCSI nor LSI Logic SAS.
//!
//! `MT_OVA` names the appliance file: `scripts/test` builds one for all tests.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "common/appliance.rs"]
mod appliance;
mod common;
#[path = "common/vm.rs"]
mod vm;

use std::fs;
use std::path::{Path, PathBuf};

use appliance::{HOST, PASSWORD, SERVED, disk_of, environment, given_ova, log_in, succeed};
use common::mt_image_ok;
use vm::{Firmware, Restart, Vm, scratch};

/// A machine comes home to a point, on the appliance itself: its services as they are, the disk and the retention disk on PVSCSI.
/// What is sent is a file of the appliance's; source and target are two processes of one machine here.
const FAILBACK: &str = r#"set -e
D() { for f in /sys/block/sd*/device/wwid; do
    if [ "$(cat $f)" = naa.5000c2900000000$1 ]; then echo $f | cut -d/ -f4; fi
done; }
served() { n=0; until mt-agent status > /dev/null 2>&1; do n=$((n + 1)); [ $n -lt 60 ]; sleep 1; done; }
# Before anything else: a restart forgets the passphrase that nobody has seen.
served
mt-agent identity show > /root/identity
sed -n 's/^PASSPHRASE *//p' /root/identity > /root/passphrase
CA=$(grep -o 'sha256:[0-9a-f]*' /root/identity | head -n 1)
printf '[retention]\nfolder = "/retention"\n' >> /etc/master-target/agent.toml
systemctl restart master-target
served
head -c 3000000 /dev/urandom > /root/disk.img
truncate -s 64M /root/disk.img
cp /root/disk.img /root/first.img
mt-agent register --target 127.0.0.1 --name db01 --ca-fingerprint $CA --passphrase-file /root/passphrase
mt-agent machines approve db01
mt-agent pair add db01/scsi0:1 naa.5000c29000000002
mt-agent retention init --disk naa.5000c29000000003
mt-agent identity export /root/backup > /root/backup-passphrase
send() { mt-agent source send --target 127.0.0.1:9443 --machine db01 --disk scsi0:1=/root/disk.img "$@"; }
send --point-name first
printf changed | dd of=/root/disk.img conv=notrunc bs=1 seek=1000000 status=none
send
cmp /root/disk.img /dev/$(D 2)
# Who does it: no right but that of the ports, not root, and no disk opened by itself.
target=$(systemctl show -P MainPID master-target)
echo "target: $(stat -c %U /proc/$target) $(sed -n 's/^CapEff:[^0-9a-f]*//p' /proc/$target/status)"
echo "broker: $(stat -c %U $(echo /proc/$(systemctl show -P MainPID master-target-broker)))"
# Who has taken over the target runs as its user. He opens no disk, reads nothing of root's, and the broker opens for him what
# root has paired under that name, and nothing else.
stolen() { setpriv --reuid master-target --regid master-target --init-groups --bounding-set -all "$@"; }
for file in /dev/$(D 2) /dev/$(D 3) /dev/$(cat /run/mt-system/disk) /dev/sd* /dev/mem /proc/kcore /etc/shadow /root/identity \
    /root/backup /root/backup-passphrase \
    /var/lib/master-target-broker/pairs.json /var/lib/master-target/custom-change/journal; do
    stolen head -c 1 $file > /root/read 2>&1 && echo "STOLEN: $file"
done
ask() { stolen perl -MIO::Socket::UNIX -e '
    $s = IO::Socket::UNIX->new("/run/master-target-broker/broker.sock") or die "no broker: $!";
    print $s pack("N/a*", $ARGV[0]); $s->flush; read $s, $l, 4; read $s, $d, unpack("N", $l); print "$d\n";' "$1"; }
for request in '{"verb":"open","pair":"db01/other","purpose":"write"}' \
    '{"verb":"record","pair":"db01/other","scsi_id":"naa.5000c29000000003","overwrite":true}' \
    '{"verb":"forget","pair":"db01/scsi0:1"}' '{"verb":"open","pair":"../../dev/sda","purpose":"write"}'; do
    echo "asked: $(ask "$request" | cut -c1-19)"
done
for verb in 'pair remove db01/scsi0:1' 'machines revoke db01' 'passphrase rotate' 'registration open' \
    'identity export /tmp/stolen' 'points delete db01 first' 'roll db01 --to first' 'failover db01 --to first'; do
    stolen mt-agent $verb > /root/read 2>&1 && echo "STOLEN: $verb"
done
stolen mt-agent pair add db01/other naa.5000c29000000003 --overwrite naa.5000c29000000003 && echo "STOLEN: a pair"
disk=$(D 2)
mt-agent failover db01 --to first
# The kernel's device is gone, so that the VMDK can be detached; it is looked for again to see what is on it.
echo "released: $([ -e /sys/block/$disk ] || echo yes)"
for host in /sys/class/scsi_host/host*/scan; do echo '- - -' > $host; done
udevadm settle
cmp /root/first.img /dev/$(D 2)
mt-agent commit db01
"#;

/// The strictest start, with the wizard's answers, to login, agent, answers and the identity of the disk; then a whole
/// failback. The other tests start the same disk under BIOS.
#[test]
fn vm_the_ova_under_secure_boot_brings_a_machine_home() {
    let Some(ova) = given_ova(&["qemu-system-x86_64", "qemu-img", "bsdtar", "xorriso", "openssl"]) else {
        return;
    };
    let size = ova.metadata().unwrap().len();
    assert!(size < 300 << 20, "the OVA has {size} bytes");
    let verdict = mt_image_ok(&["ova", "verify", ova.to_str().unwrap()]);
    assert!(verdict.contains("disk.EnableUUID is set"), "{verdict}");

    let folder = scratch();
    let folder = folder.path();
    let disk = disk_of(&ova, folder);
    let hash = succeed("openssl", &["passwd", "-6", PASSWORD].map(Path::new));
    let script = folder.join("failback.sh");
    fs::write(&script, FAILBACK).unwrap();
    let cd = environment(
        folder,
        &[
            ("guestinfo.hostname", HOST),
            ("guestinfo.timezone", "Europe/Berlin"),
            ("guestinfo.root_password_hash", hash.trim()),
        ],
        &[&script],
    );
    let mut devices = Vec::new();
    let mut add = |option: &str, value: String| devices.extend([option.to_owned(), value]);
    for number in 0..4 {
        add("-device", format!("pvscsi,id=s{number}"));
    }
    for (number, mib) in [(2, 64), (3, 1_200)] {
        let path = folder.join(format!("target{number}.img"));
        fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
        add(
            "-drive",
            format!("file={},if=none,id=t{number},format=raw", path.display()),
        );
        let name = format!("wwn=0x5000c2900000000{number},vendor=VMware,product=Virtual disk");
        add(
            "-device",
            format!("scsi-hd,drive=t{number},bus=s1.0,scsi-id={number},{name}"),
        );
    }
    add(
        "-drive",
        format!("file={},if=none,id=d0,format=qcow2", disk.display()),
    );
    // An ATA disk's own name is of the kind 5; VMware's kind 6 is for SCSI disks.
    let device = "ide-hd,bus=ide.0,wwn=0x5000c29000000001";
    add("-device", format!("{device},drive=d0,bootindex=0"));
    add(
        "-drive",
        format!("file={},if=none,id=c1,media=cdrom,readonly=on", cd.display()),
    );
    add("-device", "ide-cd,bus=ide.1,drive=c1".to_owned());
    let mut vm = Vm::start(folder, Firmware::SecureBoot, Restart::Ends, &devices);
    log_in(&mut vm);
    let agent = vm.shell(SERVED);
    assert_eq!(agent, "active\nserved\n");
    assert_eq!(vm.failed_units(), "");
    let zone = vm.shell("readlink /etc/localtime");
    assert_eq!(zone, "/usr/share/zoneinfo/Europe/Berlin\n");
    let disks = vm.shell("mt-agent disks list --json");
    assert!(disks.contains("naa.5000c29000000001"), "{disks}");
    // The firmware's own word: four bytes of attributes, then whether it enforces Secure Boot.
    let secure =
        vm.shell("cat /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null | od -An -t u1 | awk '{print $5}'");
    assert_eq!(secure.trim(), "1", "Secure Boot");
    let failback = vm.shell("mount -o ro /dev/sr0 /mnt && sh /mnt/failback.sh; echo code=$?");
    assert!(failback.ends_with("code=0\n"), "{failback}");
    for fact in [
        "target: master-target 0000000000000400",
        "broker: root",
        "released: yes",
    ] {
        assert!(failback.contains(fact), "{fact}: {failback}");
    }
    assert!(!failback.contains("STOLEN"), "{failback}");
    let refused = failback.matches("asked: {\"answer\":\"failed\"").count();
    assert_eq!(refused, 4, "{failback}");
    assert_eq!(vm.failed_units(), "");
    vm.press("systemctl poweroff\r");
    vm.wait_for_end();
}

/// Gives the attached disks what machines that come home have on them. Their numbers are the ends of their SCSI IDs.
const MAKE_DISKS: &str = r#"set -e
d() { for f in /sys/block/sd*/device/wwid; do
    if [ "$(cat $f)" = naa.5000c290000001$1 ]; then echo /dev/$(echo $f | cut -d/ -f4); fi
done; }
# The appliance's LVM sees no disk; here it is told to.
lv() { disk=$1; verb=$2; shift 2; lvm $verb --config \
    "devices { global_filter=[\"a|^$disk\$|\",\"r|.*|\"] use_devicesfile=0 }" "$@"; }
for n in 10 11; do
    D=$(d $n)
    lv $D pvcreate --yes $D
    lv $D vgcreate vg_orders $D
    lv $D lvcreate --activate n --wipesignatures n --zero n --extents 5 --name data vg_orders
done
mdadm --create /dev/md10 --run --level=1 --raid-devices=2 --metadata=1.2 $(d 12) $(d 13)
mkfs.ext4 -q /dev/md10
mdadm --stop /dev/md10
mdadm --create /dev/md11 --run --level=1 --raid-devices=2 --metadata=1.0 $(d 14) $(d 15)
mkswap /dev/md11
mdadm --stop /dev/md11
mkswap $(d 16)
mkfs.btrfs -q -f -d raid1 -m raid1 $(d 17) $(d 18)
mkfs.xfs -q -f $(d 19)
mkreiserfs -q -ff $(d 20)
mkfs.ext4 -q -F -L home $(d 21)
# A disk that systemd would mount and swap to by itself where it was the one the system runs from.
sfdisk --quiet $(d 22) <<'PARTS'
label: gpt
size=100M, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
size=100M, type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915
type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F
PARTS
udevadm settle
mkfs.ext4 -q -F $(d 22)1
mkfs.ext4 -q -F $(d 22)2
mkswap $(d 22)3
for n in $(seq 23 39); do mkfs.ext4 -q -F -L guest$n $(d $n); done
sync
"#;

const GUESTS: std::ops::Range<u32> = 10..40;

/// Bytes of a guest's disk: no more than its content needs, since all are hashed twice.
fn size(number: u32) -> u64 {
    let mib = match number {
        17 | 18 => 160,
        // The least that mkfs.xfs takes is 300 MiB; the other has three partitions.
        19 | 22 => 320,
        _ => 64,
    };
    mib << 20
}

/// What a booted appliance must not have done; run in its shell.
const LOOK: &str = "own=$(cat /run/mt-system/disk); echo dm=$(ls /sys/block | grep -c ^dm-) \
                    md=$(ls /sys/block | grep -c ^md) swaps=$(tail -n +2 /proc/swaps | wc -l) \
                    foreign=$(findmnt -rn -o SOURCE | grep ^/dev/sd | grep -vc ^/dev/$own) \
                    disk=$(cat /sys/block/$own/device/wwid) seen=$(ls -d /sys/block/sd* | wc -l)";

/// Thirty disks of all kinds and a copy of the appliance's own disk are attached. Over two starts of the appliance none
/// of them is assembled, mounted, swapped to or changed, and the appliance runs from its own.
#[test]
fn vm_thirty_disks_of_guests_and_a_copy_of_its_own_are_left_alone() {
    let Some(ova) = given_ova(&[
        "qemu-system-x86_64",
        "qemu-img",
        "bsdtar",
        "xorriso",
        "openssl",
        "sha256sum",
    ]) else {
        return;
    };
    let folder = scratch();
    let folder = folder.path();
    let disk = disk_of(&ova, folder);
    let hash = succeed("openssl", &["passwd", "-6", PASSWORD].map(Path::new));
    let script = folder.join("make.sh");
    fs::write(&script, MAKE_DISKS).unwrap();
    let properties = [
        ("guestinfo.hostname", HOST),
        ("guestinfo.root_password_hash", hash.trim()),
    ];
    let cd = environment(folder, &properties, &[&script]);
    let guests: Vec<PathBuf> = GUESTS
        .map(|number| folder.join(format!("guest{number}.img")))
        .collect();
    let mut devices = Vec::new();
    let mut add = |option: &str, value: String| devices.extend([option.to_owned(), value]);
    for number in 0..4 {
        add("-device", format!("pvscsi,id=s{number}"));
    }
    let drive = |file: &Path, id: &str, format: &str| {
        format!("file={},if=none,id={id},format={format}", file.display())
    };
    let scsi = |id: &str, bus: u32, target: u32, wwn: &str| {
        format!(
            "scsi-hd,drive={id},bus=s{bus}.0,scsi-id={target},wwn=0x{wwn},vendor=VMware,product=Virtual disk"
        )
    };
    add("-drive", drive(&disk, "d0", "qcow2"));
    add("-device", scsi("d0", 0, 1, "5000c29000000001") + ",bootindex=0");
    for (number, path) in GUESTS.zip(&guests) {
        fs::File::create(path).unwrap().set_len(size(number)).unwrap();
        let id = format!("g{number}");
        add("-drive", drive(path, &id, "raw"));
        add(
            "-device",
            scsi(
                &id,
                1 + number % 3,
                number / 3,
                &format!("5000c290000001{number}"),
            ),
        );
    }
    add(
        "-drive",
        format!("file={},if=none,id=c1,media=cdrom,readonly=on", cd.display()),
    );
    add("-device", "ide-cd,drive=c1".to_owned());

    let mut vm = Vm::start(folder, Firmware::Bios, Restart::Ends, &devices);
    log_in(&mut vm);
    for work in ["mt-installer selftest", "mount /dev/sr0 /mnt && sh /mnt/make.sh"] {
        let said = vm.shell(&format!("{work}; echo code=$?"));
        assert!(said.ends_with("code=0\n"), "{said}");
    }
    vm.press("systemctl poweroff\r");
    vm.wait_for_end();
    drop(vm);

    let [copy, before] = ["copy.qcow2", "before.qcow2"].map(|name| folder.join(name));
    for to in [&copy, &before] {
        fs::copy(&disk, to).unwrap();
    }
    let sums = || {
        let files: Vec<&Path> = guests.iter().map(PathBuf::as_path).collect();
        succeed("sha256sum", &files)
    };
    let sums_before = sums();
    // First on the bus, so that a system that takes the first disk with its UUID takes the wrong one.
    devices.extend([
        "-drive".to_owned(),
        drive(&copy, "d1", "qcow2"),
        "-device".to_owned(),
        scsi("d1", 0, 0, "5000c29000000002"),
    ]);
    let mut vm = Vm::start(folder, Firmware::Bios, Restart::Runs, &devices);
    for end in ["systemctl reboot", "systemctl poweroff"] {
        log_in(&mut vm);
        let wanted = "dm=0 md=0 swaps=1 foreign=0 disk=naa.5000c29000000001 seen=32\n";
        assert_eq!(vm.shell(LOOK), wanted);
        vm.press(&format!("{end}\r"));
        if end == "systemctl reboot" {
            vm.wait_for("GNU GRUB");
        }
    }
    vm.wait_for_end();
    drop(vm);
    assert_eq!(sums(), sums_before, "a guest's disk was changed");
    let words = [Path::new("compare"), &copy, &before];
    succeed("qemu-img", &words);
}
