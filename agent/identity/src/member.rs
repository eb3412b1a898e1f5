//! A registered machine's own side: its id, key and certificates, as one file (mode 0600, the agent's user).
//!
//! Id and key are made and stored before the first registration, so that a machine whose answer was lost asks again as
//! the same one. Key and certificate are in one file, so that a renewal replaces both or neither.
//!
//! All integers are little-endian.
//!
//! ```text
//! offset size
//!      0    8  magic "MTMB" 0d 0a 1a 0a
//!      8    2  version: 1
//!     10   16  machine id
//!     26    .  key as a block (2 length, so many bytes; PKCS#8)
//!      .    1  count of CA certificates: 0 before registration, else 1 or 2
//!      .    .  each as a block, the one in force first; then the machine's certificate as a block (only if there are any)
//!      .   32  SHA-256 of everything before
//! ```

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::ca::{CaError, KEY_BYTES_MAX, LeafKey};
use crate::code::Code;
use crate::codec::{Malformed, Reader, put_block};
use crate::envelope::{DIGEST_SIZE, Envelope, HEAD_SIZE, Unfit};
use crate::id::{MachineId, Role};
use crate::leaf::{CERTIFICATE_BYTES_MAX, CertificateError, Leaf};
use crate::registration::Registered;
use crate::registration::message::CAS_MAX;
use crate::tls::{self, Credentials, Purpose, TlsError, Trust};

const VERSION: u16 = 1;
const ENVELOPE: Envelope = Envelope {
    magic: b"MTMB\r\n\x1a\n",
    version: VERSION,
};
/// Largest file that is looked at, in bytes.
pub const BYTES_MAX: usize =
    HEAD_SIZE + 16 + (2 + KEY_BYTES_MAX) + 1 + (CAS_MAX + 1) * (2 + CERTIFICATE_BYTES_MAX) + DIGEST_SIZE;

/// Why a machine's identity cannot be read or used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// Not such a file.
    #[error("this is not a machine's identity")]
    NotAnIdentity,
    /// Written by a newer release.
    #[error("the machine's identity has format version {found}, this release reads {VERSION}")]
    Version {
        /// As found.
        found: u16,
    },
    /// Bytes were changed or are missing.
    #[error("the machine's identity is damaged: its checksum does not match")]
    Damaged,
    /// More than is looked at.
    #[error("the machine's identity has {found} bytes, at most {BYTES_MAX} are looked at")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// A field is wrong though the checksum matches.
    #[error("the machine's identity cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// The key is wrong.
    #[error("the machine's identity cannot be used: {0}")]
    Key(#[from] CaError),
    /// A certificate is wrong.
    #[error("the machine's identity cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    /// Keys and certificates do not make TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It has no certificate yet.
    #[error("this machine is not registered with an appliance")]
    NotRegistered,
}

impl MemberError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Version { .. } => "install the release that wrote it, or a newer one",
            Self::NotRegistered => Code::KeyUnknown.hint(),
            _ => "remove the file and run \"mt-agent register\"; the operator approves the machine again",
        }
    }
}

/// What an appliance gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The CAs to trust, the one in force first.
    pub cas: Vec<CertificateDer<'static>>,
    /// The machine's certificate.
    pub certificate: CertificateDer<'static>,
    /// What it says.
    pub leaf: Leaf,
}

impl From<Registered> for Standing {
    fn from(registered: Registered) -> Self {
        Self {
            cas: registered.cas,
            certificate: registered.certificate,
            leaf: registered.leaf,
        }
    }
}

/// A machine, registered or about to be.
pub struct Member {
    /// Which machine.
    pub id: MachineId,
    /// Its key.
    pub key: LeafKey,
    /// What it has from the appliance; `None` before it is registered.
    pub standing: Option<Standing>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("id", &self.id)
            .field("key", &self.key)
            .field("leaf", &self.standing.as_ref().map(|standing| &standing.leaf))
            .finish()
    }
}

