//! The appliance's certificate authority: its key, what it signs and what it refuses to sign.
//!
//! Keys are ECDSA P-256. The CA lives ten years; leaves as [`crate::leaf`] says. A certificate request contributes its
//! key and the proof that the requester holds it, nothing else: names, extensions and dates are ours.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use rand_core::{OsRng, RngCore};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::id::{Fingerprint, MachineId, Role};
use crate::leaf::{self, BACKDATED, LEAF_LIFE, P256_SPKI_PREFIX, P256_SPKI_SIZE, is_p256};

/// Largest certificate request that is looked at, in bytes. Ours have about 200.
pub const REQUEST_BYTES_MAX: usize = 1024;
/// Largest private key that is looked at, in bytes (PKCS#8). Ours have 138.
pub const KEY_BYTES_MAX: usize = 512;
/// How long the CA is good.
pub const CA_LIFE: SignedDuration = SignedDuration::from_hours(3653 * 24);

const ORGANIZATION: &str = "master target";
/// AlgorithmIdentifier of ecdsa-with-SHA256.
const ECDSA_WITH_SHA256: [u8; 12] = [
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];

/// What can be wrong with keys and requests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The library could not make or sign.
    #[error("cannot {what}: {reason}")]
    Failed {
        /// What was attempted.
        what: &'static str,
        /// The library's words.
        reason: String,
    },
    /// Bytes that are not a key of ours.
    #[error("the private key is not an ECDSA P-256 key in PKCS#8")]
    NotAKey,
    /// Certificate and key do not belong together.
    #[error("the CA certificate does not belong to the CA key")]
    NotOurCertificate,
    /// A certificate that cannot be one.
    #[error(transparent)]
    Certificate(#[from] leaf::CertificateError),
    /// A request that is too large.
    #[error("the certificate request has {found} bytes, at most {REQUEST_BYTES_MAX} are looked at")]
    RequestTooLarge {
        /// Its size.
        found: usize,
    },
    /// A request that cannot be read.
    #[error("the certificate request cannot be read")]
    RequestUnreadable,
    /// A request with a key that we do not sign.
    #[error("the certificate request's key is not ECDSA P-256")]
    RequestKey,
    /// A request whose sender did not show that the key is his.
    #[error("the certificate request is not signed by its own key")]
    RequestSignature,
}

/// A private key of a machine or of the appliance's ports.
///
/// The encoded key is wiped on drop. (The signing key that `ring` keeps inside is not: it offers no way to.)
pub struct LeafKey(KeyPair);

impl fmt::Debug for LeafKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeafKey({})", self.fingerprint())
    }
}

impl Drop for LeafKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl LeafKey {
    /// A new key. It never leaves the machine that made it.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, CaError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|error| failed("make a key", &error))
    }

    /// Reads a key that [`Self::to_der`] wrote.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_der(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > KEY_BYTES_MAX {
            return Err(CaError::NotAKey);
        }
        KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| CaError::NotAKey)
    }

    /// The key as PKCS#8.
    pub fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// Which key it is.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_spki(&self.0.subject_public_key_info())
    }

    /// A certificate request for this key.
    ///
    /// # Errors
    /// When signing fails.
    pub fn request(&self) -> Result<Vec<u8>, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .serialize_request(&self.0)
            .map(|request| request.der().to_vec())
            .map_err(|error| failed("make a certificate request", &error))
    }

    pub(crate) fn for_tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

/// A certificate request that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    spki: Vec<u8>,
}

impl Request {
    /// Checks a request: size, form, kind of key, and that its sender holds the key.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn check(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > REQUEST_BYTES_MAX {
            return Err(CaError::RequestTooLarge { found: der.len() });
        }
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
            return Err(CaError::RequestUnreadable);
        };
        let info = &request.certification_request_info;
        let spki = info.subject_pki.raw;
        if !is_p256(spki) {
            return Err(CaError::RequestKey);
        }
        // The parser takes more spellings than one; there is one that we write.
        let signature = &request.signature_value.data;
        let signature_len = u8::try_from(signature.len() + 1).map_err(|_| CaError::RequestSignature)?;
        let tail = [&ECDSA_WITH_SHA256[..], &[0x03, signature_len, 0], signature].concat();
        if der[0] != 0x30 || !der.ends_with(&[info.raw, &tail].concat()) {
            return Err(CaError::RequestSignature);
        }
        // The point begins with its form byte, the last of the prefix.
        let point = &spki[P256_SPKI_PREFIX.len() - 1..];
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(info.raw, signature)
            .map_err(|_| CaError::RequestSignature)?;
        debug_assert_eq!(spki.len(), P256_SPKI_SIZE);
        Ok(Self { spki: spki.to_vec() })
    }

    /// Which key it is for.
    pub fn key(&self) -> Fingerprint {
        Fingerprint::of_spki(&self.spki)
    }
}

