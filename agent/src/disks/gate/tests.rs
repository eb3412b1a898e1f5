use mt_blockdev::blkid::{DiskContent, Signature, Usage};

use super::*;
use crate::disks::facts::DiskUse;
use crate::disks::facts::testing::{disk, id};

const PAIRED_SIZE: u64 = 20 << 30;

fn paired() -> PairedDisk {
    PairedDisk {
        scsi_id: id(1),
        size: PAIRED_SIZE,
        logical_block_size: 512,
        may_overwrite: false,
    }
}

fn full() -> Content {
    let signature = Signature {
        kind: "xfs".into(),
        usage: Usage::Filesystem,
        uuid: None,
        label: None,
    };
    Content::Probed {
        content: DiskContent {
            signature: Some(signature),
            ..DiskContent::default()
        },
    }
}

fn used(kind: UseKind, what: &str) -> impl Fn(&mut Vec<DiskFacts>) {
    let used = DiskUse {
        kind,
        what: what.to_owned(),
    };
    move |disks| disks[0].uses = vec![used.clone()]
}

/// Verdict on sdb (ID ..01) of sdb and sdc after a change to the facts; `None` is admitted.
fn verdict(change: impl Fn(&mut Vec<DiskFacts>), paired: PairedDisk, purpose: Purpose) -> Option<Refusal> {
    let mut disks = vec![disk("sdb", 1), disk("sdc", 2)];
    change(&mut disks);
    let inventory = Inventory {
        disks,
        warnings: Vec::new(),
    };
    match admit(&paired, &inventory, purpose) {
        Ok(disk) => {
            assert_eq!(
                disk.identity.scsi_id(),
                Some(paired.scsi_id),
                "the admitted disk is the paired one"
            );
            None
        }
        Err(refusal) => Some(refusal),
    }
}

type Change = Box<dyn Fn(&mut Vec<DiskFacts>)>;

/// One row per reason: the change to a good disk, the kind, the exit code, the words.
fn refusals() -> Vec<(Change, RefusalKind, u8, &'static str)> {
    use RefusalKind as R;
    vec![
        (
            Box::new(|disks| drop(disks.remove(0))),
            R::NotAttached,
            4,
            "SCSI ID naa.6000c29a71e02b4c9d118e55037faa01 is not attached",
        ),
        (
            Box::new(|disks| disks[1].identity = disks[0].identity.clone()),
            R::AttachedTwice,
            4,
            "SCSI ID naa.6000c29a71e02b4c9d118e55037faa01 is attached twice (sdb, sdc)",
        ),
        (
            Box::new(|disks| {
                // Even a disk whose identity is in doubt counts as showing the ID.
                disks[1].identity = Identity::Conflict {
                    scsi_id: Some(id(1)),
                    witnesses: vec![],
                };
            }),
            R::AttachedTwice,
            4,
            "SCSI ID naa.6000c29a71e02b4c9d118e55037faa01 is attached twice (sdb, sdc)",
        ),
        (
            Box::new(|disks| {
                disks[0].identity = Identity::Missing {
                    why: "VPD page 0x83 is empty".into(),
                }
            }),
            R::NotAttached,
            4,
            "SCSI ID naa.6000c29a71e02b4c9d118e55037faa01 is not attached, and these disks show no SCSI ID: sdb",
        ),
        (
            Box::new(|disks| {
                let witnesses = vec!["INQUIRY naa.1".into(), "sysfs naa.2".into()];
                disks[0].identity = Identity::Conflict {
                    scsi_id: Some(id(1)),
                    witnesses,
                };
            }),
            R::IdentityConflict,
            4,
            "disk sdb shows different SCSI IDs: INQUIRY naa.1, sysfs naa.2",
        ),
        (
            Box::new(|disks| {
                disks[0].identity = Identity::Unconfirmed {
                    scsi_id: Some(id(1)),
                    why: "Permission denied".into(),
                };
            }),
            R::IdentityUnconfirmed,
            4,
            "disk sdb could not be asked for its SCSI ID: Permission denied",
        ),
        (
            Box::new(|disks| disks[0].kind = DiskKind::ScsiOther),
            R::NotADisk,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is a SCSI device that is no disk, \
             and only SCSI disks are targets",
        ),
        (
            Box::new(|disks| disks[0].kind = DiskKind::Nvme),
            R::NotADisk,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is an NVMe disk, and only SCSI disks are targets",
        ),
        (
            Box::new(|disks| {
                disks[0].doubts = vec![Doubt::NoNode {
                    why: "/dev/sdb does not exist".into(),
                }]
            }),
            R::NoNode,
            4,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) has no usable device node: /dev/sdb does not exist",
        ),
        (
            Box::new(|disks| {
                disks[0].doubts = vec![Doubt::NotRunning {
                    state: "offline".into(),
                }]
            }),
            R::NotRunning,
            4,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is not running: the kernel holds it offline",
        ),
        (
            Box::new(|disks| {
                disks[0].kind = DiskKind::Lab;
                disks[0].doubts = vec![Doubt::Lab {
                    why: "is a SCSI disk".into(),
                }];
            }),
            R::LabDisk,
            5,
            "lab disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is a SCSI disk",
        ),
        (
            Box::new(|disks| disks[0].size += 512),
            R::Size,
            4,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is 21474836992 bytes, \
             it was paired with 21474836480 bytes",
        ),
        (
            Box::new(|disks| disks[0].logical_block_size = 4096),
            R::BlockSize,
            4,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) has logical blocks of 4096 bytes, \
             it was paired with 512 bytes",
        ),
        (
            Box::new(|disks| disks[0].read_only = true),
            R::ReadOnly,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is read-only",
        ),
        (
            Box::new(used(UseKind::Appliance, "sdb2 holds /")),
            R::Appliance,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is the appliance's own: sdb2 holds /",
        ),
        (
            Box::new(used(UseKind::Mount, "sdb2 is mounted on /srv")),
            R::Mounted,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is in use: sdb2 is mounted on /srv",
        ),
        (
            Box::new(used(UseKind::Swap, "sdb3 is swap")),
            R::Swap,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is in use: sdb3 is swap",
        ),
        (
            Box::new(used(UseKind::Holder, "sdb1 is held by dm-0")),
            R::Held,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is in use: sdb1 is held by dm-0",
        ),
        (
            Box::new(used(UseKind::Loop, "loop0 is attached to it")),
            R::LoopAttached,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is in use: loop0 is attached to it",
        ),
        (
            Box::new(|disks| disks[0].content = full()),
            R::NotEmpty,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) is not empty: it holds xfs",
        ),
        (
            Box::new(|disks| {
                disks[0].content = Content::Unreadable {
                    why: "I/O error".into(),
                }
            }),
            R::Unreadable,
            5,
            "target disk naa.6000c29a71e02b4c9d118e55037faa01 (sdb) may hold something: \
             it could not be probed (I/O error)",
        ),
    ]
}

