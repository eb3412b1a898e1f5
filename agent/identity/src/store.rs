//! The appliance's identity as bytes: for its own file (mode 0600, the agent's user) and, encrypted, for backups.
//!
//! All integers are little-endian; times are seconds since 1970.
//!
//! ```text
//! offset size
//!      0    8  magic "MTID" 0d 0a 1a 0a
//!      8    2  version: 1
//!     10   16  id of the appliance
//!     26    8  until when machines may register; the smallest number: closed
//!     34    .  blocks (2 length, so many bytes), in this order:
//!                CA key (PKCS#8), CA certificate, key and certificate of the other CA (both empty when there is
//!                none), server key (PKCS#8), server certificate, OPAQUE keys (128), record of the passphrase (192;
//!                empty when there is none)
//!      .    2  count of machines, at most 1024
//!      .    .  machines:
//!                16 id, 1 role, 1 state, 1 flags (bit 0: next key, bit 1: waiting key), 32 key, 32 next key where
//!                flagged, 32 waiting key where flagged, 8 registered, 8 changed, 8 end of the newest certificate,
//!                4 count of approvals, name as a block
//!      .   32  SHA-256 of everything before
//! ```
//!
//! What it holds is secret: the
//! CA key makes machines.

use std::fmt;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::ca::{Ca, CaError, KEY_BYTES_MAX, LeafKey};
use crate::codec::{Malformed, Reader, put_block};
use crate::envelope::{DIGEST_SIZE, Envelope, Unfit};
use crate::id::{Fingerprint, MachineId, MachineName, NAME_BYTES_MAX, Role};
use crate::leaf::{CERTIFICATE_BYTES_MAX, Leaf, Renewal};
use crate::limits::Window;
use crate::opaque::{OpaqueError, RECORD_SIZE, SETUP_SIZE, Secrets};
use crate::passphrase::Passphrase;
use crate::registry::{MACHINES_MAX, Machine, Registry, RegistryError, State};
use crate::tls::{Credentials, TlsError, Trust};

const VERSION: u16 = 1;
const ENVELOPE: Envelope = Envelope {
    magic: b"MTID\r\n\x1a\n",
    version: VERSION,
};
const CLOSED: i64 = i64::MIN;
const FLAG_NEXT: u8 = 1;
const FLAG_CANDIDATE: u8 = 2;
/// Most bytes of one machine.
const MACHINE_BYTES_MAX: usize = 16 + 3 + 3 * 32 + 3 * 8 + 4 + 2 + NAME_BYTES_MAX;
/// Most bytes of all the rest.
const REST_BYTES_MAX: usize =
    34 + 8 * 2 + 3 * KEY_BYTES_MAX + 3 * CERTIFICATE_BYTES_MAX + SETUP_SIZE + RECORD_SIZE + 2 + DIGEST_SIZE;
/// Largest file that is looked at, in bytes.
pub const BYTES_MAX: usize = REST_BYTES_MAX + MACHINES_MAX * MACHINE_BYTES_MAX;

/// Why an identity cannot be made, written or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Not such a file.
    #[error("this is not an appliance's identity")]
    NotAnIdentity,
    /// Written by a newer release.
    #[error("the identity has format version {found}, this release reads {VERSION}")]
    Version {
        /// As found.
        found: u16,
    },
    /// Bytes were changed or are missing.
    #[error("the identity is damaged: its checksum does not match")]
    Damaged,
    /// More than is looked at.
    #[error("the identity has {found} bytes, at most {BYTES_MAX} are looked at")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// A field is wrong though the checksum matches.
    #[error("the identity cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// A key or certificate is wrong.
    #[error("the identity cannot be used: {0}")]
    Ca(#[from] CaError),
    /// OPAQUE's part is wrong.
    #[error("the identity cannot be used: {0}")]
    Opaque(#[from] OpaqueError),
    /// The machines contradict each other.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Keys and certificates do not make TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl StoreError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Version { .. } => "boot the release that wrote it, or a newer one",
            _ => {
                "import a backup with \"mt-agent identity import\"; without one every machine registers again"
            }
        }
    }
}

