//! The whole table of transitions, hostile registrations, renewals and every decision.

use super::*;
use crate::ca::Ca;
use crate::leaf::{Leaf, Validity};
use crate::testing::{days, machine, name, now};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const ID: MachineId = MachineId([1; 16]);

fn key(number: u8) -> Fingerprint {
    Fingerprint([number; 32])
}

fn until() -> Timestamp {
    now() + days(90)
}

fn register(registry: &Registry, id: MachineId, with: Fingerprint) -> Result<Change, RegistryError> {
    registry.register(id, &name(), Role::Source, with, until(), now())
}

fn leaf(id: MachineId, with: Fingerprint) -> Leaf {
    Leaf {
        id,
        role: Role::Source,
        key: with,
        not_before: now() - days(1),
        not_after: until(),
    }
}

/// A registry whose machine `ID` is in this phase: key 1, and key 2 waiting where it is contested.
fn registry_in(phase: Phase) -> Registry {
    let mut registry = Registry::default();
    let mut then = |act: &dyn Fn(&Registry) -> Result<Change, RegistryError>| {
        let change = act(&registry).unwrap();
        registry.commit(change);
    };
    if phase != Phase::Absent {
        then(&|registry| register(registry, ID, key(1)));
    }
    if matches!(phase, Phase::Active | Phase::Contested | Phase::Revoked) {
        then(&|registry| registry.approve(ID, key(1), now()));
    }
    if phase == Phase::Contested {
        then(&|registry| register(registry, ID, key(2)));
    }
    if phase == Phase::Revoked {
        then(&|registry| registry.revoke(ID, now()));
    }
    registry
}

fn phase_of(registry: &Registry) -> Phase {
    registry.machine(ID).map_or(Phase::Absent, Machine::phase)
}

/// Every cell of the table in the module's text, and what each act leaves behind.
#[test]
fn every_act_in_every_phase() {
    use Phase::{Absent, Active, Contested, Pending, Revoked};
    type Perform = fn(&Registry) -> Result<Change, RegistryError>;
    let acts: [(Act, Perform, [Option<Phase>; 5]); 7] = [
        (
            Act::RegisterSame,
            |registry| register(registry, ID, key(1)),
            [Some(Pending), Some(Pending), Some(Active), Some(Contested), None],
        ),
        (
            Act::RegisterOther,
            |registry| register(registry, ID, key(3)),
            [
                Some(Pending),
                Some(Pending),
                Some(Contested),
                Some(Contested),
                None,
            ],
        ),
        (
            Act::Approve,
            |registry| {
                let waiting = registry.machine(ID).and_then(|machine| machine.candidate);
                registry.approve(ID, waiting.unwrap_or(key(1)), now())
            },
            [None, Some(Active), Some(Active), Some(Active), None],
        ),
        (
            Act::Decline,
            |registry| registry.decline(ID, key(2), now()),
            [None, None, None, Some(Active), None],
        ),
        (
            Act::Revoke,
            |registry| registry.revoke(ID, now()),
            [None, Some(Revoked), Some(Revoked), Some(Revoked), Some(Revoked)],
        ),
        (
            Act::Renew,
            |registry| registry.renew(&leaf(ID, key(1)), key(4), until(), now()),
            [None, None, Some(Active), Some(Contested), None],
        ),
        (
            Act::Remove,
            |registry| registry.remove(ID),
            [None, Some(Absent), None, None, Some(Absent)],
        ),
    ];
    for (act, perform, row) in acts {
        for (phase, expected) in [Absent, Pending, Active, Contested, Revoked].into_iter().zip(row) {
            assert_eq!(next_phase(phase, act), expected, "{act:?} while {phase:?}");
            let mut registry = registry_in(phase);
            assert_eq!(phase_of(&registry), phase);
            let before = registry.machine(ID).cloned();
            match perform(&registry) {
                Ok(change) => {
                    // Nothing is true before it is committed.
                    assert_eq!(registry.machine(ID).cloned(), before);
                    registry.commit(change);
                    assert_eq!(Some(phase_of(&registry)), expected, "{act:?} while {phase:?}");
                }
                Err(error) => assert_eq!(expected, None, "{act:?} while {phase:?}: {error}"),
            }
            // What is kept can be read back.
            let rows: Vec<_> = registry.machines().cloned().collect();
            let again = Registry::from_machines(rows).unwrap();
            assert_eq!(again.machine(ID), registry.machine(ID));
            assert_eq!(again.owners, registry.owners);
        }
    }
}

