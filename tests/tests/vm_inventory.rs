//! The inventory on real SCSI disks: who has an identity, who is in use, who may be a target.

use std::time::Duration;

use mt_tests::data::MIB;
use mt_tests::guest::machine::{Controller, Disk};
use mt_tests::guest::{Guest, Machine, can_boot};
use mt_tests::scratch::Scratch;
use mt_tests::test_name;
use serde_json::{Value, json};

/// SCSI ID number `number` of these tests.
fn wwn(number: u64) -> u64 {
    0x5000_c290_0000_0000 + number
}

/// The same as the agent writes it.
fn id(number: u64) -> String {
    format!("naa.{:016x}", wwn(number))
}

/// The inventory of one instant.
struct Inventory(Value);

impl Inventory {
    fn take(guest: &mut Guest) -> Self {
        let document = guest.run("mt-agent disks list --json").expect_done().json();
        assert_eq!(document["schema"], 1);
        Self(document)
    }

    fn disks(&self) -> &[Value] {
        self.0["disks"].as_array().expect("disks are a list")
    }

    /// Every disk of which `is_it`.
    fn all(&self, is_it: impl Fn(&Value) -> bool) -> Vec<&Value> {
        self.disks().iter().filter(|disk| is_it(disk)).collect()
    }

    /// The one disk with this SCSI ID.
    #[track_caller]
    fn disk(&self, number: u64) -> &Value {
        let found = self.all(|disk| disk["identity"]["scsi_id"] == id(number));
        assert_eq!(found.len(), 1, "disks with {}: {found:#?}", id(number));
        found[0]
    }

    /// Today's kernel name of a disk.
    #[track_caller]
    fn name(&self, number: u64) -> String {
        text(&self.disk(number)["kernel_name"])
    }

    /// What speaks against a disk: kinds, in order.
    #[track_caller]
    fn objections(&self, number: u64) -> Vec<String> {
        kinds(&self.disk(number)["objections"])
    }

    /// Fails unless the disk may not be a target, for exactly this reason, said in exactly these words.
    #[track_caller]
    fn assert_refused(&self, number: u64, kind: &str, message: &str) {
        let disk = self.disk(number);
        println!("{}: {}", disk["kernel_name"], disk["objections"][0]["message"]);
        assert_eq!(disk["may_be_target"], false, "{disk:#}");
        assert_eq!(disk["objections"][0]["kind"], kind, "{disk:#}");
        let name = text(&disk["kernel_name"]);
        let expected = format!(
            "target disk {} ({name}) {}",
            id(number),
            message.replace("{}", &name)
        );
        assert_eq!(text(&disk["objections"][0]["message"]), expected);
        assert!(!text(&disk["objections"][0]["hint"]).is_empty(), "{disk:#}");
    }

    /// Fails unless nothing speaks against the disk, and it holds this.
    #[track_caller]
    fn assert_free(&self, number: u64, holds: Option<(&str, &str)>) {
        let disk = self.disk(number);
        println!("{}: free, holds {}", disk["kernel_name"], disk["content"]);
        assert_eq!(disk["may_be_target"], true, "{disk:#}");
        assert_eq!(disk["objections"], json!([]), "{disk:#}");
        assert_eq!(disk["uses"], json!([]), "{disk:#}");
        assert_eq!(disk["content"]["state"], "probed", "{disk:#}");
        assert_eq!(disk["content"]["ambiguous"], false, "{disk:#}");
        match holds {
            None => assert_eq!(disk["content"]["signature"], Value::Null, "{disk:#}"),
            Some((kind, usage)) => {
                assert_eq!(disk["content"]["signature"]["kind"], kind, "{disk:#}");
                assert_eq!(disk["content"]["signature"]["usage"], usage, "{disk:#}");
            }
        }
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is a text"))
        .to_owned()
}

fn kinds(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|entry| text(&entry["kind"])).collect()
}

