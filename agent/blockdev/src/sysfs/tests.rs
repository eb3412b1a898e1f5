use std::os::unix::fs::symlink;

use super::*;

/// Builds a sysfs as the kernel lays it out: real folders under `devices`, links everywhere else.
struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let tree = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in ["block", "class/block", "dev/block", "bus/scsi", "bus/virtio"] {
            fs::create_dir_all(tree.path(dir)).unwrap();
        }
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(&self, from: &str, to: &str) {
        symlink(self.path(to), self.path(from)).unwrap();
    }

    fn device(&self, at: &str, name: &str, number: &str, sectors: &str) {
        self.file(&format!("{at}/{name}/dev"), format!("{number}\n"));
        self.file(&format!("{at}/{name}/size"), format!("{sectors}\n"));
        self.link(&format!("class/block/{name}"), &format!("{at}/{name}"));
        self.link(&format!("dev/block/{number}"), &format!("{at}/{name}"));
        fs::create_dir_all(self.path(&format!("{at}/{name}/holders"))).unwrap();
    }
}

/// One VMware disk with two partitions, LVM on the second.
fn vmware() -> Tree {
    let tree = Tree::new();
    let scsi = "devices/host2/2:0:1:0";
    tree.device(&format!("{scsi}/block"), "sdb", "8:16", "41943040");
    tree.link("block/sdb", &format!("{scsi}/block/sdb"));
    let sdb = format!("{scsi}/block/sdb");
    for (name, value) in [
        ("ro", "0"),
        ("removable", "0"),
        ("queue/logical_block_size", "512"),
        ("queue/physical_block_size", "4096"),
    ] {
        tree.file(&format!("{sdb}/{name}"), format!("{value}\n"));
    }
    tree.link(&format!("{sdb}/device"), scsi);
    tree.link(&format!("{scsi}/subsystem"), "bus/scsi");
    for (name, value) in [
        ("vendor", "VMware  "),
        ("model", "Virtual disk    "),
        ("type", "0"),
        ("state", "running"),
        ("wwid", "naa.6000c29a71e02b4c9d118e55037faa01"),
    ] {
        tree.file(&format!("{scsi}/{name}"), format!("{value}\n"));
    }
    tree.file(&format!("{scsi}/vpd_pg83"), [0, 0x83, 0, 0]);
    for (name, number, start, sectors) in [("sdb1", "8:17", "2048", "1024"), ("sdb2", "8:18", "4096", "8192")]
    {
        tree.device(&sdb, name, number, sectors);
        tree.file(&format!("{sdb}/{name}/partition"), &name[3..]);
        tree.file(&format!("{sdb}/{name}/start"), start);
    }
    tree.device("devices/virtual/block", "dm-0", "253:0", "8192");
    tree.link("block/dm-0", "devices/virtual/block/dm-0");
    tree.file("devices/virtual/block/dm-0/dm/name", "vg-root\n");
    tree.file("devices/virtual/block/dm-0/dm/uuid", "LVM-abc\n");
    fs::create_dir_all(tree.path("devices/virtual/block/dm-0/slaves")).unwrap();
    tree.link("devices/virtual/block/dm-0/slaves/sdb2", &format!("{sdb}/sdb2"));
    tree.link(&format!("{sdb}/sdb2/holders/dm-0"), "devices/virtual/block/dm-0");
    tree
}