/// A signed leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its last second of validity.
    pub not_after: Timestamp,
}

/// The certificate authority.
pub struct Ca {
    key: LeafKey,
    certificate: CertificateDer<'static>,
    not_after: Timestamp,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.fingerprint())
    }
}

impl Ca {
    /// A new one, good from a day before `now` for ten years.
    ///
    /// # Errors
    /// When the system has no randomness to give, or `now` is beyond what certificates can say.
    pub fn generate(now: Timestamp) -> Result<Self, CaError> {
        let key = LeafKey::generate()?;
        let mut params = base_params(now, CA_LIFE)?;
        let mut words = [0; 4];
        OsRng.fill_bytes(&mut words);
        // Two appliances in one trust store are told apart by name too.
        let name = format!("master target CA {:08x}", u32::from_be_bytes(words));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params
            .self_signed(&key.0)
            .map_err(|error| failed("sign the CA certificate", &error))?;
        let certificate = certificate.der().clone();
        Self::from_parts(key, certificate)
    }

    /// Puts key and certificate together again.
    ///
    /// # Errors
    /// When they do not belong together.
    pub fn from_parts(key: LeafKey, certificate: CertificateDer<'static>) -> Result<Self, CaError> {
        let parsed = leaf::parse(&certificate)?;
        if Fingerprint::of_spki(parsed.public_key().raw) != key.fingerprint() || !parsed.is_ca() {
            return Err(CaError::NotOurCertificate);
        }
        let not_after = leaf::timestamp(parsed.validity().not_after.timestamp())?;
        Ok(Self {
            key,
            certificate,
            not_after,
        })
    }

    /// Its key.
    pub fn key(&self) -> &LeafKey {
        &self.key
    }

    /// Its certificate: what machines trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What the console shows and `--ca-fingerprint` takes.
    pub fn fingerprint(&self) -> Fingerprint {
        self.key.fingerprint()
    }

    /// Until when it is good.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Signs a leaf for a machine, or for the appliance's own ports with [`Role::Server`].
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(
        &self,
        request: &Request,
        id: MachineId,
        role: Role,
        now: Timestamp,
    ) -> Result<Signed, CaError> {
        let mut params = base_params(now, LEAF_LIFE)?;
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, role.word());
        params.distinguished_name.push(DnType::CommonName, id.to_string());
        let uri =
            Ia5String::try_from(leaf::uri(role, id)).map_err(|error| failed("name a machine", &error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Source => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Role::Relay | Role::Target => {
                vec![
                    ExtendedKeyUsagePurpose::ClientAuth,
                    ExtendedKeyUsagePurpose::ServerAuth,
                ]
            }
        };
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(&request.spki).map_err(|_| CaError::RequestKey)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key.0)
            .map_err(|error| failed("read the CA certificate", &error))?;
        let certificate = params
            .signed_by(&key, &issuer)
            .map_err(|error| failed("sign a certificate", &error))?;
        let certificate = certificate.der().clone();
        let not_after = leaf::Leaf::read(&certificate)?.not_after;
        Ok(Signed {
            certificate,
            not_after,
        })
    }

    /// Signs the leaf of the appliance's own ports.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign_own(&self, key: &LeafKey, id: MachineId, now: Timestamp) -> Result<Signed, CaError> {
        self.sign(&Request::check(&key.request()?)?, id, Role::Server, now)
    }
}

/// What CA and leaves have in common: dates, serial number, organisation.
fn base_params(now: Timestamp, life: SignedDuration) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    OsRng.fill_bytes(&mut serial);
    // Positive and without a leading zero byte, as X.509 wants serial numbers.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, ORGANIZATION);
    params.not_before = date(now, -BACKDATED)?;
    params.not_after = date(now, life)?;
    Ok(params)
}