/// Everything that only a machine with SCSI disks can show about which disk is who, in two parts: as the disks come,
/// and once they are in use.
#[test]
fn vm_inventory_tells_who_is_who_and_who_is_used() {
    if !can_boot(test_name!()) {
        return;
    }
    let scratch = Scratch::new();
    let image = |name: &str, mib: u64| scratch.sparse(&format!("{name}.img"), mib * MIB);
    let disk = |node: &str, number: u64| Disk::new(node, "para.0").wwn(wwn(number));
    let source = image("source", 8);
    let mut machine = Machine::new()
        .with_controller(Controller::Pvscsi, "para")
        .with_controller(Controller::LsiSas, "sas")
        .with_controller(Controller::LsiParallel, "lsi")
        .with_disk(
            &image("plain", 64),
            &disk("plain", 1).serial("6000c290a1").target(3),
        )
        // On a machine without disk.EnableUUID: nothing at all, or a serial number that is no name.
        .with_disk(&image("nameless", 65), &Disk::new("nameless", "para.0").target(4))
        .with_disk(
            &image("serial", 66),
            &Disk::new("serial", "para.0").serial("JUST-A-SERIAL").target(5),
        )
        .with_disk(&image("twin1", 67), &disk("twin1", 7))
        .with_disk(&image("twin2", 67), &Disk::new("twin2", "sas.0").wwn(wwn(7)))
        .with_read_only_image("locked", &image("locked", 64))
        .with_device(&disk("locked", 8))
        .with_disk(&image("cd", 32), &Disk::optical("cd", "lsi.0").wwn(wwn(9)))
        .with_disk(&image("drive", 32), &Disk::optical("drive", "para.0"))
        .with_disk(&image("onsas", 68), &Disk::new("onsas", "sas.0").wwn(wwn(10)))
        .with_disk(
            &image("onlsi", 69),
            &Disk::new("onlsi", "lsi.0").wwn(wwn(11)).target(5),
        )
        .with_virtio_source("source", &source);
    // 20 mounted, 21 LVM, 22 md, 23 swap, 24 partitions, 25 the appliance's, 26 XFS, 27 ReiserFS
    for number in 20..28 {
        let node = format!("used{number}");
        let mib = if number == 26 { 320 } else { 64 };
        machine = machine.with_disk(&image(&node, mib), &disk(&node, number));
    }
    let mut guest = machine.boot(&scratch);

    let fresh = Inventory::take(&mut guest);
    println!("{}", guest.done("mt-agent disks list"));
    the_plain_disk_is_described_field_by_field(&fresh);
    disks_in_doubt_are_refused_and_the_remedy_is_named(&fresh);
    for controller in [10, 11] {
        fresh.assert_free(controller, None);
    }
    assert!(text(&fresh.disk(11)["hctl"]).ends_with(":0:5:0"));

    what_is_on_a_disk_is_named(&mut guest, &fresh);
    disks_in_use_are_refused_and_free_again_after(&mut guest, &fresh);
    the_appliances_own_disk_is_refused(&mut guest, &fresh);
    a_partition_is_no_target(&mut guest, &fresh);
    ids_of_sixteen_bytes_and_of_other_makers_are_read_as_the_kernel_reads_them(&mut guest);
    guest.power_off();
}

fn the_plain_disk_is_described_field_by_field(fresh: &Inventory) {
    let plain = fresh.disk(1);
    let name = text(&plain["kernel_name"]);
    let letter = name.strip_prefix("sd").expect("a SCSI disk is sd-something");
    assert_eq!(letter.len(), 1, "few disks have one letter");
    let minor = 16 * u32::from(letter.as_bytes()[0] - b'a');
    let host = text(&plain["hctl"]);
    let (host, rest) = host.split_once(':').expect("H:C:T:L");
    assert!(host.parse::<u32>().is_ok() && rest == "0:3:0", "{plain:#}");
    let mut expected = json!({
        "kernel_name": name,
        "devnode": format!("/dev/{name}"),
        "number": format!("8:{minor}"),
        "kind": "scsi",
        "identity": { "state": "known", "scsi_id": id(1) },
        "serial": "6000c290a1",
        "vendor": "VMware",
        "model": "Virtual disk",
        "hctl": format!("{host}:0:3:0"),
        "size": 64 * MIB,
        "logical_block_size": 512,
        "physical_block_size": 512,
        "read_only": false,
        "removable": false,
        "content": {
            "state": "probed",
            "table": null,
            "partitions": [],
            "signature": null,
            "ambiguous": false,
            "unrecognised": false,
        },
        "uses": [],
        "doubts": [],
        "may_be_target": true,
        "objections": [],
    });
    // What later versions may add is not of this test.
    for (key, value) in plain.as_object().expect("a disk is an object") {
        let known = expected.as_object_mut().expect("an object");
        if !known.contains_key(key) {
            println!("a field this test does not know: {key} = {value}");
            known.insert(key.clone(), value.clone());
        }
    }
    assert_eq!(*plain, expected);
}

