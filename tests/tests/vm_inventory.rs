//! The inventory on real SCSI disks: who has an identity, who is in use, who may be a target.

use mt_tests::disks::run;
use mt_tests::guest::{Guest, Machine, disk_device};
use mt_tests::needs;
use mt_tests::scratch::Scratch;
use serde_json::Value;

const MIB: u64 = 1024 * 1024;

fn disks(guest: &mut Guest) -> Vec<Value> {
    let said = guest.run("mt-agent disks list --json");
    assert_eq!(said.code, 0, "{said:?}");
    said.json()["disks"].as_array().expect("a list of disks").clone()
}

/// The disk that answers at this SCSI target of the first controller.
#[track_caller]
fn at(disks: &[Value], target: u32) -> &Value {
    let address = format!("0:0:{target}:0");
    disks
        .iter()
        .find(|disk| disk["hctl"] == address.as_str())
        .unwrap_or_else(|| panic!("no disk at {address}: {disks:#?}"))
}

#[track_caller]
fn assert_refused(disk: &Value, kind: &str, words: &[&str]) {
    assert_eq!(disk["may_be_target"], false, "{disk:#}");
    let objections = disk["objections"].as_array().expect("a list of objections");
    let objection = objections
        .iter()
        .find(|objection| objection["kind"] == kind)
        .unwrap_or_else(|| panic!("nothing of kind {kind} speaks against it: {disk:#}"));
    let text = format!("{} {}", objection["message"], objection["hint"]);
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in {text}");
    }
}

/// Every way in which a disk can be the wrong one, on one machine, told apart by the agent and refused in words that
/// name what to do. The one good disk among them stays good.
#[test]
fn vm_every_doubtful_disk_is_refused_and_the_good_one_is_not() {
    needs!(
        "qemu-system-x86_64",
        "cpio",
        "ldd",
        "mkfs.ext4",
        "mkfs.xfs",
        "sfdisk",
        "lvm",
        "mdadm"
    );
    let scratch = Scratch::new();
    let image = |name: &str| scratch.sparse(&format!("{name}.img"), 64 * MIB);
    let wwn = |number: u32| format!("wwn=0x5000c290{number:08x}");
    let cd = scratch.file("cd.iso", vec![0; 2048 * 200]);
    let partitioned = image("partitioned");
    run(
        "sh",
        &[
            "-c",
            &format!(
                "printf 'label: gpt\\n,\\n' | sfdisk --quiet {}",
                partitioned.display()
            ),
        ],
    );
    let mut guest = Machine::new()
        .with_pvscsi()
        .with_disk(
            "good",
            &image("good"),
            "scsi0.0",
            &format!("scsi-id=0,{}", wwn(1)),
        )
        .with_disk("nameless", &image("nameless"), "scsi0.0", "scsi-id=1")
        .with_disk(
            "twin-a",
            &image("twin-a"),
            "scsi0.0",
            &format!("scsi-id=2,{}", wwn(3)),
        )
        .with_disk(
            "twin-b",
            &image("twin-b"),
            "scsi0.0",
            &format!("scsi-id=3,{}", wwn(3)),
        )
        .with_disk(
            "mounted",
            &partitioned,
            "scsi0.0",
            &format!("scsi-id=4,{}", wwn(4)),
        )
        .with_disk(
            "volume",
            &image("volume"),
            "scsi0.0",
            &format!("scsi-id=5,{}", wwn(5)),
        )
        .with_disk(
            "mirror",
            &image("mirror"),
            "scsi0.0",
            &format!("scsi-id=6,{}", wwn(6)),
        )
        .with_disk(
            "swap",
            &image("swap"),
            "scsi0.0",
            &format!("scsi-id=8,{}", wwn(8)),
        )
        .with_disk(
            "filesystem",
            &scratch.sparse("filesystem.img", 512 * MIB),
            "scsi0.0",
            &format!("scsi-id=9,{}", wwn(9)),
        )
        .with(&[
            "-blockdev",
            &format!(
                "driver=raw,node-name=readonly,read-only=on,file.driver=file,file.filename={}",
                image("readonly").display()
            ),
            "-device",
            &disk_device("readonly", "scsi0.0", &format!("scsi-id=10,{}", wwn(10))),
            "-drive",
            &format!("if=none,id=cd,media=cdrom,format=raw,file={}", cd.display()),
            "-device",
            "scsi-cd,drive=cd,bus=scsi0.0,scsi-id=11",
        ])
        .boot(&scratch);

    let node =
        |disks: &[Value], target: u32| at(disks, target)["devnode"].as_str().expect("a node").to_owned();
    let before = disks(&mut guest);
    for target in [0, 4, 5, 6, 8, 9] {
        assert_eq!(
            at(&before, target)["may_be_target"],
            true,
            "{:#}",
            at(&before, target)
        );
    }
    guest.done(&format!(
        "set -e; modprobe ext4; modprobe dm-mod; modprobe raid1
         mkfs.ext4 -q {mounted}1; mkdir -p /mnt/data; mount {mounted}1 /mnt/data
         lvm vgcreate -y guests {volume} >/dev/null; lvm lvcreate -y -W n -n root -l 5 guests >/dev/null
         mdadm --create /dev/md7 --run --level=1 --raid-devices=2 --metadata=1.2 {mirror} missing 2>/dev/null
         mkswap {swap} >/dev/null; swapon {swap}
         mkfs.xfs -q {filesystem}; udevadm settle",
        mounted = node(&before, 4),
        volume = node(&before, 5),
        mirror = node(&before, 6),
        swap = node(&before, 8),
        filesystem = node(&before, 9),
    ));

    let now = disks(&mut guest);
    let good = at(&now, 0);
    assert_eq!(good["may_be_target"], true, "{good:#}");
    assert_eq!(good["identity"]["scsi_id"], "naa.5000c29000000001");
    assert_eq!(good["size"], 64 * MIB);
    assert_refused(
        at(&now, 1),
        "no_scsi_id",
        &["VPD page 0x83", "disk.EnableUUID=TRUE"],
    );
    let twins = [at(&now, 2), at(&now, 3)];
    for twin in twins {
        let names = twins.map(|twin| twin["kernel_name"].as_str().expect("a name"));
        assert_refused(
            twin,
            "attached_twice",
            &["naa.5000c29000000003", names[0], names[1]],
        );
    }
    assert_refused(at(&now, 4), "mounted", &["/mnt/data", "unmount"]);
    assert_refused(at(&now, 5), "held", &["vgchange"]);
    assert_refused(at(&now, 6), "held", &["md7", "mdadm --stop"]);
    assert_refused(at(&now, 8), "swap", &["swapoff"]);
    assert_refused(at(&now, 10), "read_only", &["read-only"]);
    let filesystem = at(&now, 9);
    assert!(
        filesystem["content"].to_string().contains("xfs"),
        "what it holds is shown: {filesystem:#}"
    );
    let cds: Vec<&Value> = now.iter().filter(|disk| disk["hctl"] == "0:0:11:0").collect();
    for cd in cds {
        assert_refused(cd, "not_a_disk", &["SCSI"]);
    }

    let table = guest.done("mt-agent disks list");
    assert!(
        table.contains("disk.EnableUUID=TRUE"),
        "people are told the remedy too:\n{table}"
    );
    guest.power_off();
}

