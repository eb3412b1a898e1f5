//! Whether the completeness check notices what was missed, and whether what is not missed is made up for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use mt_blockdev::buffer::AlignedBuf;
use mt_blockdev::sysfs::Sysfs;
use mt_tracker::chunks::ChunkSet;
use mt_tracker::continuity::{Gap, Now, resume};
use mt_tracker::kernel::DiskFolder;
use mt_tracker::proof::{Doubt, Verdict};
use mt_tracker::record::{DiskIdentity, Record, State};
use mt_tracker::stack::{Capture, DigestReason, Unfit, capture};
use mt_tracker::tracker::{Options, Planted, TrackError, Tracker};
use nix::libc;
use support::{Copy, Disk, MIB, doubt, settle, skip, tracker_or_skip};

const DISK: u64 = 32 * MIB;
const CHUNK: u32 = 4096;

fn planted(planted: Planted) -> Options {
    Options {
        planted,
        ..Options::default()
    }
}

/// A disk that is tracked.
fn tracked(tracker: &mut Tracker) -> Disk {
    let disk = Disk::new(DISK, &[]);
    tracker
        .add(&disk.name, disk.number, CHUNK)
        .expect("a loop device can be tracked");
    disk
}

/// Writes blocks of 4096 bytes past the page cache, one every 64 KiB.
fn write(disk: &Disk, blocks: std::ops::Range<u64>, value: u8) {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&disk.path)
        .unwrap();
    let mut buffer = AlignedBuf::zeroed(4096);
    buffer.fill(value);
    for block in blocks {
        file.write_all_at(&buffer, block * 65_536).unwrap();
    }
}

#[test]
fn what_is_seen_is_complete_and_nothing_else_is_marked() {
    let test = "what_is_seen_is_complete_and_nothing_else_is_marked";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    let beside = tracked(&mut tracker);
    write(&disk, 3..10, 1);
    assert!(tracker.marked(disk.number, 3 * 16).unwrap());
    assert!(!tracker.marked(disk.number, 3 * 16 + 1).unwrap());
    let harvest = tracker.harvest(disk.number).unwrap();
    let wanted: Vec<_> = (3..10)
        .map(|block| block * 65_536..block * 65_536 + 4096)
        .collect();
    assert_eq!(harvest.changed.extents().collect::<Vec<_>>(), wanted);
    assert_eq!(tracker.verdict(disk.number).unwrap(), Verdict::Complete);
    // Taken once, and not from the disk beside it.
    assert!(tracker.harvest(beside.number).unwrap().changed.is_empty());
    assert!(!tracker.marked(disk.number, 3 * 16).unwrap());
    tracker.remove(disk.number).unwrap();
    assert!(matches!(
        tracker.harvest(disk.number),
        Err(TrackError::Unknown(_))
    ));
    assert_eq!(tracker.verdict(beside.number).unwrap(), Verdict::Complete);
}