fn disks_in_doubt_are_refused_and_the_remedy_is_named(fresh: &Inventory) {
    let enable_uuid = "set disk.EnableUUID=TRUE for this virtual machine and power-cycle it";
    for (mib, serial, why) in [
        (65, Value::Null, "VPD page 0x83 is empty"),
        (
            66,
            json!("JUST-A-SERIAL"),
            "VPD page 0x83 holds no NAA or EUI-64 name of the disk",
        ),
    ] {
        let found = fresh.all(|disk| disk["size"] == mib * MIB);
        let [disk] = found[..] else {
            panic!("one disk has {mib} MiB: {found:#?}");
        };
        assert_eq!(disk["identity"], json!({ "state": "missing", "why": why }));
        assert_eq!(disk["serial"], serial);
        assert_eq!(disk["may_be_target"], false);
        assert_eq!(
            disk["objections"],
            json!([{
                "kind": "no_scsi_id",
                "message": format!("disk {} has no SCSI ID: {why}", text(&disk["kernel_name"])),
                "hint": enable_uuid,
            }])
        );
    }

    let twins = fresh.all(|disk| disk["identity"]["scsi_id"] == id(7));
    assert_eq!(twins.len(), 2, "{twins:#?}");
    let names: Vec<String> = twins.iter().map(|disk| text(&disk["kernel_name"])).collect();
    for twin in twins {
        assert_eq!(twin["may_be_target"], false);
        assert_eq!(kinds(&twin["objections"]), ["attached_twice"]);
        assert_eq!(
            text(&twin["objections"][0]["message"]),
            format!("SCSI ID {} is attached twice ({})", id(7), names.join(", "))
        );
    }

    fresh.assert_refused(8, "read_only", "is read-only");
    assert_eq!(fresh.disk(8)["read_only"], true);

    let cd = fresh.disk(9);
    assert_eq!(cd["kind"], "scsi_other");
    assert_eq!(cd["may_be_target"], false);
    assert_eq!(fresh.objections(9)[0], "not_a_disk");
    let drives = fresh.all(|disk| text(&disk["kernel_name"]).starts_with("sr"));
    assert_eq!(drives.len(), 1, "a drive without the name of a disk is furniture");

    let virtio = fresh.all(|disk| disk["kernel_name"] == "vda");
    assert_eq!(virtio[0]["kind"], "virtio");
    assert_eq!(virtio[0]["may_be_target"], false);
}

fn what_is_on_a_disk_is_named(guest: &mut Guest, fresh: &Inventory) {
    let (ext4, xfs, reiser, parts) = (fresh.name(20), fresh.name(26), fresh.name(27), fresh.name(24));
    guest.done(&format!(
        "set -e
        mkfs.ext4 -q -L orders /dev/{ext4}
        mkfs.xfs -q /dev/{xfs}
        mkfs.reiserfs -q -f /dev/{reiser}
        printf 'label: gpt\\nsize=20M\\nsize=20M, name=data\\n' | sfdisk --quiet /dev/{parts}
        udevadm settle
        mkfs.ext4 -q /dev/{parts}2
        udevadm settle"
    ));
    let now = Inventory::take(guest);
    now.assert_free(20, Some(("ext4", "filesystem")));
    assert_eq!(now.disk(20)["content"]["signature"]["label"], "orders");
    now.assert_free(26, Some(("xfs", "filesystem")));
    now.assert_free(27, Some(("reiserfs", "filesystem")));
    now.assert_free(24, None);
    let content = &now.disk(24)["content"];
    assert_eq!(content["table"], "gpt");
    assert_eq!(content["partitions"].as_array().map(Vec::len), Some(2));
    assert_eq!(content["partitions"][0]["signature"], Value::Null);
    assert_eq!(content["partitions"][1]["number"], 2);
    assert_eq!(content["partitions"][1]["name"], "data");
    assert_eq!(content["partitions"][1]["start"], 21 * MIB);
    assert_eq!(content["partitions"][1]["size"], 20 * MIB);
    assert_eq!(content["partitions"][1]["signature"]["kind"], "ext4");
}