#[test]
fn the_old_key_stays_in_force_until_the_operator_decides() {
    let mut registry = registry_in(Phase::Contested);
    let old = registry.admit(&leaf(ID, key(1)), now()).unwrap().session();
    assert_eq!(registry.must_end(old), None);
    assert_eq!(
        registry.admit(&leaf(ID, key(2)), now()).unwrap_err().code(),
        Code::ApprovalPending
    );
    // Approving the key that was looked at, not whichever waits by now.
    let swapped = register(&registry, ID, key(3)).unwrap();
    registry.commit(swapped);
    assert!(matches!(
        registry.approve(ID, key(2), now()),
        Err(RegistryError::NotWaiting { .. })
    ));
    let approved = registry.approve(ID, key(3), now()).unwrap();
    registry.commit(approved);
    assert!(registry.admit(&leaf(ID, key(3)), now()).is_ok());
    // Sessions of the old key end, and it is nobody's any more.
    assert_eq!(registry.must_end(old), Some(Denial::Replaced { id: ID }));
    assert!(matches!(
        registry.admit(&leaf(ID, key(1)), now()),
        Err(Denial::KeyUnknown { .. })
    ));
}

#[test]
fn a_pending_key_can_be_replaced_and_not_approved_by_mistake() {
    let mut registry = registry_in(Phase::Pending);
    let change = register(&registry, ID, key(9)).unwrap();
    registry.commit(change);
    assert!(matches!(
        registry.approve(ID, key(1), now()),
        Err(RegistryError::NotWaiting { .. })
    ));
    assert!(registry.approve(ID, key(9), now()).is_ok());
    assert!(registry.owner(key(1)).is_none());
}

#[test]
fn revocation_ends_sessions_and_outlasts_new_tries() {
    let mut registry = registry_in(Phase::Active);
    let session = registry.admit(&leaf(ID, key(1)), now()).unwrap().session();
    assert_eq!(registry.must_end(session), None);
    let change = registry.revoke(ID, now()).unwrap();
    registry.commit(change);
    assert_eq!(registry.must_end(session), Some(Denial::Revoked { id: ID }));
    let mut removed = registry.clone();
    removed.commit(registry.remove(ID).unwrap());
    assert_eq!(removed.must_end(session), Some(Denial::Removed { id: ID }));
    assert_eq!(
        registry.admit(&leaf(ID, key(1)), now()).unwrap_err().code(),
        Code::Revoked
    );
    for other in [key(1), key(5)] {
        assert_eq!(register(&registry, ID, other).unwrap_err().code(), Code::Revoked);
    }
    // Under another id the revoked key is known as well.
    let again = register(&registry, MachineId([2; 16]), key(1)).unwrap_err();
    assert_eq!(again.code(), Code::KeyInUse);
    assert_eq!(
        registry
            .renew(&leaf(ID, key(1)), key(6), until(), now())
            .unwrap_err()
            .code(),
        Code::Revoked
    );
}

#[test]
fn a_renewed_key_counts_beside_the_old_one_until_it_is_used() {
    let mut registry = registry_in(Phase::Active);
    let change = registry.renew(&leaf(ID, key(1)), key(4), until(), now()).unwrap();
    registry.commit(change);
    let session = registry.admit(&leaf(ID, key(1)), now()).unwrap().session();
    assert!(registry.admit(&leaf(ID, key(4)), now()).is_ok());
    // The machine lost the answer and asks again, with yet another key.
    let change = registry.renew(&leaf(ID, key(1)), key(5), until(), now()).unwrap();
    registry.commit(change);
    assert!(registry.admit(&leaf(ID, key(4)), now()).is_err());
    assert_eq!(registry.used(key(1), now()), None);
    let change = registry.used(key(5), now()).unwrap();
    registry.commit(change);
    assert!(registry.admit(&leaf(ID, key(1)), now()).is_err());
    assert!(registry.admit(&leaf(ID, key(5)), now()).is_ok());
    assert_eq!(registry.used(key(5), now()), None);
    // A session that began with the first key is not cut off by all this.
    assert_eq!(registry.must_end(session), None);
}