impl Member {
    /// A machine that is not registered: stored before it tries.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn create() -> Result<Self, MemberError> {
        Ok(Self {
            id: MachineId::random(),
            key: LeafKey::generate()?,
            standing: None,
        })
    }

    /// The same machine with what a renewal gave for a new key.
    pub fn renewed(&self, key: LeafKey, registered: Registered) -> Self {
        Self {
            id: self.id,
            key,
            standing: Some(registered.into()),
        }
    }

    /// For connecting to a peer in this role.
    ///
    /// # Errors
    /// When the machine is not registered, or the TLS library refuses.
    pub fn client(
        &self,
        expected: Role,
        purpose: Purpose,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Arc<ClientConfig>, MemberError> {
        let standing = self.standing.as_ref().ok_or(MemberError::NotRegistered)?;
        let credentials = self.credentials(standing)?;
        let trust = Trust::new(&standing.cas)?;
        Ok(tls::peer_client(&trust, &credentials, expected, purpose, clock)?)
    }

    fn credentials(&self, standing: &Standing) -> Result<Credentials, MemberError> {
        let ca = standing.cas.first().ok_or(MemberError::NotRegistered)?.clone();
        Ok(Credentials::new(standing.certificate.clone(), ca, &self.key)?)
    }

    /// The bytes.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // All at once: a vector that grows leaves copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX));
        ENVELOPE.begin(&mut bytes);
        bytes.extend_from_slice(&self.id.0);
        put_block(&mut bytes, &self.key.to_der());
        match &self.standing {
            None => bytes.push(0),
            Some(standing) => {
                let cas = &standing.cas[..standing.cas.len().min(CAS_MAX)];
                bytes.push(u8::try_from(cas.len()).unwrap_or(0));
                for ca in cas {
                    put_block(&mut bytes, ca);
                }
                put_block(&mut bytes, &standing.certificate);
            }
        }
        Envelope::end(&mut bytes);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MemberError> {
        if bytes.len() > BYTES_MAX {
            return Err(MemberError::TooLarge { found: bytes.len() });
        }
        let content = ENVELOPE.open(bytes).map_err(|unfit| match unfit {
            Unfit::OtherKind => MemberError::NotAnIdentity,
            Unfit::Version(found) => MemberError::Version { found },
            Unfit::Damaged => MemberError::Damaged,
        })?;
        let mut fields = Reader::new(content);
        let id = MachineId(fields.array("machine id")?);
        let key = LeafKey::from_der(fields.block(KEY_BYTES_MAX, "key")?)?;
        let count = usize::from(fields.u8("count of CAs")?);
        if count > CAS_MAX {
            return Err(Malformed::TooLarge {
                field: "count of CAs",
                found: count,
                max: CAS_MAX,
            }
            .into());
        }
        let mut certificate = || {
            let der = fields.block(CERTIFICATE_BYTES_MAX, "certificate")?;
            Ok(CertificateDer::from(der.to_vec()))
        };
        let cas = (0..count)
            .map(|_| certificate())
            .collect::<Result<Vec<_>, Malformed>>()?;
        let standing = if cas.is_empty() {
            None
        } else {
            let certificate = certificate()?;
            let leaf = Leaf::read(&certificate)?;
            Some(Standing {
                cas,
                certificate,
                leaf,
            })
        };
        fields.end()?;
        let member = Self { id, key, standing };
        // What does not fit together is found now and not on the day it is needed.
        if let Some(standing) = &member.standing {
            member.credentials(standing)?;
            Trust::new(&standing.cas)?;
            if standing.leaf.id != id {
                return Err(CertificateError::NoIdentity.into());
            }
        }
        Ok(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Ca;
    use crate::envelope::resealed;
    use crate::testing::{machine, now};
    use proptest::prelude::{any, proptest};

    fn registered(ca: &Ca) -> Member {
        let machine = machine(ca, Role::Source, now());
        let leaf = Leaf::read(&machine.certificate).unwrap();
        let standing = Standing {
            cas: vec![
                ca.certificate().clone(),
                Ca::generate(now()).unwrap().certificate().clone(),
            ],
            certificate: machine.certificate,
            leaf,
        };
        Member {
            id: machine.id,
            key: machine.key,
            standing: Some(standing),
        }
    }

    #[test]
    fn members_read_back_before_and_after_registration() {
        let ca = Ca::generate(now()).unwrap();
        for member in [Member::create().unwrap(), registered(&ca)] {
            let bytes = member.to_bytes();
            let again = Member::from_bytes(&bytes).unwrap();
            assert_eq!((again.id, &again.standing), (member.id, &member.standing));
            assert_eq!(again.key.fingerprint(), member.key.fingerprint());
            assert!(bytes.len() <= BYTES_MAX);
            let shown = format!("{member:?}");
            assert!(shown.contains("LeafKey(sha256:"), "{shown}");
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_refused() {
        let bytes = registered(&Ca::generate(now()).unwrap()).to_bytes();
        for at in 0..bytes.len() {
            assert!(Member::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x20;
            assert!(Member::from_bytes(&changed).is_err(), "flipped at {at}");
        }
        let other = Member::from_bytes(b"-----BEGIN PRIVATE KEY-----").unwrap_err();
        assert_eq!(other, MemberError::NotAnIdentity);
        let newer = [&ENVELOPE.magic[..], &[2, 0]].concat();
        assert_eq!(
            Member::from_bytes(&newer).unwrap_err(),
            MemberError::Version { found: 2 }
        );
    }

    #[test]
    fn parts_of_different_machines_are_refused() {
        let ca = Ca::generate(now()).unwrap();
        let (one, other) = (registered(&ca), registered(&ca));
        let mixed = Member {
            id: one.id,
            key: one.key,
            standing: other.standing,
        };
        assert!(matches!(
            Member::from_bytes(&mixed.to_bytes()),
            Err(MemberError::Tls(_))
        ));
        let renamed = Member {
            id: MachineId([0; 16]),
            ..registered(&ca)
        };
        assert_eq!(
            Member::from_bytes(&renamed.to_bytes()).unwrap_err(),
            MemberError::Certificate(CertificateError::NoIdentity)
        );
    }

    #[test]
    fn an_unregistered_machine_does_not_connect() {
        let clock = Arc::new(rustls::time_provider::DefaultTimeProvider);
        let error = Member::create()
            .unwrap()
            .client(Role::Server, Purpose::Data, clock)
            .unwrap_err();
        assert_eq!(error, MemberError::NotRegistered);
        assert!(error.hint().contains("mt-agent register"));
    }

    proptest! {
        #[test]
        fn changed_content_under_a_right_digest_never_panics(at in any::<usize>(), with in any::<u8>()) {
            static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let bytes = BYTES.get_or_init(|| registered(&Ca::generate(now()).unwrap()).to_bytes().to_vec());
            let mut changed = bytes.clone();
            let at = HEAD_SIZE + at % (changed.len() - HEAD_SIZE - DIGEST_SIZE);
            changed[at] = with;
            let _ = Member::from_bytes(&resealed(changed));
        }
    }
}