fn date(now: Timestamp, by: SignedDuration) -> Result<time::OffsetDateTime, CaError> {
    let out_of_range = || CaError::Failed {
        what: "date a certificate",
        reason: format!("{now} is too far from what dates can say"),
    };
    let moment = now.checked_add(by).map_err(|_| out_of_range())?;
    // Certificates end with the year 9999, and a date before 1970 can only be a clock that was never set.
    if moment.as_second() < 0 {
        return Err(out_of_range());
    }
    time::OffsetDateTime::from_unix_timestamp(moment.as_second()).map_err(|_| out_of_range())
}

fn failed(what: &'static str, error: &impl fmt::Display) -> CaError {
    CaError::Failed {
        what,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaf::{CertificateError, Leaf, Renewal, Usage, Validity, verify_chain};
    use proptest::prelude::{any, proptest};

    fn now() -> Timestamp {
        "2026-03-02T10:00:00Z".parse().unwrap()
    }

    fn days(count: i64) -> SignedDuration {
        SignedDuration::from_hours(24 * count)
    }

    fn machine(ca: &Ca, role: Role) -> (MachineId, LeafKey, CertificateDer<'static>) {
        let (id, key) = (MachineId::random(), LeafKey::generate().unwrap());
        let request = Request::check(&key.request().unwrap()).unwrap();
        let signed = ca.sign(&request, id, role, now()).unwrap();
        (id, key, signed.certificate)
    }

    #[test]
    fn leaves_say_who_which_role_and_how_long() {
        let ca = Ca::generate(now()).unwrap();
        for role in Role::ALL {
            let (id, key, certificate) = machine(&ca, role);
            let leaf = Leaf::read(&certificate).unwrap();
            assert_eq!((leaf.id, leaf.role, leaf.key), (id, role, key.fingerprint()));
            assert_eq!(leaf.not_before, now() - days(1));
            assert_eq!(leaf.not_after, now() + days(90));
            assert!(
                certificate.len() < crate::leaf::CERTIFICATE_BYTES_MAX / 2,
                "{}",
                certificate.len()
            );
        }
        assert_eq!(ca.not_after(), now() + days(3653));
    }

    #[test]
    fn each_role_is_good_for_its_side_only() {
        let ca = Ca::generate(now()).unwrap();
        let other = Ca::generate(now()).unwrap();
        let anchor = webpki::anchor_from_trusted_cert(ca.certificate()).unwrap();
        let foreign = webpki::anchor_from_trusted_cert(other.certificate()).unwrap();
        for (role, client, server) in [
            (Role::Source, true, false),
            (Role::Relay, true, true),
            (Role::Target, true, true),
            (Role::Server, false, true),
        ] {
            let (_, _, certificate) = machine(&ca, role);
            let trusted = std::slice::from_ref(&anchor);
            assert_eq!(
                verify_chain(&certificate, trusted, Usage::Client).is_ok(),
                client,
                "{role}"
            );
            assert_eq!(
                verify_chain(&certificate, trusted, Usage::Server).is_ok(),
                server,
                "{role}"
            );
            assert_eq!(
                verify_chain(&certificate, std::slice::from_ref(&foreign), Usage::Client),
                Err(CertificateError::Untrusted)
            );
            // While a CA is replaced both are trusted.
            let both = [foreign.clone(), anchor.clone()];
            assert_eq!(
                verify_chain(&certificate, &both, Usage::Client).is_ok(),
                client,
                "{role}"
            );
        }
        assert!(verify_chain(ca.certificate(), &[anchor], Usage::Client).is_err());
    }

    #[test]
    fn a_leaf_signed_by_a_leaf_is_nobody() {
        let ca = Ca::generate(now()).unwrap();
        let (_, relay_key, relay) = machine(&ca, Role::Relay);
        let forger = Ca {
            key: relay_key,
            certificate: relay,
            not_after: now(),
        };
        let (_, _, forged) = machine(&forger, Role::Source);
        let anchor = webpki::anchor_from_trusted_cert(ca.certificate()).unwrap();
        assert_eq!(
            verify_chain(&forged, &[anchor], Usage::Client),
            Err(CertificateError::Untrusted)
        );
    }

    #[test]
    fn time_decides_what_is_valid_and_what_is_due() {
        let ca = Ca::generate(now()).unwrap();
        let (_, _, certificate) = machine(&ca, Role::Source);
        let leaf = Leaf::read(&certificate).unwrap();
        let second = SignedDuration::from_secs(1);
        let (from, until, renew) = (now() - days(1), now() + days(90), now() + days(60));
        for (at, validity, renewal) in [
            (
                from - second,
                Validity::NotYet { from },
                Renewal::ClockBehind { from },
            ),
            (from, Validity::Valid, Renewal::At(renew)),
            (now(), Validity::Valid, Renewal::At(renew)),
            (renew - second, Validity::Valid, Renewal::At(renew)),
            (renew, Validity::Valid, Renewal::Due { until }),
            (until, Validity::Valid, Renewal::Due { until }),
            (
                until + second,
                Validity::Expired { since: until },
                Renewal::Overdue { since: until },
            ),
            (
                until + days(4000),
                Validity::Expired { since: until },
                Renewal::Overdue { since: until },
            ),
        ] {
            assert_eq!((leaf.validity(at), leaf.renewal(at)), (validity, renewal), "{at}");
        }
        // A lapsed certificate still proves which key speaks.
        let anchor = webpki::anchor_from_trusted_cert(ca.certificate()).unwrap();
        assert!(verify_chain(&certificate, &[anchor], Usage::Client).is_ok());
    }

    #[test]
    fn clocks_far_off_make_an_error_or_a_certificate_but_no_panic() {
        for seconds in [
            i64::MIN / 1_000_000_000,
            -1,
            0,
            86_399,
            253_402_207_200,
            253_402_207_200 - 4000 * 86_400,
        ] {
            let Ok(at) = Timestamp::from_second(seconds) else {
                continue;
            };
            if let Ok(ca) = Ca::generate(at) {
                let key = LeafKey::generate().unwrap();
                let _ = ca.sign_own(&key, MachineId::random(), at);
            }
        }
        assert!(Ca::generate(Timestamp::from_second(0).unwrap()).is_err());
    }

    #[test]
    fn requests_of_other_kinds_are_refused() {
        for (algorithm, name) in [
            (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384"),
            (&rcgen::PKCS_ED25519, "Ed25519"),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::default().serialize_request(&key).unwrap();
            assert_eq!(Request::check(request.der()), Err(CaError::RequestKey), "{name}");
        }
        assert_eq!(Request::check(&[]), Err(CaError::RequestUnreadable));
        assert_eq!(
            Request::check(&vec![0x30; 1 << 20]),
            Err(CaError::RequestTooLarge { found: 1 << 20 })
        );
    }

    #[test]
    fn what_a_request_asks_for_beyond_its_key_is_not_granted() {
        let ca = Ca::generate(now()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(["victim.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .subject_alt_names
            .push(SanType::URI(Ia5String::try_from("mt://server/00").unwrap()));
        let greedy = params.serialize_request(&key).unwrap();
        let request = Request::check(greedy.der()).unwrap();
        let id = MachineId::random();
        let signed = ca.sign(&request, id, Role::Source, now()).unwrap();
        let parsed = leaf::parse(&signed.certificate).unwrap();
        assert!(!parsed.is_ca());
        let leaf = Leaf::read(&signed.certificate).unwrap();
        assert_eq!((leaf.id, leaf.role), (id, Role::Source));
    }

    #[test]
    fn keys_survive_the_round_trip_and_foreign_pairs_are_refused() {
        let ca = Ca::generate(now()).unwrap();
        let again = Ca::from_parts(
            LeafKey::from_der(&ca.key().to_der()).unwrap(),
            ca.certificate().clone(),
        )
        .unwrap();
        assert_eq!(again.fingerprint(), ca.fingerprint());
        let other = LeafKey::generate().unwrap();
        assert_eq!(
            Ca::from_parts(other, ca.certificate().clone()).unwrap_err(),
            CaError::NotOurCertificate
        );
        let text = format!("{ca:?} {:?}", ca.key());
        assert_eq!(text.matches("sha256:").count(), 2, "{text}");
    }

    #[test]
    fn a_request_with_any_bit_flipped_is_refused() {
        let der = LeafKey::generate().unwrap().request().unwrap();
        assert!(Request::check(&der).is_ok());
        for bit in 0..der.len() * 8 {
            let mut changed = der.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Request::check(&changed).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::check(&bytes);
            let _ = Leaf::read(&bytes);
            let _ = LeafKey::from_der(&bytes);
        }
    }
}