#[test]
fn renewal_after_expiry_is_for_known_keys_only_and_is_marked() {
    let ca = Ca::generate(now()).unwrap();
    let lapsed = machine(&ca, Role::Source, now() - days(200));
    let peer = Leaf::read(&lapsed.certificate).unwrap();
    assert!(matches!(peer.validity(now()), Validity::Expired { .. }));
    let mut registry = Registry::default();
    assert_eq!(
        registry.renew(&peer, key(4), until(), now()).unwrap_err().code(),
        Code::KeyUnknown
    );
    let change = register(&registry, peer.id, peer.key).unwrap();
    registry.commit(change);
    assert_eq!(
        registry.renew(&peer, key(4), until(), now()).unwrap_err().code(),
        Code::ApprovalPending
    );
    let change = registry.approve(peer.id, peer.key, now()).unwrap();
    registry.commit(change);
    assert_eq!(
        registry.admit(&peer, now()).unwrap_err().code(),
        Code::CertificateExpired
    );
    let change = registry.renew(&peer, key(4), until(), now()).unwrap();
    assert!(change.after_expiry);
    registry.commit(change);
    // A session that was open when the certificate lapsed goes on.
    let session = registry.admit(&leaf(peer.id, key(4)), now()).unwrap().session();
    assert_eq!(registry.must_end(session), None);
}

#[test]
fn a_candidate_cannot_renew_itself_into_force() {
    let registry = registry_in(Phase::Contested);
    let error = registry
        .renew(&leaf(ID, key(2)), key(7), until(), now())
        .unwrap_err();
    assert_eq!(error.code(), Code::ApprovalPending);
    // Nor can a machine take another's key, or its own current one, as the next.
    for taken in [key(1), key(2)] {
        let error = registry
            .renew(&leaf(ID, key(1)), taken, until(), now())
            .unwrap_err();
        assert_eq!(error.code(), Code::KeyInUse);
    }
}

#[test]
fn the_registry_is_bounded() {
    let id = |number: usize| MachineId(u128::try_from(number).unwrap().to_le_bytes());
    let unique = |number: usize| Fingerprint::of_spki(&number.to_le_bytes());
    let filled = |count: usize, approve: bool| {
        let mut registry = Registry::default();
        for number in 0..count {
            let change = register(&registry, id(number), unique(number)).unwrap();
            registry.commit(change);
            if approve {
                let change = registry.approve(id(number), unique(number), now()).unwrap();
                registry.commit(change);
            }
        }
        let one_more = register(&registry, id(count), unique(count));
        (registry, one_more)
    };
    let (_, one_more) = filled(PENDING_MAX - 1, false);
    assert!(one_more.is_ok());
    let (registry, one_more) = filled(PENDING_MAX, false);
    let full = RegistryError::Full {
        count: PENDING_MAX,
        pending: true,
    };
    assert_eq!(one_more.unwrap_err(), full);
    // Who is known already is not turned away.
    assert!(register(&registry, id(0), unique(0)).is_ok());
    let (registry, one_more) = filled(MACHINES_MAX, true);
    let full = RegistryError::Full {
        count: MACHINES_MAX,
        pending: false,
    };
    assert_eq!(one_more.unwrap_err(), full);
    let mut rows: Vec<_> = registry.machines().cloned().collect();
    rows.push(Machine {
        id: id(MACHINES_MAX),
        key: unique(MACHINES_MAX),
        ..rows[0].clone()
    });
    assert_eq!(Registry::from_machines(rows).unwrap_err(), full);
}

#[test]
fn who_may_open_which_stream() {
    let (source, relay, other) = (MachineId([1; 16]), MachineId([2; 16]), MachineId([3; 16]));
    let pair = Pair {
        source,
        relays: &[relay],
        generation: 7,
    };
    let peer = |id, role| {
        let mut registry = Registry::default();
        let change = registry
            .register(id, &name(), role, key(1), until(), now())
            .unwrap();
        registry.commit(change);
        let change = registry.approve(id, key(1), now()).unwrap();
        registry.commit(change);
        registry.machine(id).unwrap().clone()
    };
    for (machine, pair, generation, code) in [
        (peer(source, Role::Source), Some(&pair), 7, None),
        (peer(relay, Role::Relay), Some(&pair), 7, None),
        (peer(source, Role::Source), Some(&pair), 6, Some(Code::Fenced)),
        (peer(source, Role::Source), Some(&pair), 8, Some(Code::Fenced)),
        (
            peer(relay, Role::Relay),
            Some(&pair),
            u64::MAX,
            Some(Code::Fenced),
        ),
        (peer(source, Role::Source), None, 7, Some(Code::PairUnknown)),
        (peer(other, Role::Source), Some(&pair), 7, Some(Code::PairUnknown)),
        (peer(other, Role::Relay), Some(&pair), 7, Some(Code::PairUnknown)),
        // The source's id with the role of a relay carries nothing, and the other way round.
        (peer(source, Role::Relay), Some(&pair), 7, Some(Code::PairUnknown)),
        (peer(relay, Role::Source), Some(&pair), 7, Some(Code::PairUnknown)),
        (peer(source, Role::Target), Some(&pair), 7, Some(Code::WrongRole)),
    ] {
        let outcome = authorise(&machine, pair, generation)
            .err()
            .map(|denial| denial.code());
        assert_eq!(outcome, code, "{} {} at {generation}", machine.role, machine.id);
    }
    // A stranger's pair and none at all are told apart in our log only.
    let stranger = peer(other, Role::Source);
    let (theirs, none) = (
        authorise(&stranger, Some(&pair), 7),
        authorise(&stranger, None, 7),
    );
    assert_ne!(theirs, none);
}