/// What makes an appliance this appliance.
pub struct Identity {
    /// Its id, in its own certificate.
    pub id: MachineId,
    /// Its CA: signs, and is trusted.
    pub ca: Ca,
    /// The CA that is trusted too while one takes the place of the other: the next one before
    /// [`Identity::promote_ca`], the former one after it.
    pub other_ca: Option<Ca>,
    /// The key of its ports.
    pub key: LeafKey,
    /// The certificate of its ports.
    pub certificate: CertificateDer<'static>,
    /// OPAQUE's keys and the record of the passphrase.
    pub secrets: Secrets,
    /// When machines may register.
    pub window: Window,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("ca", &self.ca)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// A new appliance, and the passphrase to show once. Registration is open for its first day.
    ///
    /// # Errors
    /// When the system has no randomness or memory to give, or its clock is absurd.
    pub fn create(now: Timestamp) -> Result<(Self, Passphrase), StoreError> {
        let passphrase = Passphrase::generate();
        let id = MachineId::random();
        let ca = Ca::generate(now)?;
        let key = LeafKey::generate()?;
        let certificate = ca.sign_own(&key, id, now)?.certificate;
        let secrets = Secrets::new(&passphrase)?;
        let window = Window::open(now, None);
        let identity = Self {
            id,
            ca,
            other_ca: None,
            key,
            certificate,
            secrets,
            window,
        };
        Ok((identity, passphrase))
    }

    /// What its ports show.
    ///
    /// # Errors
    /// When the TLS library refuses.
    pub fn credentials(&self) -> Result<Credentials, StoreError> {
        let ca = self.ca.certificate().clone();
        Ok(Credentials::new(self.certificate.clone(), ca, &self.key)?)
    }

    /// Whom its ports trust.
    ///
    /// # Errors
    /// When the TLS library refuses.
    pub fn trust(&self) -> Result<Trust, StoreError> {
        Ok(Trust::new(&self.ca_certificates())?)
    }