#[test]
fn every_reason_refuses_with_its_own_kind_words_and_hint() {
    for (change, kind, exit_code, what) in refusals() {
        let refusal =
            verdict(&change, paired(), Purpose::Write).unwrap_or_else(|| panic!("{kind:?} must refuse"));
        assert_eq!(
            (refusal.kind(), refusal.exit_code() as u8, refusal.what()),
            (kind, exit_code, what)
        );
        assert_eq!(refusal.to_string(), format!("{what}; nothing was written"));
        let hint = refusal.hint().unwrap();
        assert!(!hint.is_empty() && !hint.ends_with('.'), "{kind:?}: {hint}");
        assert!(refusal.to_string().is_ascii());
    }
}

#[test]
fn only_writing_cares_for_read_only_and_content() {
    for (change, kind, ..) in refusals() {
        let verdict = verdict(&change, paired(), Purpose::Verify);
        let harmless = matches!(
            kind,
            RefusalKind::ReadOnly | RefusalKind::NotEmpty | RefusalKind::Unreadable
        );
        assert_eq!(verdict.is_none(), harmless, "{kind:?}");
    }
}

#[test]
fn the_operators_word_opens_a_disk_with_content_and_nothing_else() {
    let named = PairedDisk {
        may_overwrite: true,
        ..paired()
    };
    for (change, kind, ..) in refusals() {
        let verdict = verdict(&change, named, Purpose::Write);
        let harmless = matches!(kind, RefusalKind::NotEmpty | RefusalKind::Unreadable);
        assert_eq!(verdict.is_none(), harmless, "{kind:?}");
    }
}

