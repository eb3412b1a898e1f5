//! Good bytes with a few of them changed, into every parser of outside bytes: nothing may panic. Finds in seconds what
//! random bytes never reach; the fuzzer of the same entries goes further.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::OnceLock;

use mt_identity::registration::message::{Answer, Message, Refusal, VERSION};
use mt_identity::store::Identity;
use mt_identity::{Ca, Code, LeafKey, MachineId, Role, fuzz};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let now = "2026-03-02T10:00:00Z".parse().unwrap();
        let ca = Ca::generate(now).unwrap();
        let key = LeafKey::generate().unwrap();
        let leaf = ca.sign_own(&key, MachineId([1; 16]), now).unwrap().certificate;
        let request = key.request().unwrap();
        let answer = Answer {
            approved: true,
            cas: vec![ca.certificate().clone(); 2],
            certificate: leaf.clone(),
        };
        let identity = include_bytes!("fixtures/identity-v1.bin").to_vec();
        assert!(Identity::from_bytes(&identity).is_ok());
        let mut seeds = vec![
            ca.certificate().to_vec(),
            leaf.to_vec(),
            request.clone(),
            key.to_der().to_vec(),
            identity,
            include_bytes!("fixtures/backup-v1.bin").to_vec(),
            include_bytes!("fixtures/member-v1.bin").to_vec(),
            ca.fingerprint().to_string().into_bytes(),
            b"7M4QX-0JD2K-9WVTB-H3RFC-8NZE5Y".to_vec(),
        ];
        let code = Code::TooManyTries;
        for message in [
            Message::Start {
                version: VERSION,
                role: Role::Source.number(),
                ke1: Box::new([1; 96]),
            },
            Message::Challenge {
                ke2: Box::new([1; 320]),
            },
            Message::Finish {
                ke3: Box::new([1; 64]),
                sealed: vec![1; 300],
            },
            Message::Refused(Refusal { code, wait_s: 9 }),
            Message::Renew {
                version: VERSION,
                request,
            },
            Message::Renewed(answer),
        ] {
            // The first byte chooses the size of the pieces.
            seeds.push([&[200][..], &message.encode()].concat());
        }
        seeds
    })
}

#[derive(Debug, Clone)]
enum Edit {
    Set(usize, u8),
    Cut(usize),
    Repeat(usize, usize),
    Swap(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let interesting = prop_oneof![
        Just(0_u8),
        Just(1),
        Just(0x7f),
        Just(0x80),
        Just(0x84),
        Just(0xff),
        any::<u8>()
    ];
    prop_oneof![
        8 => (any::<usize>(), interesting).prop_map(|(at, with)| Edit::Set(at, with)),
        1 => any::<usize>().prop_map(Edit::Cut),
        1 => (any::<usize>(), 1_usize..64).prop_map(|(at, count)| Edit::Repeat(at, count)),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Edit::Swap(one, other)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let len = bytes.len().max(1);
    match *edit {
        Edit::Set(at, with) => {
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte = with;
            }
        }
        Edit::Cut(at) => bytes.truncate(at % len),
        Edit::Repeat(at, count) => {
            let from = at % len;
            let again = bytes.iter().skip(from).take(count).copied().collect::<Vec<_>>();
            bytes.splice(from.min(bytes.len())..from.min(bytes.len()), again);
        }
        Edit::Swap(one, other) if !bytes.is_empty() => bytes.swap(one % len, other % len),
        Edit::Swap(..) => {}
    }
}

proptest! {
    // PROPTEST_CASES asks for more.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(4000)))]

    #[test]
    fn changed_bytes_never_panic(seed in any::<usize>(), edits in proptest::collection::vec(edit(), 0..6)) {
        let seeds = seeds();
        let mut bytes = seeds[seed % seeds.len()].clone();
        for edit in &edits {
            apply(&mut bytes, edit);
        }
        fuzz::messages(&bytes);
        fuzz::sealed_parts(&bytes);
        // Behind the size of the pieces and the header of a message is the form of what is sealed.
        fuzz::sealed_parts(bytes.get(9..).unwrap_or_default());
        fuzz::certificates(&bytes);
        fuzz::texts(&bytes);
        fuzz::stored(&bytes);
    }
}
