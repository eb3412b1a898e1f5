//! Files that earlier builds wrote must open for ever: an appliance that is restored after years, and the record that
//! the passphrase on somebody's paper belongs to.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use mt_identity::leaf::key_of;
use mt_identity::member::Member;
use mt_identity::opaque::{Channel, Secrets};
use mt_identity::registration::{Client, ClientParams, ClientStep, Server, ServerStep};
use mt_identity::registry::{Registry, State};
use mt_identity::store::Identity;
use mt_identity::{Fingerprint, LeafKey, MachineId, MachineName, Passphrase, Role, backup};

const IDENTITY_V1: &[u8] = include_bytes!("fixtures/identity-v1.bin");
const BACKUP_V1: &[u8] = include_bytes!("fixtures/backup-v1.bin");
const MEMBER_V1: &[u8] = include_bytes!("fixtures/member-v1.bin");
const CA_V1: &str = "sha256:4124d6f635f54d87d2a27ca35d4830f4a2da3b717c38d1a74f665562fe2b395b";

fn passphrase() -> Passphrase {
    Passphrase::parse("01234-56789-abcde-fghjk-mnpqrs").unwrap()
}

fn check(identity: &Identity, registry: &Registry) {
    assert_eq!(identity.ca.fingerprint().to_string(), CA_V1);
    let machine = registry.machine(MachineId([1; 16])).unwrap();
    assert_eq!(
        (
            machine.role,
            machine.state,
            machine.key,
            machine.candidate,
            machine.approvals
        ),
        (
            Role::Source,
            State::Active,
            Fingerprint([2; 32]),
            Some(Fingerprint([3; 32])),
            1
        )
    );
}

#[test]
fn version_1_of_identity_and_backup_open() {
    let (identity, registry) = Identity::from_bytes(IDENTITY_V1).unwrap();
    check(&identity, &registry);
    // What is written today is what was written then.
    assert_eq!(*identity.to_bytes(registry.machines()), IDENTITY_V1);
    let (identity, registry) = backup::open(BACKUP_V1, &passphrase()).unwrap();
    check(&identity, &registry);
}

#[test]
fn version_1_of_a_machines_identity_opens() {
    let member = Member::from_bytes(MEMBER_V1).unwrap();
    assert_eq!(*member.to_bytes(), MEMBER_V1);
    let standing = member.standing.unwrap();
    assert_eq!((standing.leaf.id, standing.leaf.role), (member.id, Role::Source));
    assert_eq!(key_of(&standing.cas[0]).unwrap().to_string(), CA_V1);
}

/// A record made once goes with the passphrase ever after: suite, Argon2id's costs and context must stay.
#[test]
fn the_passphrase_of_version_1_registers() {
    let secrets: Secrets = Identity::from_bytes(IDENTITY_V1).unwrap().0.secrets;
    let channel = Channel {
        exporter: [1; 32],
        server_key: Fingerprint([2; 32]),
    };
    let key = LeafKey::generate().unwrap();
    let (mut client, start) = Client::start(ClientParams {
        passphrase: passphrase(),
        channel,
        role: Role::Source,
        id: MachineId([4; 16]),
        name: MachineName::new("db01").unwrap(),
        key: &key,
        ca: None,
    })
    .unwrap();
    let mut server = Server::new(channel);
    let ServerStep::Send(challenge) = server.receive(&start, &secrets).unwrap() else {
        panic!("a challenge was due");
    };
    let ClientStep::Send(finish) = client.receive(&challenge).unwrap() else {
        panic!("the proof was due");
    };
    let ServerStep::Decide(applicant) = server.receive(&finish, &secrets).unwrap() else {
        panic!("a decision was due");
    };
    assert_eq!(applicant.request.key(), key.fingerprint());
}
