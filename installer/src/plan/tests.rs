// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every rule of the plan, each with a machine on which it matters.

use super::*;
use crate::answers::{Card, Ipv4, Network, Part};

const GIB: u64 = 1 << 30;

fn disk(name: &str, id: Option<&str>) -> DiskFacts {
    DiskFacts {
        devnode: format!("/dev/{name}").into(),
        kernel_name: name.to_owned(),
        scsi_id: id.map(str::to_owned),
        model: "VMware Virtual disk".to_owned(),
        size: 16 * GIB,
        logical_block_size: 512,
        is_empty: true,
        content: "nothing".to_owned(),
        ..DiskFacts::default()
    }
}

fn machine(disks: Vec<DiskFacts>) -> MachineFacts {
    MachineFacts {
        memory: 4 * GIB,
        disks,
        ..MachineFacts::default()
    }
}

fn on(answers: &Answers, facts: &MachineFacts) -> Result<Plan> {
    plan(answers, facts, Place::Disk, &Consent::default())
}

fn named(name: &str) -> Answers {
    let mut answers = Answers::default();
    answers.storage.disk = Some(name.to_owned());
    answers
}

const A: &str = "naa.6000c29000000000000000000000000a";
const B: &str = "naa.6000c29000000000000000000000000b";

#[test]
fn refusals_say_why_and_what_to_do() {
    let with = |change: &dyn Fn(&mut DiskFacts)| {
        let mut one = disk("sda", Some(A));
        change(&mut one);
        machine(vec![one])
    };
    let full = |disk: &mut DiskFacts| {
        disk.is_empty = false;
        disk.content = "gpt, 3 partitions (vfat, xfs, LVM2_member)".to_owned();
    };
    let ours = |disk: &mut DiskFacts| {
        full(disk);
        disk.is_ours = true;
    };
    let usual = Answers::default();
    let mut clear = Answers::default();
    clear.storage.clear = true;
    let table: Vec<(&str, Answers, MachineFacts, Kind, &str)> = vec![
        (
            "no disk",
            usual.clone(),
            machine(vec![]),
            Kind::Disk,
            "has no disk",
        ),
        (
            "only the medium",
            usual.clone(),
            with(&|disk| disk.is_medium = true),
            Kind::Disk,
            "has no disk",
        ),
        (
            "several",
            usual.clone(),
            machine(vec![disk("sda", Some(A)), disk("sdb", Some(B))]),
            Kind::Disk,
            "there are 2 disks",
        ),
        (
            "not there",
            named(B),
            with(&|_| ()),
            Kind::Disk,
            "no disk is called",
        ),
        (
            "there twice",
            named(A),
            machine(vec![disk("sda", Some(A)), disk("sdb", Some(A))]),
            Kind::Disk,
            "2 disks are called",
        ),
        (
            "read-only",
            usual.clone(),
            with(&|disk| disk.read_only = true),
            Kind::Refused,
            "read-only",
        ),
        (
            "4Kn",
            usual.clone(),
            with(&|disk| disk.logical_block_size = 4096),
            Kind::Refused,
            "4096 bytes",
        ),
        (
            "in use",
            usual.clone(),
            with(&|disk| disk.used_by = vec!["sda2 is mounted on /boot".to_owned()]),
            Kind::Refused,
            "sda2 is mounted on /boot",
        ),
        (
            "unreadable",
            named(A),
            with(&|disk| disk.unreadable = Some("input/output error".to_owned())),
            Kind::Refused,
            "cannot be read",
        ),
        (
            "too small",
            usual.clone(),
            with(&|disk| disk.size = 4 * GIB),
            Kind::Disk,
            "too small",
        ),
        (
            "a guest's disk without a name",
            clear.clone(),
            with(&full),
            Kind::Refused,
            "may be a machine's",
        ),
        (
            "a guest's disk with a name",
            named(A),
            with(&full),
            Kind::Refused,
            "it holds gpt",
        ),
        (
            "our own disk without consent",
            usual.clone(),
            with(&ours),
            Kind::Refused,
            "it holds gpt",
        ),
    ];
    for (what, answers, facts, kind, says) in table {
        let error = on(&answers, &facts).expect_err(what);
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert!(error.to_string().contains(says), "{what}: {error}");
        assert!(
            error.to_string().contains("nothing was written"),
            "{what}: {error}"
        );
        assert!(error.next_step().is_some(), "{what}");
    }
    let mut answers = named(A);
    answers.storage.clear = true;
    on(&answers, &with(&full)).unwrap();
    on(&clear, &with(&ours)).unwrap();
}

