use std::fs;
use std::path::Path;

use super::*;
use crate::disks::facts::LabDisk;
use crate::disks::facts::testing::id;
use crate::disks::gate::RefusalKind;

const SIZE: u64 = 4 << 20;

struct Lab {
    folder: tempfile::TempDir,
    broker: Broker,
}

fn lab() -> Lab {
    let folder = tempfile::tempdir().unwrap();
    let disks: Vec<LabDisk> = [1, 2]
        .into_iter()
        .map(|number| {
            let path = folder.path().join(format!("{number}.img"));
            fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
            LabDisk {
                scsi_id: id(number),
                path,
                block_size: None,
            }
        })
        .collect();
    let records = Records::open(&folder.path().join("pairs.json")).unwrap();
    let scope = DiskScope::new(&disks, &[]);
    Lab {
        broker: Broker::new(scope, records),
        folder,
    }
}

fn open(pair: &str, purpose: Purpose) -> Request {
    Request::Open {
        pair: pair.to_owned(),
        purpose,
    }
}

fn record(pair: &str, disk: u8, overwrite: bool) -> Request {
    Request::Record {
        pair: pair.to_owned(),
        scsi_id: id(disk),
        overwrite,
    }
}

#[test]
fn only_root_records_and_only_known_users_are_answered() {
    let target = Uid::from_raw(Uid::effective().as_raw() + 77);
    assert_eq!(Role::of(Uid::from_raw(0), target), Role::Root);
    assert_eq!(Role::of(target, target), Role::Target);
    assert_eq!(Role::of(Uid::from_raw(target.as_raw() + 1), target), Role::Nobody);
    let lab = lab();
    for request in [
        record("db01/a", 1, true),
        Request::Forget {
            pair: "db01/a".to_owned(),
        },
    ] {
        let (answer, device) = lab.broker.answer(Role::Target, &request);
        assert!(
            matches!(answer, Answer::Failed { .. }) && device.is_none(),
            "{answer:?}"
        );
    }
    for request in [
        Request::Disks,
        open("db01/a", Purpose::Verify),
        record("db01/a", 1, false),
    ] {
        let (answer, device) = lab.broker.answer(Role::Nobody, &request);
        assert!(
            matches!(answer, Answer::Failed { .. }) && device.is_none(),
            "{answer:?}"
        );
    }
}

#[test]
fn the_target_gets_the_disk_of_a_recorded_pair_and_no_other() {
    let lab = lab();
    let (answer, device) = lab.broker.answer(Role::Target, &open("db01/a", Purpose::Write));
    assert!(
        matches!(&answer, Answer::Failed { message, .. } if message.contains("no pair db01/a is recorded")),
        "{answer:?}"
    );
    assert!(device.is_none());
    let (answer, _) = lab.broker.answer(Role::Root, &record("db01/a", 1, false));
    assert!(
        matches!(&answer, Answer::Pair { changed: true, recorded } if recorded.size == SIZE),
        "{answer:?}"
    );
    let (answer, device) = lab.broker.answer(Role::Target, &open("db01/a", Purpose::Write));
    let Answer::Opened { disk, paired } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((paired.scsi_id, paired.size), (id(1), SIZE));
    assert_eq!(disk.devnode, lab.folder.path().join("1.img"));
    assert_eq!(device.unwrap().size(), SIZE);
    let (answer, _) = lab.broker.answer(Role::Root, &record("db02/a", 1, false));
    assert!(
        matches!(&answer, Answer::Failed { message, .. } if message.contains("pair db01/a already")),
        "{answer:?}"
    );
}

#[test]
fn what_a_disk_holds_is_lost_only_by_roots_word_or_when_it_is_ours() {
    let lab = lab();
    let image = lab.folder.path().join("2.img");
    let mut content = vec![0; usize::try_from(SIZE).unwrap()];
    content[..4].copy_from_slice(b"XFSB");
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content[3000] = 7;
    fs::write(&image, &content).unwrap();
    let (answer, _) = lab.broker.answer(Role::Root, &record("db01/b", 2, false));
    assert!(
        matches!(
            answer,
            Answer::Refused {
                kind: RefusalKind::NotEmpty,
                ..
            }
        ),
        "{answer:?}"
    );
    let (answer, _) = lab.broker.answer(Role::Root, &record("db01/b", 2, true));
    assert!(matches!(answer, Answer::Pair { changed: true, .. }), "{answer:?}");
    assert!(
        fs::read(&image).unwrap() == content,
        "recording a pair touches nothing"
    );
    // Empty when it was recorded: once it was handed out for writing, what is there is the target's.
    lab.broker.answer(Role::Root, &record("db01/a", 1, false));
    drop(lab.broker.answer(Role::Target, &open("db01/a", Purpose::Write)));
    fs::write(lab.folder.path().join("1.img"), &content).unwrap();
    let (answer, device) = lab.broker.answer(Role::Target, &open("db01/a", Purpose::Write));
    assert!(
        matches!(answer, Answer::Opened { .. }) && device.is_some(),
        "{answer:?}"
    );
}

#[test]
fn a_name_that_can_be_none_is_refused() {
    let lab = lab();
    for name in [
        "",
        "db01",
        "db01/",
        "db01/a/b",
        "db01/\u{1b}[2J",
        &"x".repeat(9000),
    ] {
        let (answer, _) = lab.broker.answer(Role::Root, &record(name, 1, false));
        assert!(
            matches!(answer, Answer::Failed { exit_code: 2, .. }),
            "{answer:?}"
        );
    }
    assert!(!Path::new(&lab.folder.path().join("pairs.json")).exists());
}

#[test]
fn changes_are_told_in_words() {
    let lab = lab();
    let rows = [
        (record("db01/a", 1, true), "record pair db01/a with", "done"),
        (
            record("db02/a", 1, false),
            "record pair db02/a with",
            "refused: target disk",
        ),
        (
            Request::Forget {
                pair: "db01/a".to_owned(),
            },
            "forget pair db01/a",
            "done",
        ),
        (
            Request::Forget {
                pair: "x\n".to_owned(),
            },
            "forget pair x\\n",
            "done before",
        ),
    ];
    for (request, what, came) in rows {
        let told = change(&request).unwrap();
        assert!(told.starts_with(what), "{told}");
        let (answer, _) = lab.broker.answer(Role::Root, &request);
        assert!(result(&answer).starts_with(came), "{told}: {answer:?}");
    }
    assert!(
        change(&record("a/b", 1, true))
            .unwrap()
            .ends_with(", overwriting it")
    );
    assert_eq!(change(&open("db01/a", Purpose::Write)), None);
}

/// A client that says nothing, or nonsense, costs a place for some seconds and gets no disk.
#[test]
fn nonsense_is_answered_in_words() {
    let lab = lab();
    let (one, two) = UnixStream::pair().unwrap();
    send(&one, b"{\"verb\":\"erase\"}", None).unwrap();
    talk(&lab.broker, &two, Role::Root, "user 0").unwrap();
    let (document, descriptor) = receive(&one, 4096).unwrap().unwrap();
    let answer: Answer = serde_json::from_slice(&document).unwrap();
    assert!(matches!(answer, Answer::Failed { .. }) && descriptor.is_none());
    let (one, two) = UnixStream::pair().unwrap();
    drop(one);
    talk(&lab.broker, &two, Role::Root, "user 0").unwrap();
    // Nothing is waited for from somebody who may ask nothing.
    let (one, two) = UnixStream::pair().unwrap();
    talk(&lab.broker, &two, Role::Nobody, "user 9").unwrap();
    assert!(receive(&one, 4096).unwrap().is_some());
}
