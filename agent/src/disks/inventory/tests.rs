use std::fs;
use std::os::unix::fs::symlink;

use mt_blockdev::scsi::ScsiId;

use super::*;
use crate::disks::facts::{UseKind, testing::id};
use crate::disks::gate::RefusalKind;

/// A machine in a folder: `sys` and `proc` as the kernel lays them out. Its device nodes do not exist, so no
/// disk of it can be asked or probed.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in [
            "sys/block",
            "sys/class/block",
            "sys/dev/block",
            "sys/bus/scsi",
            "proc/self/ns",
        ] {
            fs::create_dir_all(machine.path(dir)).unwrap();
        }
        machine.file("proc/self/mountinfo", "");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn scsi_disk(&self, index: usize, name: &str, wwid: Option<&str>) {
        let number = format!("{}:{}", 1000 + index, index);
        let scsi = format!("sys/devices/{index}/2:0:{index}:0");
        let disk = format!("{scsi}/block/{name}");
        for (file, value) in [
            ("dev", number.as_str()),
            ("size", "2048"),
            ("ro", "0"),
            ("queue/logical_block_size", "512"),
            ("queue/physical_block_size", "512"),
        ] {
            self.file(&format!("{disk}/{file}"), value);
        }
        for (file, value) in [
            ("type", "0"),
            ("vendor", "VMware"),
            ("model", "Virtual disk"),
            ("state", "running"),
        ] {
            self.file(&format!("{scsi}/{file}"), value);
        }
        if let Some(wwid) = wwid {
            self.file(&format!("{scsi}/wwid"), wwid);
        }
        symlink(self.path("sys/bus/scsi"), self.path(&format!("{scsi}/subsystem"))).unwrap();
        symlink(self.path(&scsi), self.path(&format!("{disk}/device"))).unwrap();
        for link in [
            format!("sys/block/{name}"),
            format!("sys/class/block/{name}"),
            format!("sys/dev/block/{number}"),
        ] {
            symlink(self.path(&disk), self.path(&link)).unwrap();
        }
    }

    fn gather(&self, lab: &[LabDisk]) -> Inventory {
        let gatherer = Gatherer {
            sysfs: Sysfs::new(self.path("sys")),
            proc: Proc::new(self.path("proc")),
            own_places: vec![PathBuf::from("/")],
        };
        gatherer.gather(lab).unwrap()
    }
}

/// Kernel names in the order the kernel gives them: sda to sdz, sdaa to sdzz.
fn kernel_names(count: usize) -> Vec<String> {
    let letters = || (b'a'..=b'z').map(char::from);
    letters()
        .map(|letter| format!("sd{letter}"))
        .chain(letters().flat_map(|first| letters().map(move |second| format!("sd{first}{second}"))))
        .take(count)
        .collect()
}

#[test]
fn more_than_60_disks_are_listed_in_natural_order() {
    let machine = Machine::new();
    let names = kernel_names(80);
    assert_eq!(
        (names[25].as_str(), names[26].as_str(), names[77].as_str()),
        ("sdz", "sdaa", "sdbz")
    );
    for (index, name) in names.iter().enumerate() {
        machine.scsi_disk(index, name, Some(&id(u8::try_from(index).unwrap()).to_string()));
    }
    let inventory = machine.gather(&[]);
    let listed: Vec<&str> = inventory
        .disks
        .iter()
        .map(|disk| disk.kernel_name.as_str())
        .collect();
    assert_eq!(listed, names);
    for (index, disk) in inventory.disks.iter().enumerate() {
        assert_eq!(
            disk.identity.scsi_id(),
            Some(id(u8::try_from(index).unwrap())),
            "{}",
            disk.kernel_name
        );
        assert_eq!(
            (disk.size, disk.hctl.clone()),
            (1 << 20, Some(format!("2:0:{index}:0")))
        );
    }
}

#[test]
fn a_disk_that_cannot_be_asked_is_never_a_target_though_the_kernel_knows_its_name() {
    let machine = Machine::new();
    machine.scsi_disk(1, "sdb", Some(&id(1).to_string()));
    machine.scsi_disk(2, "sdc", None);
    let inventory = machine.gather(&[]);
    assert!(matches!(
        inventory.disks[0].identity,
        Identity::Unconfirmed { scsi_id: Some(_), .. }
    ));
    assert!(matches!(
        inventory.disks[1].identity,
        Identity::Unconfirmed { scsi_id: None, .. }
    ));
    for disk in &inventory.disks {
        assert!(!disk.may_be_target);
        let kinds: Vec<_> = disk.objections.iter().map(|objection| objection.kind).collect();
        assert_eq!(kinds, [RefusalKind::IdentityUnconfirmed, RefusalKind::NoNode]);
        assert!(
            matches!(disk.content, Content::Unreadable { .. }),
            "unread is not empty"
        );
    }
}