fn disks_in_use_are_refused_and_free_again_after(guest: &mut Guest, fresh: &Inventory) {
    let name = |number| fresh.name(number);
    let (mounted, lvm, md, swap, parts) = (name(20), name(21), name(22), name(23), name(24));
    let (xfs, reiser) = (name(26), name(27));
    guest.done(&format!(
        "set -e
        modprobe -a ext4 xfs reiserfs dm-mod raid1
        mkdir -p /mnt/ext4 /mnt/part /mnt/xfs /mnt/reiser
        mount -t ext4 /dev/{mounted} /mnt/ext4
        mount -t ext4 /dev/{parts}2 /mnt/part
        mount -t xfs /dev/{xfs} /mnt/xfs
        mount -t reiserfs /dev/{reiser} /mnt/reiser
        lvm vgcreate --quiet vg_orders /dev/{lvm}
        lvm lvcreate --quiet --yes --extents 5 --name data vg_orders
        mdadm --create /dev/md0 --run --level=1 --raid-devices=2 /dev/{md} missing
        mkswap /dev/{swap}
        swapon /dev/{swap}
        udevadm settle"
    ));
    let used = Inventory::take(guest);
    used.assert_refused(20, "mounted", "is in use: {} is mounted on /mnt/ext4");
    used.assert_refused(24, "mounted", "is in use: {}2 is mounted on /mnt/part");
    used.assert_refused(26, "mounted", "is in use: {} is mounted on /mnt/xfs");
    used.assert_refused(27, "mounted", "is in use: {} is mounted on /mnt/reiser");
    used.assert_refused(21, "held", "is in use: {} is held by dm-0 (LVM vg_orders-data)");
    used.assert_refused(22, "held", "is in use: {} is held by md0");
    used.assert_refused(23, "swap", "is in use: {} is swap");
    for (number, remedy) in [
        (20, "unmount"),
        (21, "vgchange --activate n"),
        (22, "mdadm --stop"),
        (23, "swapoff"),
    ] {
        let hint = text(&used.disk(number)["objections"][0]["hint"]);
        assert!(hint.contains(remedy), "{remedy} is not in \"{hint}\"");
    }
    assert_eq!(used.disk(21)["content"]["signature"]["kind"], "LVM2_member");
    assert_eq!(used.disk(22)["content"]["signature"]["kind"], "linux_raid_member");
    assert_eq!(used.disk(23)["content"]["signature"]["kind"], "swap");
    let stacked = used.all(|disk| {
        let name = text(&disk["kernel_name"]);
        name.starts_with("dm-") || name.starts_with("md")
    });
    assert_eq!(
        stacked.len(),
        0,
        "what is stacked on disks is no disk: {stacked:#?}"
    );

    // A file system on the logical volume and on the array: found through them.
    guest.done(
        "set -e
        mkfs.ext4 -q /dev/dm-0
        mkfs.ext4 -q /dev/md0
        mkdir -p /mnt/lv /mnt/md
        mount -t ext4 /dev/dm-0 /mnt/lv
        mount -t ext4 /dev/md0 /mnt/md",
    );
    let deep = Inventory::take(guest);
    for (number, at) in [(21, "/mnt/lv"), (22, "/mnt/md")] {
        let disk = deep.disk(number);
        println!("{}: {}", disk["kernel_name"], disk["uses"]);
        assert_eq!(kinds(&disk["uses"]), ["mount", "holder"], "{disk:#}");
        assert!(text(&disk["uses"][0]["what"]).ends_with(&format!("is mounted on {at}")));
    }

    guest.done(&format!(
        "set -e
        umount /mnt/ext4 /mnt/part /mnt/xfs /mnt/reiser /mnt/lv /mnt/md
        lvm vgchange --quiet --activate n vg_orders
        mdadm --stop /dev/md0
        swapoff /dev/{swap}
        udevadm settle"
    ));
    let free = Inventory::take(guest);
    free.assert_free(20, Some(("ext4", "filesystem")));
    free.assert_free(21, Some(("LVM2_member", "raid")));
    free.assert_free(22, Some(("linux_raid_member", "raid")));
    free.assert_free(23, Some(("swap", "other")));
    free.assert_free(24, None);
    free.assert_free(26, Some(("xfs", "filesystem")));
    free.assert_free(27, Some(("reiserfs", "filesystem")));
}

