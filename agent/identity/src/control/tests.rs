//! The control port with everything around it, but TLS: limits, window, registry, renewal.

use std::net::IpAddr;

use super::*;
use crate::ca::{Ca, LeafKey};
use crate::id::{MachineId, Role};
use crate::limits::Window;
use crate::passphrase::Passphrase;
use crate::registration::{Client, ClientParams, ClientStep, Registered};
use crate::registry::State;
use crate::store::Identity;
use crate::testing::{channel, days, now, params, secrets};

struct Lab {
    identity: Identity,
    registry: Registry,
    limiter: RateLimiter,
    clock: Now,
}

impl Lab {
    fn new() -> Self {
        let ca = Ca::generate(now()).unwrap();
        let (id, key) = (MachineId([0xaa; 16]), LeafKey::generate().unwrap());
        let certificate = ca.sign_own(&key, id, now()).unwrap().certificate;
        let identity = Identity {
            id,
            ca,
            other_ca: None,
            key,
            certificate,
            secrets: secrets().1.clone(),
            window: Window::open(now(), None),
        };
        Self {
            identity,
            registry: Registry::default(),
            limiter: RateLimiter::default(),
            clock: Now {
                wall: now(),
                monotonic: Duration::from_secs(1000),
            },
        }
    }

    fn give(&mut self, control: &mut Control, bytes: &[u8]) -> Step {
        let mut appliance = Appliance {
            identity: &self.identity,
            registry: &self.registry,
            limiter: &mut self.limiter,
        };
        control.receive(bytes, &mut appliance, self.clock)
    }

    /// Registers; what the machine got, or the code that it was refused with and for how long to wait.
    fn register(&mut self, who: ClientParams<'_>) -> Result<Registered, (Code, u16)> {
        let (mut client, mut bytes) = Client::start(who).unwrap();
        let mut control = Control::new(ControlPeer::Register(channel(1)), address());
        loop {
            let answer = match self.give(&mut control, &bytes) {
                Step::More => panic!("whole messages are sent"),
                Step::Send(answer) => answer,
                Step::Grant { change, bytes } => {
                    self.registry.commit(*change);
                    bytes
                }
                Step::Refuse { bytes, .. } => bytes.unwrap(),
            };
            match client.receive(&answer) {
                Ok(ClientStep::Send(next)) => bytes = next,
                Ok(ClientStep::Done(registered)) => return Ok(*registered),
                Ok(ClientStep::More) => panic!("whole messages are sent"),
                Err(Fault::Refused(refusal)) => return Err((refusal.code, refusal.wait_s)),
                Err(fault) => return Err((fault.code().unwrap(), 0)),
            }
        }
    }

    fn renew(&mut self, peer: &Leaf, new_key: &LeafKey) -> Result<Registered, Code> {
        let mut control = Control::new(ControlPeer::Renew(peer.clone()), address());
        let answer = match self.give(&mut control, &renewal::request(new_key).unwrap()) {
            Step::Grant { change, bytes } => {
                self.registry.commit(*change);
                bytes
            }
            Step::Refuse { code, .. } => return Err(code),
            step => panic!("{step:?}"),
        };
        Ok(
            renewal::receive_answer(&mut Decoder::default(), &answer, peer, new_key)
                .unwrap()
                .unwrap(),
        )
    }
}

fn address() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

fn wrong(key: &LeafKey) -> ClientParams<'_> {
    ClientParams {
        passphrase: Passphrase::generate(),
        ..params(key, channel(1))
    }
}

#[test]
fn register_approve_renew_revoke() {
    let mut lab = Lab::new();
    let key = LeafKey::generate().unwrap();
    let registered = lab.register(params(&key, channel(1))).unwrap();
    assert!(!registered.approved);
    let id = registered.leaf.id;
    assert_eq!(
        lab.registry.admit(&registered.leaf, now()).unwrap_err().code(),
        Code::ApprovalPending
    );
    let change = lab.registry.approve(id, key.fingerprint(), now()).unwrap();
    lab.registry.commit(change);
    assert_eq!(
        lab.registry.admit(&registered.leaf, now()).unwrap().role,
        Role::Source
    );
    // Registered again with its key: approved it stays.
    assert!(lab.register(params(&key, channel(1))).unwrap().approved);

    lab.clock.wall = now() + days(400);
    let next = LeafKey::generate().unwrap();
    let renewed = lab.renew(&registered.leaf, &next).unwrap();
    assert!(lab.registry.admit(&renewed.leaf, lab.clock.wall).is_ok());

    let change = lab.registry.revoke(id, now()).unwrap();
    lab.registry.commit(change);
    assert_eq!(
        lab.renew(&renewed.leaf, &LeafKey::generate().unwrap()),
        Err(Code::Revoked)
    );
    assert_eq!(lab.renew(&registered.leaf, &next), Err(Code::Revoked));
    // Its registration is over by now, whatever it knows.
    assert_eq!(
        lab.register(params(&key, channel(1))),
        Err((Code::RegistrationClosed, 0))
    );
}