#[test]
fn the_appliances_disk_and_a_mounted_disk_are_named_with_their_use() {
    let machine = Machine::new();
    machine.scsi_disk(0, "sda", Some(&id(0).to_string()));
    machine.scsi_disk(1, "sdb", Some(&id(1).to_string()));
    machine.file(
        "proc/self/mountinfo",
        "22 1 1000:0 / / rw - ext4 /dev/root rw\n23 22 1001:1 / /mnt rw - xfs /dev/root rw\n",
    );
    let inventory = machine.gather(&[]);
    let uses = |index: usize| -> Vec<(UseKind, &str)> {
        inventory.disks[index]
            .uses
            .iter()
            .map(|used| (used.kind, used.what.as_str()))
            .collect()
    };
    assert_eq!(
        uses(0),
        [
            (UseKind::Appliance, "sda holds /"),
            (UseKind::Mount, "sda is mounted on /")
        ]
    );
    assert_eq!(uses(1), [(UseKind::Mount, "sdb is mounted on /mnt")]);
}

#[test]
fn a_duplicate_id_is_an_objection_against_both() {
    let machine = Machine::new();
    machine.scsi_disk(1, "sdb", Some(&id(1).to_string()));
    machine.scsi_disk(2, "sdaa", Some(&id(1).to_string()));
    for disk in machine.gather(&[]).disks {
        assert_eq!(disk.objections[0].kind, RefusalKind::AttachedTwice);
        assert_eq!(
            disk.objections[0].message,
            format!("SCSI ID {} is attached twice (sdb, sdaa)", id(1))
        );
    }
}

fn lab(path: &Path, last: u8) -> LabDisk {
    LabDisk {
        scsi_id: id(last),
        path: path.to_owned(),
        block_size: None,
    }
}

fn image(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

#[test]
fn an_image_file_is_a_lab_disk_with_the_id_given_there() {
    let machine = Machine::new();
    let path = image(machine.dir.path(), "disk.img", 1 << 20);
    let four_k = LabDisk {
        block_size: Some(4096),
        ..lab(&path, 7)
    };
    let inventory = machine.gather(std::slice::from_ref(&four_k));
    let disk = &inventory.disks[0];
    assert_eq!(
        (disk.kind, disk.identity.scsi_id(), disk.size),
        (DiskKind::Lab, Some(id(7)), 1 << 20)
    );
    assert_eq!(
        (disk.logical_block_size, disk.may_be_target),
        (4096, true),
        "{:?}",
        disk.objections
    );
    assert_eq!(disk.content.summary(), "empty");
}

#[test]
fn lab_disks_that_are_none_or_the_same_are_refused() {
    let machine = Machine::new();
    machine.scsi_disk(1, "sdb", Some(&id(9).to_string()));
    let dir = machine.dir.path();
    let one = image(dir, "one.img", 1 << 20);
    let link = dir.join("link.img");
    symlink(&one, &link).unwrap();
    let hard = dir.join("hard.img");
    fs::hard_link(&one, &hard).unwrap();
    let objections = |disks: &[LabDisk]| -> Vec<Vec<String>> {
        let inventory = machine.gather(disks);
        let lab = inventory.disks.iter().filter(|disk| disk.kind == DiskKind::Lab);
        lab.map(|disk| disk.objections.iter().map(|o| o.message.clone()).collect())
            .collect()
    };
    for twin in [&one, &link, &hard] {
        let found = objections(&[lab(&one, 1), lab(twin, 2)]);
        assert!(
            found[0][0].contains("is the same storage as") && found[1][0].contains("one.img"),
            "{found:?}"
        );
    }
    let two = image(dir, "two.img", 1 << 20);
    let found = objections(&[lab(&one, 1), lab(&two, 1)]);
    assert!(
        found
            .iter()
            .all(|messages| messages[0].contains("is attached twice")),
        "{found:?}"
    );
    // The ID of an attached SCSI disk.
    assert!(objections(&[lab(&one, 9)])[0][0].contains("is attached twice"));
    let single = |path: &Path| objections(&[lab(path, 1)])[0].join("; ");
    assert!(single(&dir.join("absent")).contains("cannot be looked at"));
    assert!(single(dir).contains("is neither a loop device nor an image file"));
    assert!(single(Path::new("/dev/null")).contains("is neither a loop device nor an image file"));
    assert!(single(&image(dir, "zero.img", 0)).contains("has no size"));
    assert!(single(&image(dir, "odd.img", 1000)).contains("no multiple of its blocks of 512"));
    assert!(objections(&[lab(&one, 1)])[0].is_empty());
}

#[test]
fn this_machine_can_be_read_without_root_and_its_root_disk_is_no_target() {
    let inventory = gather(&DiskScope::default()).unwrap();
    for disk in &inventory.disks {
        assert!(
            !disk.kernel_name.starts_with("loop") && !disk.kernel_name.starts_with("zram"),
            "{disk:?}"
        );
        if disk.uses.iter().any(|used| used.kind == UseKind::Appliance) {
            assert!(!disk.may_be_target);
        }
    }
    assert!(
        inventory
            .with_id(ScsiId::parse("naa.6000c29000000000ffffffffffffffff").unwrap())
            .next()
            .is_none()
    );
}
