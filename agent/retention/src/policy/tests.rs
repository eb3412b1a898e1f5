use super::*;
use crate::types::{Consistency, Origin};

fn point(epoch: u64, received_time_ms: i64) -> Point {
    Point {
        epoch: EpochNumber(epoch),
        consistency: Consistency::Crash,
        origin: Origin::Source,
        source_time_ms: 0,
        received_time_ms,
        name: String::new(),
        tags: Vec::new(),
        pinned: false,
        changed_bytes: 0,
    }
}

const NOW: i64 = 1_000 * DAY_MS;
const MINUTE: i64 = 60_000;

fn numbers(epochs: &[EpochNumber]) -> Vec<u64> {
    epochs.iter().map(|epoch| epoch.0).collect()
}

#[test]
fn all_then_hourly_then_daily_then_none() {
    // Every ten minutes for three days, and one every day for forty days before.
    let mut points = Vec::new();
    for day in (4..44).rev() {
        points.push(point(points.len() as u64, NOW - day * DAY_MS));
    }
    for tens in (0..3 * 24 * 6).rev() {
        points.push(point(points.len() as u64, NOW - tens * 10 * MINUTE));
    }
    let policy = Policy::default();
    let dropped = to_thin(points.iter(), NOW, &policy);
    let kept: Vec<&Point> = points.iter().filter(|p| !dropped.contains(&p.epoch)).collect();
    let between = |from: i64, to: i64| {
        kept.iter()
            .filter(|p| (from..to).contains(&(NOW - p.received_time_ms)))
            .count()
    };
    assert_eq!(between(0, 2 * HOUR_MS), 12);
    // The hours before; the first of them began within the two hours of which all are kept.
    assert!(
        (21..=23).contains(&between(2 * HOUR_MS + 1, DAY_MS)),
        "{}",
        between(2 * HOUR_MS + 1, DAY_MS)
    );
    assert!(kept.iter().all(|p| NOW - p.received_time_ms <= 30 * DAY_MS));
    assert_eq!(between(4 * DAY_MS, 31 * DAY_MS), 27);
    // Thinning what is thinned changes nothing.
    assert_eq!(to_thin(kept.into_iter(), NOW, &policy), Vec::new());
}

#[test]
fn newest_pinned_and_young_points_stay() {
    let policy = Policy {
        keep_all_ms: 0,
        keep_hourly_ms: 0,
        keep_daily_ms: 0,
        ..Policy::default()
    };
    let mut pinned = point(1, NOW - 100 * DAY_MS);
    pinned.pinned = true;
    let points = [
        pinned,
        point(2, NOW - 90 * DAY_MS),
        point(3, NOW - MINUTE),
        point(4, NOW - 80 * DAY_MS),
    ];
    assert_eq!(numbers(&to_thin(points.iter(), NOW, &policy)), [2]);
}

#[test]
fn a_clock_that_went_back_drops_nothing() {
    let policy = Policy {
        keep_all_ms: 0,
        keep_hourly_ms: 0,
        keep_daily_ms: 0,
        ..Policy::default()
    };
    let points = [point(1, NOW + DAY_MS), point(2, NOW + 2 * DAY_MS)];
    assert_eq!(to_thin(points.iter(), NOW, &policy), Vec::new());
}

#[test]
fn room_is_made_from_the_oldest_and_never_from_the_protected() {
    let policy = Policy::default();
    let old = |epoch| point(epoch, NOW - DAY_MS);
    let young = |epoch| point(epoch, NOW - MINUTE);
    let decide = |points: &[Point]| to_make_room(points.iter(), NOW, &policy);
    assert_eq!(decide(&[old(1), old(2)]), RoomDecision::Drop(EpochNumber(1)));
    assert_eq!(decide(&[young(1), young(2)]), RoomDecision::Stop);
    let mut pinned = old(1);
    pinned.pinned = true;
    assert_eq!(
        decide(&[pinned, old(2), old(3)]),
        RoomDecision::Drop(EpochNumber(2))
    );
    assert_eq!(
        decide(&[old(1)]),
        RoomDecision::GoOnWithoutRollback(EpochNumber(1))
    );
    let stop = Policy {
        when_full: WhenFull::Stop,
        ..policy
    };
    assert_eq!(to_make_room([old(1)].iter(), NOW, &stop), RoomDecision::Stop);
    assert_eq!(decide(&[]), RoomDecision::Stop);
}

#[test]
fn deleting_is_refused_with_the_reason() {
    let policy = Policy::default();
    let refusal = |point: &Point, newest| refusal_to_delete(point, newest, NOW, &policy);
    assert_eq!(refusal(&point(1, NOW - DAY_MS), false), None);
    let (why, _) = refusal(&point(1, NOW - DAY_MS), true).unwrap();
    assert!(why.contains("newest"));
    let (why, hint) = refusal(&point(1, NOW - MINUTE), false).unwrap();
    assert!(why.contains("60 s old") && hint.contains("--minimum-age"));
}

#[test]
fn fullness_has_two_steps_and_a_forecast() {
    assert_eq!(fullness(79, 100), Fullness::Normal);
    assert_eq!(fullness(80, 100), Fullness::Warning);
    assert_eq!(fullness(95, 100), Fullness::Alarm);
    assert_eq!(fullness(u64::MAX, 0), Fullness::Normal);
    assert_eq!(seconds_to_full(60, 100, 10, 1000), Some(4));
    assert_eq!(seconds_to_full(60, 100, 0, 1000), None);
}
