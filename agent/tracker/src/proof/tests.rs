use super::*;

const BASELINE: Baseline = Baseline {
    boot_id: [1; 16],
    sequence: 11,
    size: 1 << 30,
    misses: 2,
    write: Some(1000),
    discard: Some(50),
};

/// 80 sectors written and 16 discarded since the disk was added, nothing under way.
fn evidence() -> Evidence {
    let counters = Counters {
        issued: 96,
        completed_write: 80,
        completed_discard: 16,
        ..Counters::default()
    };
    Evidence {
        boot_id: [1; 16],
        sequence: 11,
        size: 1 << 30,
        iostats: true,
        misses: 2,
        attached: true,
        reading: Reading {
            before: counters,
            leftovers: Leftovers::default(),
            kernel: KernelCounts {
                write: 1080,
                discard: 66,
                inflight: 0,
            },
            after: counters,
        },
    }
}

fn with(change: impl FnOnce(&mut Evidence)) -> Verdict {
    let mut some = evidence();
    change(&mut some);
    judge(&BASELINE, &some)
}

fn counted(change: impl Fn(&mut Counters)) -> Verdict {
    with(|some| {
        change(&mut some.reading.before);
        change(&mut some.reading.after);
    })
}

fn lost(write: i128, discard: i128) -> Verdict {
    Verdict::Doubt(Doubt::Lost(Difference { write, discard }))
}

fn unsettled(write: i128, discard: i128) -> Verdict {
    Verdict::Unsettled(Difference { write, discard })
}

#[test]
fn every_cause_is_told() {
    assert_eq!(judge(&BASELINE, &evidence()), Verdict::Complete);
    let table = [
        (with(|some| some.boot_id = [2; 16]), Doubt::OtherBoot),
        (with(|some| some.sequence = 12), Doubt::Replaced),
        (with(|some| some.attached = false), Doubt::Detached),
        (with(|some| some.iostats = false), Doubt::IostatsOff),
        (
            with(|some| some.size += 512),
            Doubt::Resized {
                was: 1 << 30,
                is: (1 << 30) + 512,
            },
        ),
        (with(|some| some.misses = 5), Doubt::Missed(3)),
        (counted(|counters| counters.beyond = 1), Doubt::Beyond(1)),
        (
            counted(|counters| counters.pass_through_write = 4),
            Doubt::PassThrough(4),
        ),
        (
            counted(|counters| counters.inflight_full = 7),
            Doubt::TooManyUnderWay(7),
        ),
        (counted(|counters| counters.unmatched = 1), Doubt::IssueUnseen(1)),
        (
            counted(|counters| counters.unseen_scattered = 1),
            Doubt::ScatteredUnseen(1),
        ),
        (counted(|counters| counters.unmarked = 9), Doubt::Unmarked(9)),
    ];
    for (verdict, doubt) in table {
        assert_eq!(verdict, Verdict::Doubt(doubt));
        assert!(!doubt.to_string().is_empty());
    }
    // A disk whose counts could not be read when it was added proves nothing.
    let empty = Baseline {
        write: None,
        ..BASELINE
    };
    assert_eq!(judge(&empty, &evidence()), Verdict::Doubt(Doubt::Unreadable));
    // Neither reads nor commands that send nothing are a doubt.
    assert_eq!(
        counted(|counters| counters.pass_through_other = 3),
        Verdict::Complete
    );
    assert_eq!(counted(|counters| counters.requeued = 3), Verdict::Complete);
}

#[test]
fn what_the_kernel_counted_and_nobody_saw_is_lost() {
    assert_eq!(with(|some| some.reading.kernel.write += 8), lost(8, 0));
    assert_eq!(with(|some| some.reading.kernel.discard += 8), lost(0, 8));
    // Busy or not.
    let busy = with(|some| {
        some.reading.kernel.write += 24;
        some.reading.kernel.inflight = 1;
        some.reading.leftovers.write = 8;
    });
    assert_eq!(busy, lost(16, 0));
    // One kind does not make up for the other.
    let mixed = with(|some| {
        some.reading.kernel.write += 8;
        some.reading.kernel.discard -= 8;
    });
    assert_eq!(mixed, lost(8, -8));
}

#[test]
fn completions_that_were_not_seen_are_made_up_for() {
    // Found when the address was used again.
    let reused = with(|some| {
        some.reading.kernel.write += 8;
        some.reading.before.unseen_write = 8;
        some.reading.after.unseen_write = 8;
    });
    assert_eq!(reused, Verdict::Complete);
    // Still noted while the kernel has nothing under way.
    let left = with(|some| {
        some.reading.kernel.write += 8;
        some.reading.leftovers.write = 8;
    });
    assert_eq!(left, Verdict::Complete);
    // A note of a write that the kernel has not counted explains nothing.
    assert_eq!(with(|some| some.reading.leftovers.write = 8), unsettled(-8, 0));
}

#[test]
fn a_busy_disk_is_read_again() {
    // One of two under way has completed in the meantime, or was lost: cannot be told.
    let busy = with(|some| {
        some.reading.kernel.write += 8;
        some.reading.kernel.inflight = 2;
        some.reading.leftovers.write = 16;
    });
    assert_eq!(busy, unsettled(8, 0));
    let moved = with(|some| {
        some.reading.before.completed_write -= 8;
        some.reading.kernel.inflight = 1;
    });
    assert_eq!(moved, unsettled(0, 0));
    // The kernel is a moment behind.
    let behind = with(|some| {
        some.reading.kernel.write -= 8;
        some.reading.kernel.inflight = 1;
    });
    assert_eq!(behind, unsettled(-8, 0));
    // Busy and equal.
    let equal = with(|some| {
        some.reading.kernel.inflight = 3;
        some.reading.leftovers.write = 24;
    });
    assert_eq!(equal, Verdict::Complete);
}

#[test]
fn a_baseline_comes_from_below_and_is_exact_when_two_readings_agree() {
    let mut baseline = Baseline {
        write: None,
        discard: None,
        ..BASELINE
    };
    let mut reading = evidence().reading;
    // 24 sectors completed between the kernel's counts and ours.
    reading.after.completed_write += 24;
    assert!(!baseline.improve(&reading));
    assert_eq!(baseline.write, Some(976));
    let still = evidence().reading;
    assert!(!baseline.improve(&still));
    assert_eq!((baseline.write, baseline.discard), (Some(1000), Some(50)));
    assert!(baseline.improve(&still));
    assert!(!baseline.improve(&reading), "a worse one changes nothing");
    assert_eq!(baseline.write, Some(1000));
    // What is under way is not counted by either side, unless the kernel says that nothing is.
    let mut busy = still;
    busy.leftovers.write = 8;
    busy.kernel.inflight = 1;
    assert!(baseline.improve(&busy));
    let mut fresh = Baseline {
        write: None,
        discard: None,
        ..BASELINE
    };
    busy.kernel.inflight = 0;
    busy.kernel.write += 8;
    fresh.improve(&busy);
    assert_eq!(fresh.write, Some(1000));
}