    /// The CAs that machines are to trust, the one in force first.
    pub fn ca_certificates(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.ca)
            .chain(&self.other_ca)
            .map(|ca| ca.certificate().clone())
            .collect()
    }

    /// Begins to replace the CA: makes the next one, which every machine learns when it registers or renews. After 90
    /// days all of them have, and [`Self::promote_ca`] can follow; 90 days later [`Self::retire_ca`]. Already begun,
    /// nothing happens.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn announce_ca(&mut self, now: Timestamp) -> Result<(), StoreError> {
        if self.other_ca.is_none() {
            self.other_ca = Some(Ca::generate(now)?);
        }
        Ok(())
    }

    /// Lets the announced CA sign from now on, and shows a certificate of it; the former one is trusted still. Without
    /// an announced one nothing happens.
    ///
    /// # Errors
    /// When signing fails; nothing is changed then.
    pub fn promote_ca(&mut self, now: Timestamp) -> Result<(), StoreError> {
        if let Some(next) = &self.other_ca {
            self.certificate = next.sign_own(&self.key, self.id, now)?.certificate;
            if let Some(next) = self.other_ca.take() {
                self.other_ca = Some(std::mem::replace(&mut self.ca, next));
            }
        }
        Ok(())
    }

    /// Stops trusting the CA that does not sign.
    pub fn retire_ca(&mut self) {
        self.other_ca = None;
    }

    /// Renews the certificate of its own ports when that is due, with a new key: `true` when it is to be stored and
    /// the ports are to be set up anew. Asked now and then; a clock that was corrected makes it due too.
    ///
    /// # Errors
    /// When signing fails; the old one stays.
    pub fn renew_own(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        let leaf = Leaf::read(&self.certificate).map_err(CaError::from)?;
        if let Renewal::At(_) = leaf.renewal(now) {
            return Ok(false);
        }
        let key = LeafKey::generate()?;
        self.certificate = self.ca.sign_own(&key, self.id, now)?.certificate;
        self.key = key;
        Ok(true)
    }

    /// The bytes. The agent's own file holds no machines, since those are in its state; a backup holds both.
    pub fn to_bytes<'a>(&self, machines: impl IntoIterator<Item = &'a Machine>) -> Zeroizing<Vec<u8>> {
        // All at once: a vector that grows leaves copies of secrets behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX));
        ENVELOPE.begin(&mut bytes);
        bytes.extend_from_slice(&self.id.0);
        let until = self.window.end().map_or(CLOSED, Timestamp::as_second);
        bytes.extend_from_slice(&until.to_le_bytes());
        put_block(&mut bytes, &self.ca.key().to_der());
        put_block(&mut bytes, self.ca.certificate());
        match &self.other_ca {
            Some(other) => {
                put_block(&mut bytes, &other.key().to_der());
                put_block(&mut bytes, other.certificate());
            }
            None => bytes.extend_from_slice(&[0; 4]),
        }
        put_block(&mut bytes, &self.key.to_der());
        put_block(&mut bytes, &self.certificate);
        let (setup, record) = self.secrets.to_parts();
        put_block(&mut bytes, &setup);
        put_block(
            &mut bytes,
            record.as_ref().map_or(&[], |record| record.as_slice()),
        );
        let count_at = bytes.len();
        bytes.extend_from_slice(&[0, 0]);
        let mut count = 0_u16;
        for machine in machines.into_iter().take(MACHINES_MAX) {
            put_machine(&mut bytes, machine);
            count += 1;
        }
        bytes[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
        Envelope::end(&mut bytes);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`StoreError`]. Nothing is made up for what cannot be read.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, Registry), StoreError> {
        if bytes.len() > BYTES_MAX {
            return Err(StoreError::TooLarge { found: bytes.len() });
        }
        let content = ENVELOPE.open(bytes).map_err(|unfit| match unfit {
            Unfit::OtherKind => StoreError::NotAnIdentity,
            Unfit::Version(found) => StoreError::Version { found },
            Unfit::Damaged => StoreError::Damaged,
        })?;
        let mut fields = Reader::new(content);
        let id = MachineId(fields.array("appliance id")?);
        let until = match fields.i64("registration window")? {
            CLOSED => None,
            until => Some(time(until, "registration window")?),
        };
        let ca_key = fields.block(KEY_BYTES_MAX, "CA key")?;
        let ca = take_ca(ca_key, &mut fields)?;
        let other_ca = match fields.block(KEY_BYTES_MAX, "key of the other CA")? {
            [] => {
                fields.block(0, "certificate of the other CA")?;
                None
            }
            key => Some(take_ca(key, &mut fields)?),
        };
        let key = LeafKey::from_der(fields.block(KEY_BYTES_MAX, "server key")?)?;
        let certificate = CertificateDer::from(
            fields
                .block(CERTIFICATE_BYTES_MAX, "server certificate")?
                .to_vec(),
        );
        let setup = fields.block(SETUP_SIZE, "OPAQUE keys")?;
        let record = fields.block(RECORD_SIZE, "passphrase record")?;
        let secrets = Secrets::from_parts(setup, (!record.is_empty()).then_some(record))?;
        let count = usize::from(fields.u16("count of machines")?);
        if count > MACHINES_MAX {
            return Err(Malformed::TooLarge {
                field: "count of machines",
                found: count,
                max: MACHINES_MAX,
            }
            .into());
        }
        let machines = (0..count)
            .map(|_| take_machine(&mut fields))
            .collect::<Result<Vec<_>, _>>()?;
        fields.end()?;
        let identity = Self {
            id,
            ca,
            other_ca,
            key,
            certificate,
            secrets,
            window: Window::until(until),
        };
        // What does not fit together is found now and not when the first machine connects.
        identity.credentials()?;
        identity.trust()?;
        Ok((identity, Registry::from_machines(machines)?))
    }
}

fn take_ca(key: &[u8], fields: &mut Reader<'_>) -> Result<Ca, StoreError> {
    let certificate = fields.block(CERTIFICATE_BYTES_MAX, "CA certificate")?.to_vec();
    Ok(Ca::from_parts(LeafKey::from_der(key)?, certificate.into())?)
}

fn put_machine(bytes: &mut Vec<u8>, machine: &Machine) {
    bytes.extend_from_slice(&machine.id.0);
    let mut flags = 0;
    if machine.next.is_some() {
        flags |= FLAG_NEXT;
    }
    if machine.candidate.is_some() {
        flags |= FLAG_CANDIDATE;
    }
    bytes.extend_from_slice(&[machine.role.number(), machine.state.number(), flags]);
    for key in [Some(machine.key), machine.next, machine.candidate]
        .into_iter()
        .flatten()
    {
        bytes.extend_from_slice(&key.0);
    }
    for at in [machine.registered, machine.changed, machine.not_after] {
        bytes.extend_from_slice(&at.as_second().to_le_bytes());
    }
    bytes.extend_from_slice(&machine.approvals.to_le_bytes());
    put_block(bytes, machine.name.as_str().as_bytes());
}