#[test]
fn the_same_machine_with_another_key_waits_and_the_old_key_stays() {
    let mut lab = Lab::new();
    let (key, other) = (LeafKey::generate().unwrap(), LeafKey::generate().unwrap());
    let first = lab.register(params(&key, channel(1))).unwrap();
    let change = lab
        .registry
        .approve(first.leaf.id, key.fingerprint(), now())
        .unwrap();
    lab.registry.commit(change);
    let second = lab.register(params(&other, channel(1))).unwrap();
    assert!(!second.approved);
    assert!(lab.registry.admit(&first.leaf, now()).is_ok());
    assert!(lab.registry.admit(&second.leaf, now()).is_err());
    assert_eq!(
        lab.renew(&second.leaf, &LeafKey::generate().unwrap()),
        Err(Code::ApprovalPending)
    );
}

#[test]
fn refusals_behind_the_passphrase_name_their_reason() {
    let mut lab = Lab::new();
    let key = LeafKey::generate().unwrap();
    lab.register(params(&key, channel(1))).unwrap();
    let as_relay = ClientParams {
        role: Role::Relay,
        ..params(&key, channel(1))
    };
    assert_eq!(lab.register(as_relay), Err((Code::RoleConflict, 0)));
    let cloned = ClientParams {
        id: MachineId([8; 16]),
        ..params(&key, channel(1))
    };
    assert_eq!(lab.register(cloned), Err((Code::KeyInUse, 0)));
    assert!(
        lab.registry
            .machines()
            .all(|machine| machine.state == State::Pending)
    );
}

#[test]
fn wrong_tries_wait_and_the_right_one_gets_in_within_a_minute() {
    let mut lab = Lab::new();
    let key = LeafKey::generate().unwrap();
    assert_eq!(lab.register(wrong(&key)), Err((Code::NotAuthenticated, 0)));
    // Too early even with the right one, and it is said for how long.
    assert_eq!(
        lab.register(params(&key, channel(1))),
        Err((Code::TooManyTries, 1))
    );
    // A thousand wrong tries: what they say is not looked at before it is time, so what they begin with will do.
    for _ in 0..1000 {
        let (_, start) = Client::start(wrong(&key)).unwrap();
        let mut control = Control::new(ControlPeer::Register(channel(1)), address());
        match lab.give(&mut control, &start) {
            Step::Send(_) => {}
            Step::Refuse { code, .. } => assert_eq!(code, Code::TooManyTries),
            step => panic!("{step:?}"),
        }
        lab.clock.monotonic += Duration::from_millis(700);
    }
    let mut waited = Duration::ZERO;
    while let Err((code, wait_s)) = lab.register(params(&key, channel(1))) {
        assert_eq!(code, Code::TooManyTries);
        let wait = Duration::from_secs(u64::from(wait_s));
        (waited, lab.clock.monotonic) = (waited + wait, lab.clock.monotonic + wait);
    }
    assert!(waited <= Duration::from_secs(60), "{waited:?}");
}

#[test]
fn a_closed_window_says_so_before_anything_else() {
    let mut lab = Lab::new();
    lab.identity.window = Window::closed();
    let key = LeafKey::generate().unwrap();
    assert_eq!(
        lab.register(params(&key, channel(1))),
        Err((Code::RegistrationClosed, 0))
    );
    assert_eq!(lab.register(wrong(&key)), Err((Code::RegistrationClosed, 0)));
    assert_eq!(lab.limiter.remembered(), 0);
}

#[test]
fn nothing_follows_an_end() {
    let mut lab = Lab::new();
    let peer = Leaf::read(&lab.identity.certificate).unwrap();
    for peer in [ControlPeer::Register(channel(1)), ControlPeer::Renew(peer)] {
        let mut control = Control::new(peer, address());
        let garbage = lab.give(&mut control, b"\x16\x03\x01 not a message");
        assert!(matches!(
            garbage,
            Step::Refuse {
                code: Code::ProtocolViolation,
                ..
            }
        ));
        let (_, start) = Client::start(params(&LeafKey::generate().unwrap(), channel(1))).unwrap();
        assert!(matches!(lab.give(&mut control, &start), Step::Refuse { .. }));
    }
    assert_eq!(lab.registry.machines().count(), 0);
}
