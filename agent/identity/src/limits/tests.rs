//! Attackers and the one with the right passphrase, in simulated time.

use super::*;
use crate::testing::now as date;
use proptest::prelude::{any, prop_assert, proptest};

fn address(number: u32) -> IpAddr {
    IpAddr::from(number.to_be_bytes())
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// How long someone waits who tries again exactly when he is told to.
fn wait_of(limiter: &mut RateLimiter, who: IpAddr, from: Duration) -> Duration {
    let mut now = from;
    loop {
        match limiter.begin(who, now) {
            Ok(attempt) => {
                limiter.succeeded(attempt);
                return now - from;
            }
            Err(wait) => now += wait.left,
        }
    }
}

#[test]
fn the_delay_doubles_up_to_a_minute() {
    let mut limiter = RateLimiter::default();
    let mut now = Duration::ZERO;
    let mut waits = Vec::new();
    for _ in 0..10 {
        while let Err(wait) = limiter.begin(address(1), now) {
            waits.push(wait.seconds());
            now += wait.left;
        }
    }
    // After the fifth within a minute the limit of the address is what counts.
    assert_eq!(waits, [1, 2, 4, 8, 45, 32, 60, 60, 60]);
}

/// A thousand wrong tries of every kind, then the right one: it waits for a minute at most.
#[test]
fn a_thousand_wrong_tries_never_lock_the_right_one_out_for_more_than_a_minute() {
    let patient = |limiter: &mut RateLimiter| {
        // As fast as allowed: hours.
        let mut now = Duration::ZERO;
        for _ in 0..1000 {
            while let Err(wait) = limiter.begin(address(1), now) {
                assert!(wait.left <= WAIT_MAX);
                now += wait.left;
            }
        }
        now
    };
    let hammering = |limiter: &mut RateLimiter| {
        // A hundred a second, whatever the answer.
        let mut now = Duration::ZERO;
        for _ in 0..1000 {
            let _ = limiter.begin(address(1), now);
            now += Duration::from_millis(10);
        }
        now
    };
    let from_everywhere = |limiter: &mut RateLimiter| {
        for number in 0..1000 {
            let _ = limiter.begin(address(number), seconds(1));
        }
        seconds(1)
    };
    let attacks: [&dyn Fn(&mut RateLimiter) -> Duration; 3] = [&patient, &hammering, &from_everywhere];
    for (number, attack) in attacks.into_iter().enumerate() {
        for right in [address(1), address(5000)] {
            let mut limiter = RateLimiter::default();
            let now = attack(&mut limiter);
            let waited = wait_of(&mut limiter, right, now);
            assert!(waited <= WAIT_MAX, "attack {number}, {right}: {waited:?}");
        }
    }
}

/// Fifty addresses that try whenever they are allowed to, always a moment sooner.
#[test]
fn the_right_one_gets_in_while_others_attack() {
    let mut limiter = RateLimiter::default();
    let mut next = [Duration::ZERO; 50];
    let mut accepted = VecDeque::new();
    for second in 0..1800 {
        let now = seconds(second);
        for (number, at) in (0..).zip(next.iter_mut()) {
            if *at <= now {
                match limiter.begin(address(number), now) {
                    Ok(_) => accepted.push_back(now),
                    Err(wait) => *at = now + wait.left,
                }
            }
        }
        while accepted.front().is_some_and(|at| *at + seconds(60) <= now) {
            accepted.pop_front();
        }
        assert!(
            accepted.len() <= FAILURES_IN_ALL,
            "{} failures a minute",
            accepted.len()
        );
        // A fresh address, once each of theirs has failed for the first time.
        if second > 180 && second % 60 == 0 {
            let right = address(10_000 + u32::try_from(second).unwrap());
            let attempt = limiter
                .begin(right, now)
                .expect("places are kept for who has not failed");
            limiter.succeeded(attempt);
        }
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut limiter = RateLimiter::default();
    // One every two seconds is as fast as failures are taken; all of them keep asking, to stay in mind.
    let mut most = 0;
    for number in 0..5000 {
        let now = seconds(u64::from(number) * 2);
        drop(limiter.begin(address(number), now));
        if number % 300 == 0 {
            for again in 0..number {
                drop(limiter.begin(address(again), now));
            }
        }
        most = most.max(limiter.remembered());
    }
    assert_eq!(most, ADDRESSES_MAX);
    let quiet = seconds(5000 * 2) + FORGOTTEN_AFTER;
    drop(limiter.begin(address(7000), quiet));
    assert_eq!(limiter.remembered(), 1);
}

#[test]
fn asking_too_early_makes_no_wait_longer_and_success_clears() {
    let mut limiter = RateLimiter::default();
    let who = address(1);
    drop(limiter.begin(who, Duration::ZERO).unwrap());
    for _ in 0..100 {
        assert_eq!(limiter.begin(who, Duration::ZERO).unwrap_err().seconds(), 1);
    }
    let attempt = limiter.begin(who, seconds(1)).unwrap();
    // In parallel: counted before it is known how the first ends.
    assert_eq!(limiter.begin(who, seconds(1)).unwrap_err().seconds(), 2);
    limiter.succeeded(attempt);
    assert!(limiter.begin(who, seconds(1)).is_ok());
}

#[test]
fn a_host_with_many_ipv6_addresses_is_one() {
    let mut limiter = RateLimiter::default();
    let at = |last: u16| IpAddr::from([0x2001, 0xdb8, 1, 2, 3, 4, 5, last]);
    drop(limiter.begin(at(1), Duration::ZERO).unwrap());
    assert!(limiter.begin(at(2), Duration::ZERO).is_err());
    assert!(
        limiter
            .begin(IpAddr::from([0x2001, 0xdb8, 1, 3, 0, 0, 0, 1]), Duration::ZERO)
            .is_ok()
    );
    let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
    drop(limiter.begin(mapped, Duration::ZERO).unwrap());
    assert!(
        limiter
            .begin("192.0.2.1".parse().unwrap(), Duration::ZERO)
            .is_err()
    );
}

#[test]
fn ten_thousand_idle_connections_neither_grow_nor_keep_others_out() {
    let mut admission = Admission::default();
    let mut taken = 0;
    for number in 0..10_000 {
        match admission.admit(address(number % 20), Duration::ZERO) {
            Ok(_) => taken += 1,
            Err(error) => assert_eq!(error, Unwelcome::TooManyFromAddress),
        }
        assert!(admission.count() <= CONNECTIONS_MAX);
    }
    assert!(taken >= CONNECTIONS_MAX);
    // Someone else finds a place, at the cost of one who has most.
    let admitted = admission.admit(address(777), Duration::ZERO).unwrap();
    assert!(admitted.evicted.is_some() && admission.count() == CONNECTIONS_MAX);
    assert_eq!(admission.next_deadline(), Some(UNAUTHENTICATED_TIME));
    assert_eq!(admission.take_overdue(seconds(9)), []);
    assert_eq!(admission.take_overdue(seconds(10)).len(), CONNECTIONS_MAX);
    assert_eq!((admission.count(), admission.next_deadline()), (0, None));
}

/// Eight silent connections of an address hold up others behind it for a second, not for ten; those that are at work are not
/// pushed out by newcomers.
#[test]
fn silent_connections_make_room_for_others_of_their_address() {
    let mut admission = Admission::default();
    let admit = |admission: &mut Admission, at| admission.admit(address(1), at);
    let slots: Vec<Slot> = (0..CONNECTIONS_PER_ADDRESS)
        .map(|_| admit(&mut admission, Duration::ZERO).unwrap().slot)
        .collect();
    admission.shaken(slots[0]);
    let early = SILENT_TIME - Duration::from_millis(1);
    assert_eq!(admit(&mut admission, early), Err(Unwelcome::TooManyFromAddress));
    for silent in &slots[1..] {
        let admitted = admit(&mut admission, SILENT_TIME).unwrap();
        assert_eq!(admitted.evicted, Some(*silent));
        admission.shaken(admitted.slot);
        assert_eq!(admission.count(), CONNECTIONS_PER_ADDRESS);
    }
    assert_eq!(
        admit(&mut admission, seconds(9)),
        Err(Unwelcome::TooManyFromAddress)
    );
    assert!(admission.admit(address(2), seconds(9)).is_ok());
}

#[test]
fn bytes_before_authentication_are_bounded() {
    let mut admission = Admission::default();
    let slot = admission.admit(address(1), Duration::ZERO).unwrap().slot;
    assert_eq!(admission.received(slot, UNAUTHENTICATED_BYTES), Ok(()));
    assert_eq!(admission.received(slot, 1), Err(Unwelcome::TooManyBytes));
    let known = admission.admit(address(1), Duration::ZERO).unwrap().slot;
    admission.release(known);
    assert_eq!(admission.received(known, usize::MAX), Ok(()));
}

#[test]
fn the_window_closes_by_itself() {
    let window = Window::open(date(), None);
    assert!(window.is_open(date()));
    assert!(window.is_open(date() + SignedDuration::from_secs(86_399)));
    assert!(!window.is_open(date() + SignedDuration::from_hours(24)));
    assert!(!Window::closed().is_open(date()));
    assert_eq!(Window::until(window.end()), window);
    assert!(Window::open(Timestamp::MAX, None).is_open(date()));
}

proptest! {
    /// Whoever tries whenever, in whatever order: no wait is longer than a minute, and no more failures pass than may.
    #[test]
    fn no_wait_is_longer_than_a_minute(tries in proptest::collection::vec((0_u32..40, 0_u64..5000, any::<bool>()), 1..300)) {
        let mut limiter = RateLimiter::default();
        let mut now = Duration::ZERO;
        let mut failures: VecDeque<(Duration, u32)> = VecDeque::new();
        for (who, step, right) in tries {
            now += Duration::from_millis(step);
            match limiter.begin(address(who), now) {
                Ok(attempt) if right => limiter.succeeded(attempt),
                Ok(_) => failures.push_back((now, who)),
                Err(wait) => {
                    prop_assert!(wait.left <= WAIT_MAX);
                    prop_assert!((1..=60).contains(&wait.seconds()));
                }
            }
            failures.retain(|(at, _)| *at + seconds(60) > now);
            prop_assert!(failures.len() <= FAILURES_IN_ALL);
            prop_assert!(failures.iter().filter(|(_, address)| *address == who).count() <= FAILURES_PER_ADDRESS);
        }
    }
}