fn take_machine(fields: &mut Reader<'_>) -> Result<Machine, Malformed> {
    let meaningless = |field| Malformed::Meaningless { field };
    let id = MachineId(fields.array("machine id")?);
    let role = Role::from_number(fields.u8("role")?).ok_or(meaningless("role"))?;
    let state = State::from_number(fields.u8("state")?).ok_or(meaningless("state"))?;
    let flags = fields.u8("flags")?;
    if flags & !(FLAG_NEXT | FLAG_CANDIDATE) != 0 {
        return Err(meaningless("flags"));
    }
    let mut key = |wanted: bool| wanted.then(|| fields.array("key").map(Fingerprint)).transpose();
    let current = key(true)?.ok_or(meaningless("key"))?;
    let next = key(flags & FLAG_NEXT != 0)?;
    let candidate = key(flags & FLAG_CANDIDATE != 0)?;
    let registered = time(fields.i64("registered")?, "registered")?;
    let changed = time(fields.i64("changed")?, "changed")?;
    let not_after = time(fields.i64("end of the certificate")?, "end of the certificate")?;
    let approvals = fields.u32("approvals")?;
    let name = std::str::from_utf8(fields.block(NAME_BYTES_MAX, "machine name")?)
        .ok()
        .and_then(|name| MachineName::new(name).ok())
        .ok_or(meaningless("machine name"))?;
    Ok(Machine {
        id,
        name,
        role,
        state,
        key: current,
        next,
        candidate,
        registered,
        changed,
        not_after,
        approvals,
    })
}