#[test]
fn what_the_certificate_says_must_be_what_is_registered() {
    let registry = registry_in(Phase::Active);
    for peer in [
        Leaf {
            role: Role::Relay,
            ..leaf(ID, key(1))
        },
        leaf(MachineId([9; 16]), key(1)),
        leaf(ID, key(8)),
    ] {
        assert_eq!(registry.admit(&peer, now()).unwrap_err().code(), Code::KeyUnknown);
    }
    let early = registry.admit(&leaf(ID, key(1)), now() - days(3)).unwrap_err();
    assert_eq!(early.code(), Code::CertificateNotYetValid);
    assert!(early.to_string().contains("2026-02-27T10:00:00Z"), "{early}");
}

#[test]
fn rows_that_contradict_each_other_are_refused() {
    let row = registry_in(Phase::Contested).machine(ID).unwrap().clone();
    let second = Machine {
        id: MachineId([2; 16]),
        ..row.clone()
    };
    let server = Machine {
        role: Role::Server,
        ..row.clone()
    };
    let waiting = Machine {
        state: State::Pending,
        ..row.clone()
    };
    let doubled = Machine {
        candidate: Some(row.key),
        ..row.clone()
    };
    for rows in [
        vec![row.clone(), second],
        vec![row.clone(), row.clone()],
        vec![server],
        vec![waiting],
        vec![doubled],
    ] {
        assert!(matches!(
            Registry::from_machines(rows),
            Err(RegistryError::Contradiction { .. })
        ));
    }
    assert!(Registry::from_machines([row]).is_ok());
}

proptest! {
    /// Whatever is done in whatever order: a key has one owner, what is stored reads back, and a revoked machine's key
    /// is never admitted.
    #[test]
    fn random_acts_keep_the_invariants(acts in proptest::collection::vec((0_u8..7, 0_u8..3, 0_u8..5), 0..80)) {
        let mut registry = Registry::default();
        for (act, id, with) in acts {
            let (id, with) = (MachineId([id; 16]), key(with));
            let change = match act {
                0 | 1 => register(&registry, id, with),
                2 => registry.approve(id, with, now()),
                3 => registry.decline(id, with, now()),
                4 => registry.revoke(id, now()),
                5 => registry.renew(&leaf(id, with), key(with.0[0] + 1), until(), now()),
                _ => registry.remove(id),
            };
            if let Ok(change) = change {
                registry.commit(change);
            }
            if let Some(change) = registry.used(with, now()) {
                registry.commit(change);
            }
            let again = Registry::from_machines(registry.machines().cloned());
            prop_assert!(again.is_ok(), "{:?}", again);
            prop_assert_eq!(&again.unwrap().owners, &registry.owners);
            for machine in registry.machines() {
                let admitted = registry.admit(&leaf(machine.id, machine.key), now()).is_ok();
                prop_assert_eq!(admitted, machine.state == State::Active);
                prop_assert_eq!(registry.must_end(machine.session()).is_none(), admitted);
            }
        }
    }

    #[test]
    fn strangers_are_never_admitted(id in any::<[u8; 16]>(), with in any::<[u8; 32]>()) {
        let registry = registry_in(Phase::Active);
        let stranger = leaf(MachineId(id), Fingerprint(with));
        prop_assert!(registry.admit(&stranger, now()).is_err() || stranger.key == key(1));
    }
}