fn the_appliances_own_disk_is_refused(guest: &mut Guest, fresh: &Inventory) {
    let own = fresh.name(25);
    guest.done(&format!(
        "set -e
        mkfs.ext4 -q /dev/{own}
        mount -t ext4 /dev/{own} /var/lib/master-target"
    ));
    let now = Inventory::take(guest);
    now.assert_refused(
        25,
        "appliance",
        "is the appliance's own: {} holds /var/lib/master-target",
    );
    // As the root of the system: seen from a system that lives on it.
    let seen = guest
        .run(
            "set -e
            cd /var/lib/master-target
            for folder in dev proc sys run usr; do mkdir -p $folder; mount --rbind /$folder $folder; done
            ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib64 lib64
            chroot . mt-agent disks list --json
            for folder in usr run sys proc dev; do umount -l $folder; done
            cd /
            umount /var/lib/master-target",
        )
        .expect_done()
        .json();
    let seen = Inventory(seen);
    seen.assert_refused(25, "appliance", "is the appliance's own: {} holds /");
    Inventory::take(guest).assert_free(25, Some(("ext4", "filesystem")));
}

fn a_partition_is_no_target(guest: &mut Guest, fresh: &Inventory) {
    let parts = fresh.name(24);
    let lab = "naa.6000c290000000000000000000000b0b";
    let document = guest
        .run(&format!(
            "set -e
            printf '%s\\n' '[agent]' 'state_dir = \"/tmp/state\"' 'socket_group = \"root\"' '[lab]' 'enabled = true' \
                '[[lab.disks]]' 'scsi_id = \"{lab}\"' 'path = \"/dev/{parts}1\"' >/tmp/lab.toml
            mt-agent disks list --json --config /tmp/lab.toml"
        ))
        .expect_done()
        .json();
    let now = Inventory(document);
    let names: Vec<String> = now
        .disks()
        .iter()
        .filter(|disk| disk["kind"] != "lab")
        .map(|disk| text(&disk["kernel_name"]))
        .collect();
    assert!(
        names.contains(&parts) && !names.contains(&format!("{parts}1")),
        "{names:?}"
    );
    let [part] = now.all(|disk| disk["identity"]["scsi_id"] == lab)[..] else {
        panic!("the lab disk is listed");
    };
    println!("{}: {}", part["kernel_name"], part["objections"][0]["message"]);
    assert_eq!(part["may_be_target"], false);
    assert_eq!(kinds(&part["objections"])[0], "lab_disk");
    assert!(text(&part["objections"][0]["message"]).contains("is a partition"));
}

/// QEMU's disks have IDs of eight bytes; VMware's have sixteen. The kernel's own SCSI target, on its loopback, makes one
/// of kind NAA 6 with sixteen bytes.
fn ids_of_sixteen_bytes_and_of_other_makers_are_read_as_the_kernel_reads_them(guest: &mut Guest) {
    let before = Inventory::take(guest).disks().len();
    guest.done(
        "set -e
        modprobe -a target_core_file tcm_loop
        modprobe scsi_debug dev_size_mb=16
        cd /sys/kernel/config/target
        mkdir -p core/fileio_0/disk
        truncate -s 64M /tmp/disk.img
        echo fd_dev_name=/tmp/disk.img,fd_dev_size=67108864 >core/fileio_0/disk/control
        echo 6000c290-a1b2-4c3d-8e9f-001122334455 >core/fileio_0/disk/wwn/vpd_unit_serial
        echo 1 >core/fileio_0/disk/enable
        mkdir -p loopback/naa.5001405a1b2c3d4e/tpgt_1/lun/lun_0
        echo naa.5001405a1b2c3d4f >loopback/naa.5001405a1b2c3d4e/tpgt_1/nexus
        ln -s /sys/kernel/config/target/core/fileio_0/disk loopback/naa.5001405a1b2c3d4e/tpgt_1/lun/lun_0/disk",
    );
    let scanned = "mt-agent disks list --json | tr -d ' ,' | grep '\"model\":\"\\(FILEIO\\|scsi_debug\\)\"' | wc -l | grep -q 2";
    guest.wait_until("both disks", Duration::from_secs(60), scanned);
    guest.done("udevadm settle");
    let now = Inventory::take(guest);
    assert_eq!(now.disks().len(), before + 2);
    for (model, digits) in [("FILEIO", 32), ("scsi_debug", 16)] {
        let [disk] = now.all(|disk| disk["model"] == model)[..] else {
            panic!("one disk is a {model}: {:#}", now.0);
        };
        let name = text(&disk["kernel_name"]);
        println!("{name} ({model}): {}", disk["identity"]);
        let kernel = guest.done(&format!("cat /sys/block/{name}/device/wwid"));
        assert_eq!(disk["identity"], json!({ "state": "known", "scsi_id": kernel }));
        assert_eq!(kernel.len(), "naa.".len() + digits, "{kernel}");
        assert_eq!(disk["may_be_target"], true, "{disk:#}");
    }
}

