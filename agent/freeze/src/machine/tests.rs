use proptest::prelude::*;

use super::*;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Two file systems, the first of which lies in a file of the second.
fn nested() -> Freeze {
    Freeze::new(vec![vec![0], vec![1]], ms(500)).unwrap()
}

#[test]
fn levels_that_miss_or_repeat_one_are_none() {
    assert!(Freeze::new(vec![vec![1], vec![0, 2]], ms(1)).is_some());
    for levels in [
        vec![],
        vec![vec![]],
        vec![vec![1]],
        vec![vec![0, 0]],
        vec![vec![0], vec![0]],
        vec![vec![0, 2]],
    ] {
        assert!(Freeze::new(levels.clone(), ms(1)).is_none(), "{levels:?}");
    }
}

#[test]
fn the_upper_is_frozen_first_and_thawed_last() {
    let mut freeze = nested();
    assert_eq!(freeze.due(), None);
    assert_eq!(freeze.handle(Event::Begin, ms(10)), [Action::Freeze(0)]);
    assert_eq!(freeze.due(), Some(ms(510)));
    assert_eq!(freeze.handle(Event::Frozen(0), ms(20)), [Action::Freeze(1)]);
    assert_eq!(freeze.handle(Event::Frozen(1), ms(30)), [Action::TellFrozen]);
    assert_eq!(freeze.handle(Event::Tick, ms(40)), []);
    assert_eq!(
        freeze.handle(Event::Asked, ms(50)),
        [Action::Thaw(1), Action::Thaw(0)]
    );
    assert_eq!(freeze.handle(Event::Thawed(1), ms(51)), []);
    assert_eq!(
        freeze.handle(Event::Thawed(0), ms(52)),
        [Action::End(Cause::Asked, ms(42))]
    );
    assert!(freeze.ended());
}

#[test]
fn the_limit_thaws_what_is_frozen_and_what_comes_back_late() {
    let mut freeze = nested();
    freeze.handle(Event::Begin, ms(0));
    freeze.handle(Event::Frozen(0), ms(5));
    // The second hangs in its freeze.
    assert_eq!(freeze.handle(Event::Tick, ms(499)), []);
    assert_eq!(freeze.handle(Event::Tick, ms(500)), [Action::Thaw(0)]);
    assert_eq!(freeze.handle(Event::Thawed(0), ms(501)), []);
    assert!(!freeze.ended());
    assert_eq!(freeze.handle(Event::Frozen(1), ms(9000)), [Action::Thaw(1)]);
    assert_eq!(
        freeze.handle(Event::Thawed(1), ms(9001)),
        [Action::End(Cause::Late, ms(9001))]
    );
}

#[test]
fn asked_at_the_limit_is_late() {
    let mut freeze = Freeze::new(vec![vec![0]], ms(500)).unwrap();
    freeze.handle(Event::Begin, ms(0));
    freeze.handle(Event::Frozen(0), ms(1));
    assert_eq!(freeze.handle(Event::Asked, ms(500)), [Action::Thaw(0)]);
    assert_eq!(
        freeze.handle(Event::Thawed(0), ms(501)),
        [Action::End(Cause::Late, ms(501))]
    );
    // Thawed after the limit, but asked before, is in time: everything was read.
    let mut freeze = Freeze::new(vec![vec![0]], ms(500)).unwrap();
    freeze.handle(Event::Begin, ms(0));
    freeze.handle(Event::Frozen(0), ms(1));
    freeze.handle(Event::Asked, ms(499));
    assert_eq!(
        freeze.handle(Event::Thawed(0), ms(502)),
        [Action::End(Cause::Asked, ms(502))]
    );
}

#[test]
fn one_that_cannot_be_frozen_gives_up_all_and_is_not_thawed() {
    let mut freeze = Freeze::new(vec![vec![0, 1], vec![2]], ms(500)).unwrap();
    assert_eq!(
        freeze.handle(Event::Begin, ms(0)),
        [Action::Freeze(0), Action::Freeze(1)]
    );
    freeze.handle(Event::Frozen(0), ms(1));
    assert_eq!(freeze.handle(Event::Refused(1, 16), ms(2)), [Action::Thaw(0)]);
    assert_eq!(
        freeze.handle(Event::Thawed(0), ms(3)),
        [Action::End(Cause::Refused(1, 16), ms(3))]
    );
}

#[test]
fn a_thaw_that_fails_is_tried_again() {
    let mut freeze = Freeze::new(vec![vec![0]], ms(500)).unwrap();
    freeze.handle(Event::Begin, ms(0));
    freeze.handle(Event::Frozen(0), ms(1));
    freeze.handle(Event::Gone, ms(2));
    assert_eq!(freeze.handle(Event::ThawFailed(0, 5), ms(3)), []);
    assert_eq!(freeze.due(), Some(ms(13)));
    assert_eq!(freeze.handle(Event::Tick, ms(12)), []);
    assert_eq!(freeze.handle(Event::Tick, ms(13)), [Action::Thaw(0)]);
    assert_eq!(
        freeze.handle(Event::Thawed(0), ms(14)),
        [Action::End(Cause::Gone, ms(14))]
    );
}

proptest! {
    /// Whatever order things happen in, nothing is left frozen at the end, and it does come to its end.
    #[test]
    fn nothing_stays_frozen(
        levels in prop::sample::select(vec![
            vec![vec![0]], vec![vec![0, 1, 2]], vec![vec![2], vec![0, 1]], vec![vec![0], vec![1], vec![2], vec![3]],
        ]),
        steps in prop::collection::vec((0_u8..9, 0_usize..8, 0_u64..40), 0..60),
    ) {
        let count = levels.iter().flatten().count();
        let mut freeze = Freeze::new(levels, ms(300)).unwrap();
        // What the world is like: whether each is frozen by us, and what is being worked on.
        let mut frozen = vec![false; count];
        let mut work: Vec<Action> = Vec::new();
        let mut now = 0;
        let mut end = None;
        let take = |actions: Vec<Action>, work: &mut Vec<Action>, end: &mut Option<Cause>| {
            for action in actions {
                match action {
                    Action::End(cause, _) => *end = Some(cause),
                    Action::TellFrozen => {}
                    other => work.push(other),
                }
            }
        };
        take(freeze.handle(Event::Begin, ms(0)), &mut work, &mut end);
        // Random steps, then an agent that is gone and work that gets done.
        let rest = std::iter::repeat_n((0, 0, 20), 200);
        for (number, (kind, which, passed)) in steps.iter().copied().chain(rest).enumerate() {
            now += passed;
            let event = match kind {
                0..=5 if !work.is_empty() => match work.remove(which % work.len()) {
                    Action::Freeze(index) if kind == 5 => Event::Refused(index, 16),
                    Action::Freeze(index) => {
                        frozen[index] = true;
                        Event::Frozen(index)
                    }
                    Action::Thaw(index) if kind == 4 => Event::ThawFailed(index, 5),
                    Action::Thaw(index) => {
                        prop_assert!(frozen[index], "thawed what was not frozen by us");
                        frozen[index] = false;
                        Event::Thawed(index)
                    }
                    other => panic!("{other:?} is no work"),
                },
                6 => Event::Asked,
                7 => Event::Gone,
                _ if number > 100 => Event::Gone,
                _ => Event::Tick,
            };
            take(freeze.handle(event, ms(now)), &mut work, &mut end);
            if end.is_some() {
                prop_assert!(frozen.iter().all(|frozen| !frozen), "ended while something is frozen");
                prop_assert!(work.is_empty());
            }
        }
        prop_assert!(end.is_some() && freeze.ended());
    }
}