fn time(seconds: i64, field: &'static str) -> Result<Timestamp, Malformed> {
    Timestamp::from_second(seconds).map_err(|_| Malformed::Meaningless { field })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::resealed;
    use crate::testing::{days, name, now};
    use proptest::prelude::{any, prop_assert, proptest};
    use std::sync::OnceLock;

    fn machines() -> Vec<Machine> {
        let machine = |number: u8, state, next: Option<u8>, candidate: Option<u8>| Machine {
            id: MachineId([number; 16]),
            name: name(),
            role: if number.is_multiple_of(2) {
                Role::Source
            } else {
                Role::Relay
            },
            state,
            key: Fingerprint([number; 32]),
            next: next.map(|key| Fingerprint([key; 32])),
            candidate: candidate.map(|key| Fingerprint([key; 32])),
            registered: now(),
            changed: now() + days(1),
            not_after: now() + days(90),
            approvals: u32::from(number),
        };
        vec![
            machine(1, State::Pending, None, None),
            machine(2, State::Active, Some(20), Some(21)),
            machine(3, State::Active, None, Some(30)),
            machine(4, State::Revoked, None, None),
        ]
    }

    fn bytes() -> &'static [u8] {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        BYTES.get_or_init(|| {
            let (identity, _) = Identity::create(now()).unwrap();
            identity.to_bytes(&machines()).to_vec()
        })
    }

    #[test]
    fn an_identity_reads_back_as_it_was() {
        let (identity, registry) = Identity::from_bytes(bytes()).unwrap();
        assert_eq!(*identity.to_bytes(&machines()), bytes());
        assert_eq!(identity.window, Window::open(now(), None));
        for machine in machines() {
            assert_eq!(registry.machine(machine.id), Some(&machine));
        }
        let shown = format!("{identity:?}");
        assert!(shown.contains("sha256:") && shown.len() < 300, "{shown}");
    }

    #[test]
    fn without_passphrase_and_closed_reads_back_too() {
        let (mut identity, _) = Identity::from_bytes(bytes()).unwrap();
        identity.secrets.forget();
        identity.window = Window::closed();
        let bytes = identity.to_bytes([]);
        let (again, registry) = Identity::from_bytes(&bytes).unwrap();
        assert_eq!(again.window, Window::closed());
        assert!(again.secrets.to_parts().1.is_none());
        assert_eq!(registry.machines().count(), 0);
    }

    #[test]
    fn its_own_certificate_is_renewed_in_time() {
        let (mut identity, _) = Identity::from_bytes(bytes()).unwrap();
        let before = identity.key.fingerprint();
        assert!(!identity.renew_own(now() + days(59)).unwrap());
        assert_eq!(identity.key.fingerprint(), before);
        for late in [61, 500] {
            assert!(identity.renew_own(now() + days(late)).unwrap());
            assert_ne!(identity.key.fingerprint(), before);
            let leaf = Leaf::read(&identity.certificate).unwrap();
            assert_eq!(
                (leaf.id, leaf.role, leaf.not_after),
                (identity.id, Role::Server, now() + days(late + 90))
            );
            identity.credentials().unwrap();
        }
        // A clock that was years ahead at first boot and was set right.
        assert!(identity.renew_own(now()).unwrap());
    }

    #[test]
    fn a_ca_is_replaced_without_a_machine_being_locked_out() {
        use crate::leaf::{Usage, verify_chain};
        let trusted_by = |cas: &[CertificateDer<'static>], certificate: &CertificateDer<'static>| {
            let anchors: Vec<_> = cas
                .iter()
                .map(|ca| webpki::anchor_from_trusted_cert(ca).unwrap())
                .collect();
            verify_chain(certificate, &anchors, Usage::Server).is_ok()
        };
        let (mut identity, _) = Identity::from_bytes(bytes()).unwrap();
        let early = identity.ca_certificates();
        identity.announce_ca(now()).unwrap();
        let announced = identity.ca_certificates();
        identity.announce_ca(now()).unwrap();
        assert_eq!(identity.ca_certificates(), announced);
        assert_eq!((announced.len(), &announced[0]), (2, &early[0]));
        assert!(trusted_by(&early, &identity.certificate));
        identity.promote_ca(now() + days(90)).unwrap();
        // Who has heard of it trusts the new certificate; one that has not does not.
        assert!(trusted_by(&announced, &identity.certificate) && !trusted_by(&early, &identity.certificate));
        let (mut again, _) = Identity::from_bytes(&identity.to_bytes([])).unwrap();
        assert_eq!(
            again.ca_certificates(),
            [announced[1].clone(), announced[0].clone()]
        );
        again.credentials().unwrap();
        again.retire_ca();
        assert_eq!(again.ca_certificates(), [announced[1].clone()]);
        let (again, _) = Identity::from_bytes(&again.to_bytes([])).unwrap();
        assert!(again.other_ca.is_none());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_refused() {
        for at in 0..bytes().len() {
            assert!(Identity::from_bytes(&bytes()[..at]).is_err(), "cut at {at}");
            let mut changed = bytes().to_vec();
            changed[at] ^= 0x10;
            let error = Identity::from_bytes(&changed).unwrap_err();
            let expected = match at {
                0..8 => StoreError::NotAnIdentity,
                8..10 => StoreError::Version {
                    found: 1 ^ if at == 8 { 0x10 } else { 0x1000 },
                },
                _ => StoreError::Damaged,
            };
            assert_eq!(error, expected, "flipped at {at}");
        }
        let longer = [bytes(), &[0]].concat();
        assert_eq!(Identity::from_bytes(&longer).unwrap_err(), StoreError::Damaged);
        let huge = vec![0; BYTES_MAX + 1];
        assert!(matches!(
            Identity::from_bytes(&huge),
            Err(StoreError::TooLarge { .. })
        ));
    }

    #[test]
    fn the_largest_registry_fits() {
        let (identity, _) = Identity::from_bytes(bytes()).unwrap();
        let many: Vec<_> = (0..MACHINES_MAX)
            .map(|number| Machine {
                id: MachineId(u128::try_from(number).unwrap().to_le_bytes()),
                name: MachineName::new(&"x".repeat(NAME_BYTES_MAX)).unwrap(),
                key: Fingerprint::of_spki(&[&number.to_le_bytes()[..], b"0"].concat()),
                next: Some(Fingerprint::of_spki(&[&number.to_le_bytes()[..], b"1"].concat())),
                candidate: Some(Fingerprint::of_spki(&[&number.to_le_bytes()[..], b"2"].concat())),
                ..machines()[1].clone()
            })
            .collect();
        let bytes = identity.to_bytes(&many);
        assert!(bytes.len() <= BYTES_MAX);
        assert_eq!(
            Identity::from_bytes(&bytes).unwrap().1.machines().count(),
            MACHINES_MAX
        );
    }

    proptest! {
        /// Whoever can write the file can write the digest: still nothing may panic.
        #[test]
        fn changed_content_under_a_right_digest_never_panics(at in any::<usize>(), with in any::<u8>(), cut in any::<bool>()) {
            let mut changed = bytes().to_vec();
            let at = 10 + at % (changed.len() - 10 - DIGEST_SIZE);
            changed[at] = with;
            if cut {
                changed.drain(at..changed.len() - DIGEST_SIZE);
            }
            let _ = Identity::from_bytes(&resealed(changed));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Identity::from_bytes(&bytes).is_err());
        }
    }
}