#[test]
fn an_event_that_was_lost_on_both_sides_is_noticed() {
    let test = "an_event_that_was_lost_on_both_sides_is_noticed";
    // The request at 5 * 64 KiB, and at its multiples.
    let options = planted(Planted {
        skip_sector_each: 640,
        ..Planted::default()
    });
    let Some(mut tracker) = tracker_or_skip(test, &options, &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    write(&disk, 1..5, 1);
    assert_eq!(tracker.verdict(disk.number).unwrap(), Verdict::Complete);
    write(&disk, 5..6, 1);
    let Doubt::Lost(lost) = doubt(tracker.verdict(disk.number).unwrap()) else {
        panic!("8 sectors were lost")
    };
    assert_eq!((lost.write, lost.discard), (8, 0));
    // It stays so, and what else is seen does not make up for it.
    write(&disk, 6..9, 1);
    assert!(matches!(
        doubt(tracker.verdict(disk.number).unwrap()),
        Doubt::Lost(_)
    ));
}

#[test]
fn an_issue_that_was_lost_is_noticed() {
    let test = "an_issue_that_was_lost_is_noticed";
    let options = planted(Planted {
        skip_issue_each: 10,
        ..Planted::default()
    });
    let Some(mut tracker) = tracker_or_skip(test, &options, &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    write(&disk, 0..9, 1);
    assert_eq!(tracker.verdict(disk.number).unwrap(), Verdict::Complete);
    write(&disk, 9..10, 1);
    assert_eq!(
        doubt(tracker.verdict(disk.number).unwrap()),
        Doubt::IssueUnseen(1)
    );
}

#[test]
fn completions_that_were_lost_are_made_up_for() {
    let test = "completions_that_were_lost_are_made_up_for";
    let options = planted(Planted {
        skip_completion_each: 5,
        ..Planted::default()
    });
    let Some(mut tracker) = tracker_or_skip(test, &options, &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    let mut copy = Copy::of(&disk);
    for round in 1..=20 {
        write(&disk, 0..500, round);
        settle(&mut tracker, &disk, &mut copy);
        assert_eq!(copy.stale(), [0_usize; 0]);
        assert_eq!(
            tracker.verdict(disk.number).unwrap(),
            Verdict::Complete,
            "round {round}"
        );
    }
    let counters = tracker.counters(disk.number).unwrap();
    assert!(counters.unseen > 100, "{counters:?}");
}

#[test]
fn a_program_that_is_gone_is_noticed() {
    let test = "a_program_that_is_gone_is_noticed";
    for name in ["issue", "complete", "requeue"] {
        let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &[]) else {
            return;
        };
        let disk = tracked(&mut tracker);
        assert!(tracker.detach(name));
        assert_eq!(
            doubt(tracker.verdict(disk.number).unwrap()),
            Doubt::Detached,
            "{name}"
        );
    }
}

#[test]
fn programs_that_the_kernel_does_not_call_any_more_show_in_the_counts() {
    let test = "programs_that_the_kernel_does_not_call_any_more_show_in_the_counts";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    write(&disk, 0..4, 1);
    // As if somebody else had taken them away, whom we cannot see.
    assert!(tracker.detach_unseen("issue") && tracker.detach_unseen("complete"));
    assert_eq!(tracker.verdict(disk.number).unwrap(), Verdict::Complete);
    write(&disk, 4..7, 1);
    assert!(matches!(doubt(tracker.verdict(disk.number).unwrap()), Doubt::Lost(lost) if lost.write == 24));
}

#[test]
fn a_disk_that_grows_is_noticed() {
    let test = "a_disk_that_grows_is_noticed";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    OpenOptions::new()
        .write(true)
        .open(disk.scratch().join("image"))
        .and_then(|file| file.set_len(2 * DISK))
        .unwrap();
    support::run("losetup", &["--set-capacity", disk.text()]);
    assert_eq!(
        doubt(tracker.verdict(disk.number).unwrap()),
        Doubt::Resized {
            was: DISK,
            is: 2 * DISK
        }
    );
}

/// The kernel keeps the device's number, its size and its counts; what is behind it is all different.
#[test]
fn another_disk_in_the_same_place_is_noticed() {
    let test = "another_disk_in_the_same_place_is_noticed";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &["python3"]) else {
        return;
    };
    let disk = Disk::new(DISK, &["--read-only"]);
    tracker.add(&disk.name, disk.number, CHUNK).unwrap();
    if DiskFolder::new("/sys".as_ref(), &disk.name).sequence() == 0 {
        return skip(test, "this kernel does not number attachments");
    }
    assert_eq!(tracker.verdict(disk.number).unwrap(), Verdict::Complete);
    let other = disk.scratch().join("other");
    std::fs::write(&other, vec![7; usize::try_from(DISK).unwrap()]).unwrap();
    // LOOP_CHANGE_FD, which swaps the file without giving the device up: between a detach and an attach somebody else
    // might take it.
    let swap =
        "import fcntl,sys; d,f=[open(p,'rb') for p in sys.argv[1:]]; fcntl.ioctl(d, 0x4C06, f.fileno())";
    support::run("python3", &["-c", swap, disk.text(), other.to_str().unwrap()]);
    assert_eq!(doubt(tracker.verdict(disk.number).unwrap()), Doubt::Replaced);
}

#[test]
fn a_kernel_that_stops_counting_is_noticed() {
    let test = "a_kernel_that_stops_counting_is_noticed";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    let iostats = format!("/sys/block/{}/queue/iostats", disk.name);
    std::fs::write(&iostats, "0").unwrap();
    let off = tracker.verdict(disk.number);
    write(&disk, 0..3, 1);
    std::fs::write(&iostats, "1").unwrap();
    assert_eq!(doubt(off.unwrap()), Doubt::IostatsOff);
    // Off and on again between two looks: the programs saw what the kernel did not count.
    assert!(
        matches!(doubt(tracker.verdict(disk.number).unwrap()), Doubt::NeverSettled(difference) if difference.write == -24)
    );
}

#[test]
fn more_writes_under_way_than_can_be_noted_are_noticed() {
    let test = "more_writes_under_way_than_can_be_noted_are_noticed";
    let options = Options {
        inflight_max: Some(1),
        ..Options::default()
    };
    let Some(mut tracker) = tracker_or_skip(test, &options, &["fio"]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    let file = format!("--filename={}", disk.text());
    support::run(
        "fio",
        &[
            "--name=deep",
            &file,
            "--rw=randwrite",
            "--bs=4k",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=64",
            "--number_ios=500",
        ],
    );
    assert!(matches!(
        doubt(tracker.verdict(disk.number).unwrap()),
        Doubt::TooManyUnderWay(_)
    ));
}

#[test]
fn a_disk_without_requests_is_refused_with_the_reason() {
    let test = "a_disk_without_requests_is_refused_with_the_reason";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &[]) else {
        return;
    };
    let Some(zram) = Sysfs::default().disk("zram0") else {
        return skip(test, "there is no zram0");
    };
    let refused = tracker.add("zram0", zram.number, CHUNK);
    // A zram that nobody uses has no bytes; either way it is not tracked.
    assert!(
        matches!(
            refused,
            Err(TrackError::Unfit {
                reason: Unfit::BioBased,
                ..
            })
        ),
        "{refused:?}"
    );
    let nodes = Sysfs::default().nodes().unwrap();
    let facts = |name: &str| DiskFolder::new("/sys".as_ref(), name).queue().ok();
    let digest = Capture::Digest {
        device: "zram0".to_owned(),
        reason: DigestReason::Unfit(Unfit::BioBased),
    };
    assert_eq!(capture(&nodes, "zram0", &facts), digest);
}

#[test]
fn a_loop_device_is_captured_by_tracking_it() {
    let test = "a_loop_device_is_captured_by_tracking_it";
    let Some(mut tracker) = tracker_or_skip(test, &Options::default(), &[]) else {
        return;
    };
    let disk = tracked(&mut tracker);
    let nodes = Sysfs::default().nodes().unwrap();
    let facts = |name: &str| DiskFolder::new("/sys".as_ref(), name).queue().ok();
    assert_eq!(
        capture(&nodes, &disk.name, &facts),
        Capture::Tracked([disk.name.clone()].into())
    );
    let all = ChunkSet::all(tracker.size(disk.number).unwrap());
    assert_eq!(all.len(), DISK / u64::from(CHUNK));
}

/// The agent ends in order, and another begins where it was.
#[test]
fn a_set_is_gone_on_with_when_nothing_was_written_in_between() {
    let test = "a_set_is_gone_on_with_when_nothing_was_written_in_between";
    let Some(mut first) = tracker_or_skip(test, &Options::default(), &[]) else {
        return;
    };
    let disk = tracked(&mut first);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    let mut copy = Copy::of(&disk);
    write(&disk, 0..20, 1);
    let paused = first.pause(disk.number).unwrap();
    assert_eq!(paused.verdict, Verdict::Complete);
    let boot_id = first.boot_id();
    drop(first);
    let sequence = std::fs::read_to_string(format!("/sys/block/{}/diskseq", disk.name)).unwrap_or_default();
    let identity = DiskIdentity {
        name: String::new(),
        sequence: sequence.trim().parse().unwrap_or(0),
    };
    let mut record = Record {
        state: State::Paused,
        generation: 1,
        boot_id,
        disk: identity.clone(),
        counted: paused.counted,
        changed: paused.changed,
    };
    record.store(&path).unwrap();

    let now = |tracker: &Tracker| Now {
        boot_id: tracker.boot_id(),
        disk: identity.clone(),
        size: DISK,
        boots: false,
        generation: 1,
        counted: tracker.counted_when_added(disk.number).unwrap(),
    };
    let mut second = Tracker::start(&Options::default()).unwrap();
    second.add(&disk.name, disk.number, CHUNK).unwrap();
    let loaded = Record::load(&path).unwrap().unwrap();
    assert_eq!(loaded, record);
    assert_eq!(resume(&loaded, &now(&second)), Ok(()));
    write(&disk, 10..30, 2);
    copy.follow(&loaded.changed);
    settle(&mut second, &disk, &mut copy);
    assert_eq!(copy.stale(), [0_usize; 0]);
    drop(second);

    // Written while nobody marked, which is the same as a tracker that was attached late.
    write(&disk, 40..41, 3);
    let mut third = Tracker::start(&Options::default()).unwrap();
    third.add(&disk.name, disk.number, CHUNK).unwrap();
    let between = Gap::WrittenBetween {
        write: 8 * 21,
        discard: 0,
    };
    assert_eq!(resume(&loaded, &now(&third)), Err(between));
    record.state = State::Open;
    assert_eq!(resume(&record, &now(&third)), Err(Gap::Open));
}