#[test]
fn disks_that_cannot_be_told_apart_stop_the_installation_on_vmware_and_warn_elsewhere() {
    use crate::scsi_ids::{Disk, Report};
    let asked = |name: &str, id: Option<&str>| Disk {
        kernel_name: name.to_owned(),
        address: "2:0:1:0".to_owned(),
        size: 16 * GIB,
        scsi_id: id.map(|id| mt_blockdev::scsi::ScsiId::parse(id).expect("an ID")),
        why: id.is_none().then(|| "VPD page 0x83 is empty".to_owned()),
    };
    let with = |vendor: &str, disks: Vec<Disk>| {
        let mut facts = machine(vec![disk("sda", Some(A))]);
        facts.scsi_ids = Report {
            vendor: vendor.to_owned(),
            disks,
        };
        facts
    };
    let doubts = [
        (
            vec![asked("sda", Some(A)), asked("sdb", None)],
            "  sdb    at 2:0:1:0        16 GiB  VPD page 0x83 is empty",
        ),
        (
            vec![asked("sda", Some(A)), asked("sdb", Some(A))],
            "is shown by sda, sdb",
        ),
    ];
    for (disks, says) in doubts {
        let facts = with("VMware, Inc.", disks.clone());
        let error = on(&named(A), &facts).expect_err(says);
        assert_eq!(error.kind, Kind::Disk, "{error}");
        for words in [
            says,
            "disk.EnableUUID = TRUE",
            "vSphere client: Edit settings",
            "govc vm.change",
            "mt-image vmx enable-uuid",
            "nothing was written",
        ] {
            assert!(error.to_string().contains(words), "{words:?} is not in {error}");
        }
        let plan = on(&named(A), &with("QEMU", disks)).expect("a warning");
        assert!(plan.text().contains(says), "{}", plan.text());
        assert!(!plan.text().contains("EnableUUID"), "{}", plan.text());
    }
    let good = with("VMware, Inc.", vec![asked("sda", Some(A)), asked("sdb", Some(B))]);
    assert!(on(&named(A), &good).expect("a plan").notes.is_empty());
    let into_image = plan(
        &Answers::default(),
        &with("VMware, Inc.", vec![asked("sda", None)]),
        Place::Image(16 * GIB),
        &Consent::default(),
    );
    assert!(
        into_image.is_ok(),
        "an image is made without this machine's disks"
    );
}

#[test]
fn consent_for_another_disk_is_none() {
    let mut holder = disk("sda", Some(A));
    holder.is_empty = false;
    let facts = machine(vec![holder, disk("sdb", Some(B))]);
    let consent = |name: &str| Consent {
        wipe: Some(name.to_owned()),
        agent: false,
    };
    let error = plan(&named(A), &facts, Place::Disk, &consent(B)).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.to_string().contains("--wipe names"), "{error}");
    let good = plan(&named(A), &facts, Place::Disk, &consent("sda")).unwrap();
    assert_eq!(good.losses.len(), 1);
}

#[test]
fn a_disk_is_known_by_all_its_names() {
    let mut one = disk("sda", Some(A));
    one.links = vec!["disk/by-id/wwn-0x6000c290".to_owned()];
    for name in [
        A,
        "6000C29000000000000000000000000A",
        "0x6000c29000000000000000000000000a",
        "sda",
        "/dev/sda",
        "disk/by-id/wwn-0x6000c290",
        "/dev/disk/by-id/wwn-0x6000c290",
    ] {
        assert!(one.is_called(name), "{name}");
    }
    for name in ["sd", "sda1", B, "", "naa.", "disk/by-id/wwn-0x6000c29"] {
        assert!(!one.is_called(name), "{name}");
    }
}

