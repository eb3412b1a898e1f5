//! Reading certificates: whose key, which role, how long.
//!
//! A leaf certificate that the appliance's CA signs holds, beyond what X.509 wants:
//!
//! ```text
//! subject            O = master target, OU = role, CN = machine id (32 hexadecimal digits); for people only
//! subjectAltName     exactly one URI, mt://ROLE/ID; what programs read. ROLE: source, relay, target, server
//! public key         ECDSA P-256, uncompressed
//! keyUsage           digitalSignature (critical)
//! extendedKeyUsage   source: client; server: server; relay and target: both
//! validity           24 hours before the signing to 90 days after it
//! serial number      127 random bits
//! ```
//!
//! The chain is one step: leaf, CA. [`verify_chain`] checks it; time is judged apart by [`Leaf::validity`], since a
//! certificate that ran out is still proof of which key speaks, and a failback must not fail for a lapsed date.

use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::id::{Fingerprint, MachineId, Role};

/// Largest certificate that is looked at, in bytes. Ours have about 600.
pub const CERTIFICATE_BYTES_MAX: usize = 2048;

/// How long a leaf is good after its signing.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// At which age it is renewed.
pub const LEAF_RENEWAL_AGE: SignedDuration = SignedDuration::from_hours(60 * 24);
/// How far certificates are backdated, for peers whose clock is behind.
pub const BACKDATED: SignedDuration = SignedDuration::from_hours(24);

/// SubjectPublicKeyInfo of an uncompressed P-256 point, up to the point: the only form of key that is taken.
pub(crate) const P256_SPKI_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// Its whole length.
pub(crate) const P256_SPKI_SIZE: usize = P256_SPKI_PREFIX.len() + 64;

/// Why a certificate is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Larger than anything we sign.
    #[error("the certificate has more than {CERTIFICATE_BYTES_MAX} bytes")]
    TooLarge,
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// A key of another kind or form.
    #[error("the certificate's key is not ECDSA P-256")]
    KeyKind,
    /// Does not name one role and one machine in our way.
    #[error("the certificate does not name one role and one machine")]
    NoIdentity,
    /// Signed by someone else, or not for this use.
    #[error("the certificate was not signed by the appliance's CA for this use")]
    Untrusted,
}

/// How a certificate stands in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Valid.
    Valid,
    /// Not yet: a clock is wrong.
    NotYet {
        /// From when it is.
        from: Timestamp,
    },
    /// No longer.
    Expired {
        /// Since when.
        since: Timestamp,
    },
}

/// What the holder of a certificate has to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing until then.
    At(Timestamp),
    /// Renew now; it is still valid until then.
    Due {
        /// Until when.
        until: Timestamp,
    },
    /// It has run out: renewing works while the appliance knows the key.
    Overdue {
        /// Since when it has run out.
        since: Timestamp,
    },
    /// It is not valid yet by our clock: renewing would not help, one of the clocks is wrong.
    ClockBehind {
        /// From when it is valid.
        from: Timestamp,
    },
}

/// What a leaf certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The machine.
    pub id: MachineId,
    /// What it is.
    pub role: Role,
    /// Its key.
    pub key: Fingerprint,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity.
    pub not_after: Timestamp,
}

impl Leaf {
    /// Reads a leaf. Says nothing about who signed it: [`verify_chain`] does, and the TLS of this crate lets no
    /// other through.
    ///
    /// # Errors
    /// When it has not the form in the module's text.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let spki = certificate.public_key().raw;
        if !is_p256(spki) {
            return Err(CertificateError::KeyKind);
        }
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or(CertificateError::NoIdentity)?;
        let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
            return Err(CertificateError::NoIdentity);
        };
        let (role, id) = parse_uri(uri).ok_or(CertificateError::NoIdentity)?;
        Ok(Self {
            id,
            role,
            key: Fingerprint::of_spki(spki),
            not_before: timestamp(certificate.validity().not_before.timestamp())?,
            not_after: timestamp(certificate.validity().not_after.timestamp())?,
        })
    }

    /// How it stands at `now`.
    pub fn validity(&self, now: Timestamp) -> Validity {
        if now < self.not_before {
            Validity::NotYet {
                from: self.not_before,
            }
        } else if now > self.not_after {
            Validity::Expired {
                since: self.not_after,
            }
        } else {
            Validity::Valid
        }
    }

    /// What its holder has to do at `now`.
    pub fn renewal(&self, now: Timestamp) -> Renewal {
        match self.validity(now) {
            Validity::NotYet { from } => Renewal::ClockBehind { from },
            Validity::Expired { since } => Renewal::Overdue { since },
            Validity::Valid => {
                let left = LEAF_LIFE.saturating_sub(LEAF_RENEWAL_AGE);
                match self.not_after.checked_sub(left) {
                    Ok(at) if now < at => Renewal::At(at),
                    _ => Renewal::Due {
                        until: self.not_after,
                    },
                }
            }
        }
    }
}

/// What a peer is checked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// It connects.
    Client,
    /// It is connected to.
    Server,
}

/// Checks that one of the CAs signed the leaf for this use. Dates are left to [`Leaf::validity`]: the signature is
/// verified as of a moment at which the leaf was valid.
///
/// # Errors
/// See [`CertificateError`].
pub fn verify_chain(
    der: &CertificateDer<'_>,
    cas: &[TrustAnchor<'_>],
    usage: Usage,
) -> Result<Leaf, CertificateError> {
    let leaf = Leaf::read(der)?;
    let moment = u64::try_from(leaf.not_after.as_second()).map_err(|_| CertificateError::Unreadable)?;
    let moment = UnixTime::since_unix_epoch(std::time::Duration::from_secs(moment));
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let entity = EndEntityCert::try_from(der).map_err(|_| CertificateError::Unreadable)?;
    let algorithms = [webpki::ring::ECDSA_P256_SHA256];
    entity
        .verify_for_usage(&algorithms, cas, &[], moment, usage, None, None)
        .map_err(|_| CertificateError::Untrusted)?;
    Ok(leaf)
}

/// The key of a certificate of any form, as its fingerprint.
///
/// # Errors
/// When it is too large or not a certificate.
pub fn key_of(der: &[u8]) -> Result<Fingerprint, CertificateError> {
    Ok(Fingerprint::of_spki(parse(der)?.public_key().raw))
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(CertificateError::TooLarge);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Unreadable),
    }
}

pub(crate) fn is_p256(spki: &[u8]) -> bool {
    spki.len() == P256_SPKI_SIZE && spki.starts_with(&P256_SPKI_PREFIX)
}

pub(crate) fn timestamp(seconds: i64) -> Result<Timestamp, CertificateError> {
    Timestamp::from_second(seconds).map_err(|_| CertificateError::Unreadable)
}

/// The name of a machine in its certificate.
pub(crate) fn uri(role: Role, id: MachineId) -> String {
    format!("mt://{role}/{id}")
}

fn parse_uri(text: &str) -> Option<(Role, MachineId)> {
    let (role, digits) = text.strip_prefix("mt://")?.split_once('/')?;
    let (role, id) = (Role::from_word(role)?, digits.parse().ok()?);
    // One machine has one name: upper case would be a second.
    (uri(role, id) == text).then_some((role, id))
}