/// IDs of sixteen bytes, as VMware gives them, and of disks whose designators are of other kinds.
#[test]
fn vm_long_and_foreign_ids_are_read_as_the_kernel_reads_them() {
    needs!("qemu-system-x86_64", "cpio", "ldd");
    let scratch = Scratch::new();
    let mut guest = Machine::new().with_pvscsi().boot(&scratch);
    // The kernel's own SCSI target on its loopback: an ID of kind NAA 6 with 16 bytes, like VMware's.
    guest.done(
        "set -e; modprobe target_core_file; modprobe tcm_loop; modprobe scsi_debug dev_size_mb=16
         cd /sys/kernel/config/target; mkdir -p core/fileio_0/disk
         truncate -s 64M /tmp/disk.img
         echo fd_dev_name=/tmp/disk.img,fd_dev_size=67108864 >core/fileio_0/disk/control
         echo 6000c290-a1b2-4c3d-8e9f-001122334455 >core/fileio_0/disk/wwn/vpd_unit_serial
         echo 1 >core/fileio_0/disk/enable
         mkdir -p loopback/naa.5001405a1b2c3d4e/tpgt_1/lun/lun_0
         echo naa.5001405a1b2c3d4f >loopback/naa.5001405a1b2c3d4e/tpgt_1/nexus
         ln -s /sys/kernel/config/target/core/fileio_0/disk loopback/naa.5001405a1b2c3d4e/tpgt_1/lun/lun_0/disk
         udevadm settle; sleep 1; udevadm settle",
    );
    let found = disks(&mut guest);
    assert_eq!(found.len(), 2, "{found:#?}");
    let mut long = 0;
    for disk in &found {
        let name = disk["kernel_name"].as_str().expect("a name");
        let kernel = guest.done(&format!("cat /sys/block/{name}/device/wwid"));
        let id = disk["identity"]["scsi_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert_eq!(id, kernel, "{disk:#}");
        assert_eq!(disk["may_be_target"], true, "{disk:#}");
        long += u32::from(id.starts_with("naa.6") && id.len() == "naa.".len() + 32);
    }
    assert_eq!(long, 1, "one disk has an ID of sixteen bytes: {found:#?}");
    guest.power_off();
}

/// More than 60 disks was the end of the original; names beyond `sdz` were a trap for many.
#[test]
fn vm_eighty_disks_are_told_apart() {
    needs!("qemu-system-x86_64", "cpio", "ldd");
    let scratch = Scratch::new();
    let mut machine = Machine::new();
    for controller in 0..6 {
        machine = machine.with_pvscsi();
        for place in 0..14 {
            let number = controller * 14 + place;
            if number >= 80 {
                break;
            }
            let node = format!("driver=null-co,node-name=n{number},size=1073741824,read-zeroes=on");
            let device = disk_device(
                &format!("n{number}"),
                &format!("scsi{controller}.0"),
                &format!("wwn=0x5000c290{number:08x}"),
            );
            machine = machine.with(&["-blockdev", &node, "-device", &device]);
        }
    }
    let mut guest = machine.boot(&scratch);
    let found = disks(&mut guest);
    assert_eq!(found.len(), 80);
    let mut ids: Vec<&str> = found
        .iter()
        .map(|disk| {
            assert_eq!(disk["may_be_target"], true, "{disk:#}");
            disk["identity"]["scsi_id"].as_str().expect("an ID")
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 80, "every ID is there once");
    assert!(
        found.iter().any(|disk| disk["kernel_name"] == "sdbz"),
        "the kernel's names go beyond sdz"
    );
    guest.power_off();
}