#[test]
fn the_usual_partitions_follow_each_other_within_the_disk() {
    for (gib, memory) in [(8, 2), (16, 8), (100, 64), (5_000, 8)] {
        let mut one = disk("sda", Some(A));
        one.size = gib * GIB;
        let mut facts = machine(vec![one]);
        // As the kernel tells it: no whole number of MiB.
        facts.memory = memory * GIB - 4096;
        let plan = on(&Answers::default(), &facts).unwrap();
        let mut at = MIB;
        for partition in &plan.partitions {
            assert_eq!(partition.start, at);
            assert_eq!(partition.size % MIB, 0);
            at += partition.size;
        }
        assert!(at <= plan.size - MIB, "{gib} GiB");
        let root = plan.mounted_at("/").unwrap();
        assert!(root.start + root.size <= 2 << 40);
        let crash = plan.mounted_at("/var/crash").unwrap();
        // A third of the disk is the most it gets; where that is enough nothing is to be said.
        assert_eq!(plan.notes.is_empty(), memory * 3 <= gib, "{:?}", plan.notes);
        assert!(
            crash.size >= (memory * GIB).min(plan.size / 3 / MIB * MIB),
            "{gib} GiB disk, {memory} GiB memory: {}",
            crash.size
        );
    }
}

#[test]
fn partitions_asked_for_are_made() {
    let part = |role: Role, size_mib, grow| Part {
        role,
        fs: FileSystem::Ext4,
        size_mib,
        grow,
        max_mib: None,
        options: None,
    };
    let mount = |path: &str| Role::Mount(path.to_owned());
    let mut answers = Answers::default();
    answers.storage.parts = vec![
        part(mount("/var"), Some(1_000), true),
        part(mount("/"), Some(4_000), false),
        Part {
            max_mib: Some(1_500),
            ..part(mount("/home"), Some(1_000), true)
        },
    ];
    let plan = on(&answers, &machine(vec![disk("sda", Some(A))])).unwrap();
    let names: Vec<&str> = plan.partitions.iter().map(|p| p.role.name()).collect();
    assert_eq!(names, ["biosboot", "/boot/efi", "/", "/var", "/home"]);
    assert_eq!(plan.mounted_at("/home").unwrap().size, 1_500 * MIB);
    let end = plan.partitions.iter().map(|p| p.start + p.size).max().unwrap();
    assert!(plan.size - end < 3 * MIB, "/var takes what is left");
    answers.storage.parts[1].size_mib = Some(100);
    let error = on(&answers, &machine(vec![disk("sda", Some(A))])).unwrap_err();
    assert!(
        error.to_string().contains("/ is asked for with 100 MiB"),
        "{error}"
    );
}

#[test]
fn answers_that_contradict_each_other_are_refused() {
    let facts = machine(vec![disk("sda", Some(A))]);
    let network = |name: &str| Network {
        card: Card::Name(name.to_owned()),
        ipv4: Ipv4::Static {
            address: [192, 0, 2, 1].into(),
            prefix: 24,
            gateway: None,
        },
        ..Network::default()
    };
    let change = |change: &dyn Fn(&mut Answers)| {
        let mut answers = Answers::default();
        change(&mut answers);
        answers
    };
    let key = || vec!["ssh-ed25519 AAAA".to_owned()];
    let table = [
        (
            change(&|a| a.networks = vec![network("eth0"), network("eth1")]),
            "given twice",
        ),
        (
            change(&|a| a.networks = vec![network("eth0"), network("eth0")]),
            "same card",
        ),
        (
            change(&|a| a.networks = vec![Network::default(), network("eth1")]),
            "names no card",
        ),
        (
            change(&|a| {
                a.services_enabled = vec!["x".to_owned()];
                a.services_disabled = vec!["x".to_owned()];
            }),
            "enabled and disabled",
        ),
        (
            change(&|a| {
                a.ssh_keys = key();
                a.services_disabled = vec!["sshd".to_owned()];
            }),
            "SSH is disabled",
        ),
        (
            change(&|a| {
                a.storage.disk = Some(A.to_owned());
                a.settings.retention_disk = Some(A.to_owned());
            }),
            "both the system's and the retention disk",
        ),
    ];
    for (answers, says) in table {
        let error = on(&answers, &facts).expect_err(says);
        assert_eq!(error.kind, Kind::Config, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn the_first_sector_comes_last() {
    let plan = on(&Answers::default(), &machine(vec![disk("sda", None)])).unwrap();
    assert_eq!(plan.steps.first(), Some(&Step::CheckPayload));
    assert_eq!(plan.steps.last(), Some(&Step::FirstSector));
    assert!(plan.notes.iter().any(|note| note.contains("no SCSI ID")));
    let text = plan.text();
    assert!(text.contains("nothing: the disk is empty"), "{text}");
}