#[test]
fn a_good_disk_is_admitted_whatever_the_others_are() {
    assert_eq!(verdict(|_| {}, paired(), Purpose::Write), None);
    assert_eq!(verdict(|_| {}, paired(), Purpose::Verify), None);
    assert_eq!(verdict(|disks| disks.truncate(1), paired(), Purpose::Write), None);
    // Renamed, moved to another target number, in another order: identity decides.
    assert_eq!(verdict(|disks| disks.reverse(), paired(), Purpose::Write), None);
    assert_eq!(
        verdict(
            |disks| disks[0].kernel_name = "sdaa".into(),
            paired(),
            Purpose::Write
        ),
        None
    );
    // A neighbour in any trouble does not matter, as long as it does not show the paired ID.
    for (change, kind, ..) in refusals() {
        if matches!(kind, RefusalKind::NotAttached | RefusalKind::AttachedTwice) {
            continue;
        }
        let neighbour = |disks: &mut Vec<DiskFacts>| {
            disks.swap(0, 1);
            change(disks);
            if disks[0].identity.scsi_id() == Some(id(1)) {
                disks[0].identity = Identity::Missing { why: "x".into() };
            }
            disks.swap(0, 1);
        };
        assert_eq!(
            verdict(neighbour, paired(), Purpose::Write),
            None,
            "{kind:?} of a neighbour"
        );
    }
    // A lab disk.
    let lab = |disks: &mut Vec<DiskFacts>| disks[0].kind = DiskKind::Lab;
    assert_eq!(verdict(lab, paired(), Purpose::Write), None);
}

#[test]
fn a_disk_without_an_id_is_never_admitted_and_the_remedy_is_named() {
    let change = |disks: &mut Vec<DiskFacts>| {
        disks[0].identity = Identity::Missing {
            why: "VPD page 0x83 is empty".into(),
        }
    };
    let refusal = verdict(change, paired(), Purpose::Write).unwrap();
    assert!(
        refusal.hint().unwrap().contains("disk.EnableUUID=TRUE"),
        "{refusal}"
    );
}

#[test]
fn the_first_refusal_is_the_first_thing_to_mend() {
    let change = |disks: &mut Vec<DiskFacts>| {
        disks[0].content = full();
        disks[0].size = 512;
        disks[0].uses = vec![DiskUse {
            kind: UseKind::Mount,
            what: "sdb is mounted on /x".into(),
        }];
        disks[0].identity = Identity::Conflict {
            scsi_id: Some(id(1)),
            witnesses: vec![],
        };
    };
    assert_eq!(
        verdict(change, paired(), Purpose::Write).unwrap().kind(),
        RefusalKind::IdentityConflict
    );
}

#[test]
fn the_list_names_everything_against_a_disk_but_not_its_content() {
    let mut appliance = disk("sda", 9);
    appliance.uses = vec![
        DiskUse {
            kind: UseKind::Appliance,
            what: "sda2 holds /".into(),
        },
        DiskUse {
            kind: UseKind::Mount,
            what: "sda1 is mounted on /boot".into(),
        },
    ];
    let mut nameless = disk("sdc", 2);
    nameless.identity = Identity::Missing {
        why: "VPD page 0x83 is empty".into(),
    };
    let mut holding = disk("sdd", 3);
    holding.content = full();
    let mut inventory = Inventory {
        disks: vec![
            appliance,
            disk("sdb", 1),
            nameless,
            holding,
            disk("sde", 5),
            disk("sdf", 5),
        ],
        warnings: Vec::new(),
    };
    assess(&mut inventory);
    let kinds: Vec<Vec<RefusalKind>> = inventory
        .disks
        .iter()
        .map(|disk| disk.objections.iter().map(|o| o.kind).collect())
        .collect();
    use RefusalKind as R;
    assert_eq!(
        kinds,
        [
            vec![R::Appliance, R::Mounted],
            vec![],
            vec![R::NoScsiId],
            vec![],
            vec![R::AttachedTwice],
            vec![R::AttachedTwice]
        ]
    );
    for disk in &inventory.disks {
        assert_eq!(disk.may_be_target, disk.objections.is_empty());
    }
    assert_eq!(
        inventory.disks[2].objections[0].message,
        "disk sdc has no SCSI ID: VPD page 0x83 is empty"
    );
    assert!(
        inventory.disks[2].objections[0]
            .hint
            .contains("disk.EnableUUID=TRUE")
    );
}

#[test]
fn a_refusal_of_an_open_disk_does_not_claim_that_nothing_was_written() {
    let refusal = Refusal::new(RefusalKind::Changed, "target disk x is gone".into(), "hint").after_open();
    assert_eq!(
        refusal.to_string(),
        "target disk x is gone; nothing more is written"
    );
}