#[test]
fn a_scsi_disk_is_read_in_bytes() {
    let tree = vmware();
    let disk = Sysfs::new(tree.dir.path()).disk("sdb").unwrap();
    assert_eq!(
        (disk.size, disk.logical_block_size, disk.physical_block_size),
        (20 << 30, 512, 4096)
    );
    assert_eq!(disk.number.to_string(), "8:16");
    assert!(!disk.read_only && !disk.removable);
    let scsi = disk.scsi.unwrap();
    assert_eq!(
        (scsi.hctl.as_str(), scsi.vendor.as_str(), scsi.model.as_str()),
        ("2:0:1:0", "VMware", "Virtual disk")
    );
    assert_eq!((scsi.device_type, scsi.state.as_str()), (0, "running"));
    assert_eq!(scsi.wwid.as_deref(), Some("naa.6000c29a71e02b4c9d118e55037faa01"));
    assert_eq!(
        (scsi.vpd80, scsi.vpd83.as_deref()),
        (None, Some(&[0, 0x83, 0, 0][..]))
    );
    let parts: Vec<_> = disk
        .partitions
        .iter()
        .map(|p| (p.name.as_str(), p.number, p.start, p.size))
        .collect();
    assert_eq!(
        parts,
        [("sdb1", 1, 1 << 20, 524_288), ("sdb2", 2, 2 << 20, 4 << 20)]
    );
}

#[test]
fn stacking_and_numbers_are_followed() {
    let tree = vmware();
    let sysfs = Sysfs::new(tree.dir.path());
    let nodes = sysfs.nodes().unwrap();
    let node = |name: &str| nodes.iter().find(|node| node.name == name).unwrap();
    assert_eq!(node("sdb2").holders, ["dm-0"]);
    assert_eq!(node("sdb2").disk.as_deref(), Some("sdb"));
    assert_eq!(node("sdb").disk, None);
    assert_eq!(node("dm-0").slaves, ["sdb2"]);
    assert_eq!(
        (node("dm-0").dm_name.as_deref(), node("dm-0").dm_uuid.as_deref()),
        (Some("vg-root"), Some("LVM-abc"))
    );
    let number = |text: &str| text.parse().unwrap();
    assert_eq!(
        sysfs.name_of(number("8:18")),
        Some(("sdb2".into(), Some("sdb".into())))
    );
    assert_eq!(sysfs.name_of(number("8:16")), Some(("sdb".into(), None)));
    assert_eq!(sysfs.name_of(number("8:99")), None);
    assert_eq!(sysfs.whole_devices().unwrap(), ["dm-0", "sdb"]);
}

#[test]
fn a_disk_of_another_bus_has_no_scsi_side() {
    let tree = Tree::new();
    tree.device("devices/virtio0/block", "vda", "254:0", "2048");
    tree.link("block/vda", "devices/virtio0/block/vda");
    tree.link("devices/virtio0/block/vda/device", "devices/virtio0");
    tree.link("devices/virtio0/subsystem", "bus/virtio");
    let sysfs = Sysfs::new(tree.dir.path());
    let disk = sysfs.disk("vda").unwrap();
    assert_eq!((disk.scsi, disk.size), (None, 1 << 20));
    assert_eq!(sysfs.disk("../vda"), None);
    assert_eq!(sysfs.disk("sdz"), None);
}

#[test]
fn more_than_26_and_more_than_702_disks_sort_as_people_count() {
    let sorted = [
        "dm-0", "dm-2", "dm-10", "loop3", "sda", "sdb", "sdb1", "sdb2", "sdb10", "sdz", "sdaa", "sdab",
        "sdbz", "sdaaa", "vda",
    ];
    let mut names = sorted.to_vec();
    names.reverse();
    names.sort_by_key(|name| natural_key(name));
    assert_eq!(names, sorted);
}

#[test]
fn device_numbers_read_and_print() {
    assert_eq!("259:12".parse::<DeviceNumber>().unwrap().to_string(), "259:12");
    assert!("8".parse::<DeviceNumber>().is_err());
    assert!("8:x".parse::<DeviceNumber>().is_err());
    assert_eq!(
        DeviceNumber::from_dev(nix::sys::stat::makedev(8, 16)).to_string(),
        "8:16"
    );
}

#[test]
fn names_with_a_slash_are_found_under_dev() {
    assert_eq!(devnode("sdb"), Path::new("/dev/sdb"));
    assert_eq!(devnode("cciss!c0d0"), Path::new("/dev/cciss/c0d0"));
}