/// More than 60 disks was the end of the original; names beyond `sdz` were a trap for many.
#[test]
fn vm_eighty_disks_are_told_apart() {
    const COUNT: u64 = 80;
    const CONTROLLERS: u64 = 5;
    if !can_boot(test_name!()) {
        return;
    }
    let scratch = Scratch::new();
    let mut machine = Machine::new();
    // The kernel's driver looks for 16 targets on a controller of this kind.
    for controller in 0..CONTROLLERS {
        machine = machine.with_controller(Controller::Pvscsi, &format!("scsi{controller}"));
    }
    for number in 0..COUNT {
        let node = format!("disk{number}");
        let disk = Disk::new(&node, &format!("scsi{}.0", number % CONTROLLERS)).wwn(wwn(number));
        machine = machine.with_void(&node, (1024 + number) * MIB).with_device(&disk);
    }
    let mut guest = machine.boot(&scratch);
    let inventory = Inventory::take(&mut guest);
    assert_eq!(inventory.disks().len() as u64, COUNT);
    let kernel = guest.done(
        "for disk in /sys/block/sd*; do echo ${disk##*/} $(cat $disk/device/wwid) $(cat $disk/size); done",
    );
    for number in 0..COUNT {
        let disk = inventory.disk(number);
        assert_eq!(disk["size"], (1024 + number) * MIB, "the size goes with the ID");
        assert_eq!(disk["may_be_target"], true, "{disk:#}");
        // The kernel says the same of the disk of this name.
        let line = format!(
            "{} {} {}",
            text(&disk["kernel_name"]),
            id(number),
            (1024 + number) * 2048
        );
        assert!(
            kernel.lines().any(|known| known == line),
            "{line} is not in\n{kernel}"
        );
    }
    let names: Vec<String> = inventory
        .disks()
        .iter()
        .map(|disk| text(&disk["kernel_name"]))
        .collect();
    // sda .. sdz, sdaa .. sdzz: shorter names first, and those of one length by the alphabet.
    let mut natural = names.clone();
    natural.sort_by_key(|name| (name.len(), name.clone()));
    assert_eq!(names, natural);
    for name in ["sda", "sdz", "sdaa", "sdaz", "sdba", "sdbz"] {
        assert!(
            names.iter().any(|known| known == name),
            "{name} is among {names:?}"
        );
    }
    println!(
        "{} disks, {} to {}",
        names.len(),
        names[0],
        names[names.len() - 1]
    );
    guest.power_off();
}

/// In a rescue system, or in the first moments of a boot, there is no udev to ask: the disk's own word is enough.
#[test]
fn vm_without_udev_the_disks_own_word_is_enough() {
    if !can_boot(test_name!()) {
        return;
    }
    let scratch = Scratch::new();
    let image = |name: &str| scratch.sparse(&format!("{name}.img"), 64 * MIB);
    let disk = |node: &str, number: u64| Disk::new(node, "para.0").wwn(wwn(number));
    let mut guest = Machine::new()
        .without_udev()
        .with_controller(Controller::Pvscsi, "para")
        .with_disk(&image("plain"), &disk("plain", 1))
        .with_disk(&image("nameless"), &Disk::new("nameless", "para.0"))
        .with_disk(&image("mounted"), &disk("mounted", 2))
        .boot(&scratch);
    let fresh = Inventory::take(&mut guest);
    let mounted = fresh.name(2);
    guest.done(&format!(
        "set -e
        ! pidof systemd-udevd
        [ ! -e /dev/disk ]
        modprobe ext4
        mkfs.ext4 -q /dev/{mounted}
        mount -t ext4 /dev/{mounted} /mnt"
    ));
    let now = Inventory::take(&mut guest);
    now.assert_free(1, None);
    now.assert_refused(2, "mounted", "is in use: {} is mounted on /mnt");
    let [nameless] = now.all(|disk| disk["identity"]["state"] == "missing")[..] else {
        panic!("one disk has no SCSI ID: {:#}", now.0);
    };
    assert_eq!(kinds(&nameless["objections"]), ["no_scsi_id"]);
    guest.power_off();
}
